"""Run the demo model on the example clips, and compare its answers with the README."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from vidqa.cli.main import run
from vidqa.model.bundle.bundle import DEMO
from vidqa.tables.formats import read_table

ROOT = Path(__file__).parent.parent.parent
CLIPS = ROOT / "examples" / "clips"
README = (ROOT / "README.md").read_text(encoding="utf-8")

needs_demo = pytest.mark.skipif(
    not (DEMO / "bundle.json").is_file() or not (CLIPS / "captions.json").is_file(),
    reason="the demo bundle or its clips are missing",
)


def truth() -> list[dict[str, str]]:
    found = json.loads((CLIPS / "captions.json").read_text(encoding="utf-8"))
    assert 8 <= len(found) <= 12
    return found


def same_claims(answer: str, caption: str) -> bool:
    """Whether two sentences about demo clips make the same claims, in any wording."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from demo_world.language import claims
    finally:
        sys.path.remove(str(ROOT / "tools"))
    return claims(answer) == claims(caption) != set()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table that the first command of the README writes."""
    folder = tmp_path_factory.mktemp("examples")
    out = folder / "captions.parquet"
    assert run(["describe", str(CLIPS), "--out", str(out), "--cache-dir", str(folder / "cache")]) == 0
    return out


@pytest.mark.slow
@needs_demo
def test_captions_are_true(table):
    rows = {row["path"]: row for row in read_table(table).to_dicts()}
    expected = truth()
    assert set(rows) == {one["file"] for one in expected}
    wrong = [
        (one["file"], rows[one["file"]]["answer"], one["caption"])
        for one in expected
        if not same_claims(rows[one["file"]]["answer"] or "", one["caption"])
    ]
    assert len(wrong) <= len(expected) // 10, wrong


@needs_demo
def test_every_row_is_complete(table):
    for row in read_table(table).to_dicts():
        assert row["status"] == "ok" and row["finish_reason"] == "eos"
        assert row["n_visual_tokens"] > 0 and row["encoder_id"] and row["model"] == "demo"


@pytest.mark.slow
@needs_demo
def test_answers_are_true(tmp_path, capsys):
    clips = [one for one in truth() if one["file"].endswith(".mp4")][:3]
    right = 0
    for one in clips:
        assert run(["ask", str(CLIPS / one["file"]), "What happens?", "--cache-dir", str(tmp_path)]) == 0
        out, err = capsys.readouterr()
        right += same_claims(out.strip(), one["caption"])
        assert "demo" in err  # the notice
    assert right >= len(clips) - 1


@needs_demo
def test_table_in_the_readme_matches_a_run(table):
    shown = re.findall(r"^\| (\S+\.(?:mp4|png)) \| [\d.]+ \| (.+?) \| (\w+) \|$", README, re.M)
    rows = read_table(table).sort("path").to_dicts()
    assert shown == [(row["path"], row["answer"], row["status"]) for row in rows], "python tools/update_readme.py"
