"""Test tools/eval_search.py: each caption has one correct clip, and equal scores count against it."""

from __future__ import annotations

import json
import sys

import eval_search
import pytest
from demo_world.language import caption


def test_all_captions_differ() -> None:
    scenes = eval_search.choose(60_000_000, 150)
    assert len({caption(scene) for scene in scenes}) == 150
    assert not any(scene.still for scene in scenes)
    n_scenes = scenes[-1].seed - scenes[0].seed + 1
    assert n_scenes > 150, "some captions occur twice and were skipped"
    assert any(map(eval_search.unseen, scenes))


def test_scores() -> None:
    scenes = eval_search.choose(60_000_000, 4)
    ranks = dict(zip((s.seed for s in scenes), (1, 1, 5, 11), strict=True))
    whole = eval_search.score(scenes, ranks)["all captions"]
    assert (whole["recall@1"], whole["recall@5"], whole["recall@10"], whole["median rank"]) == (50.0, 75.0, 75.0, 1)


@pytest.mark.slow
def test_command_writes_the_page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    page = tmp_path / "search.md"
    monkeypatch.setattr(sys, "argv", ["eval_search.py", "--clips", "3", "--json", "--out", str(page)])
    eval_search.main()
    result = json.loads(capsys.readouterr().out)
    assert result["scores"]["all captions"]["n"] == 3 and result["scores"]["all captions"]["recall@5"] == 100.0
    assert "--clips 3" in page.read_text() and "| all captions | 3 |" in page.read_text()
