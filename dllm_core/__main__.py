"""``python -m dllm_core`` is ``dllm``."""

from __future__ import annotations

import sys

from dllm_core.cli import main

if __name__ == "__main__":
    sys.exit(main())
