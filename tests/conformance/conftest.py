"""Makes the mutants importable: `mutant` and `mutants` lie beside the tests, which are no package."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
