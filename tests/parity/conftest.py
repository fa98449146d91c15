"""The comparisons are those of tools/check_golden.py; the modules beside the tests can be imported."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
sys.path.insert(0, str(Path(__file__).parents[1] / "convert"))
sys.path.insert(0, str(Path(__file__).parent))
