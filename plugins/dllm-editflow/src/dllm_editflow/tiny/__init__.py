"""What ``editflow-tiny`` learns: small functions with planted errors, which it is to put right."""
