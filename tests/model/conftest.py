"""Make the writers of published checkpoints (tests/convert) importable."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "convert"))
