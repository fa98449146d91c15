"""docs/demo_model.md and its notes are what tools/make_demo.py writes from their own figures."""

from __future__ import annotations

import json
from itertools import takewhile
from pathlib import Path

import pytest
import torch
from demo_model import package
from demo_model.plan import Plan

DOCS = package.ROOT / "docs"


def rows(text: str, header: str) -> list[list[str]]:
    """Return the cells of the rows below a table header."""
    lines = takewhile(bool, text.partition(f"{header}\n")[2].splitlines()[1:])
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a work folder whose results have the figures of the two pages."""
    monkeypatch.setattr(package.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(package.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    page, notes = (DOCS / "demo_model.md").read_text(), (DOCS / "notes" / "demo_model.md").read_text()
    scores = {
        topic: {"right": float(right), "error": float(error), "n": int(n)}
        for topic, right, error, n, _ in rows(page, "| topic | correct, % | ± 95% | questions | target |")
    }
    model_id = page.partition("model demo (")[2][:16]
    found = {"model_id": model_id, "seed": package.SCORED_SEED, "clips": package.SCORED_CLIPS, "scores": scores}
    (tmp_path / "scores.json").write_text(json.dumps(found))
    seen: dict[str, dict[str, list[float]]] = {"clips": {}, "stills": {}}
    for name, *cells in rows(notes, "| | clips, correct % | objects | images, correct % | objects |"):
        for kind, (right, n) in zip(seen, (cells[:2], cells[2:]), strict=True):
            if right:
                seen[kind][name] = [float(right), int(n)]
    (tmp_path / "seen.json").write_text(json.dumps(seen))
    seconds = {step: 60 * float(minutes) for step, minutes in rows(notes, "| step | minutes |")[:-1]}
    (tmp_path / "seconds.json").write_text(json.dumps(seconds))
    (tmp_path / "bundle").symlink_to(package.ROOT / "vidqa" / "demo")
    return tmp_path


def test_the_page_matches_its_template(work: Path) -> None:
    assert package.page(work) == (DOCS / "demo_model.md").read_text()


def test_the_notes_match_their_template(work: Path) -> None:
    assert package.page_of_notes(Plan(), work) == (DOCS / "notes" / "demo_model.md").read_text()


def test_the_page_has_the_scores_of_the_shipped_bundle(work: Path) -> None:
    from vidqa.model.bundle.bundle import load_bundle

    assert json.loads((work / "scores.json").read_text())["model_id"] == load_bundle("demo").model_id
