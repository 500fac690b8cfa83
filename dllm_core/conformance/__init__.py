"""What third parties run to check their plugins, and the exact models that the checks rest on."""
