"""Every file that the documentation names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMED = re.compile(r"\b(?:vidqa|tests|tools|examples|docs)/[\w./-]*\w")


def test_paths_are_found() -> None:
    assert NAMED.findall("see `tools/bench_llm.py --threads 1`, vidqa/media.") == ["tools/bench_llm.py", "vidqa/media"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page: Path) -> None:
    text = re.sub(r"https?://\S+", "", page.read_text(encoding="utf-8"))
    missing = [name for name in NAMED.findall(text) if not (ROOT / name.split("::")[0]).exists()]
    assert not missing
