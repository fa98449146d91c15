"""The monitor gets values: it imports neither the stages of a run nor a model."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import vidqa

FOLDER = Path(vidqa.__file__).parent / "pipeline" / "monitor"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_monitor_imports_no_stage_and_no_model(path: Path) -> None:
    names = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
    allowed = ("vidqa.pipeline.monitor", "vidqa.common", "vidqa.errors")
    assert not [name for name in names if name and name.startswith("vidqa.") and not name.startswith(allowed)]
