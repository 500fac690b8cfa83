"""Everything behind the bundled checkpoint ``llada-tiny``: its skills, its tokenizer, its training data, its table.

``splits`` decides what is held out, ``tasks`` makes exercises, ``generate`` makes training examples of them (the recipe
``llada-tiny`` names it), ``tokenizer`` builds the tokenizer; ``python -m dllm_llada.tiny.evaluate`` prints the table.
"""
