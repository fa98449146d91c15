"""Short runs of the long proofs: killed runs and damaged media; `VIDQA_PROOFS=100` makes them longer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TOOLS = Path(__file__).parents[2] / "tools"
FACTOR = int(os.environ.get("VIDQA_PROOFS", "1"))


def run_proof(tool: str, *arguments: object, cwd: Path) -> dict[str, object]:
    command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(TOOLS.parent)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.skipif(sys.platform == "win32", reason="kills process groups")
def test_killed_runs_lose_no_rows(tiny_bundle: Path, tmp_path: Path) -> None:
    arguments = ("--count", 4 * FACTOR, "--model", tiny_bundle, "--clips", 6, "--seed", 1)
    found = run_proof("prove_kills.py", *arguments, cwd=tmp_path)
    assert found["killed"] == 4 * FACTOR and found["rows"] == [40, 64]


def test_damaged_media_are_all_accounted_for(tmp_path: Path) -> None:
    found = run_proof("fuzz_media.py", "--count", 60 * FACTOR, "--seed", 1, cwd=tmp_path)
    ends = found["ends"]
    assert isinstance(ends, dict) and sum(ends.values()) - ends["with notes"] == 60 * FACTOR
    assert ends["decoded"] > 0 and any(end.startswith("failed") for end in ends)
