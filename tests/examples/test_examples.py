"""The bundled model on the example clips, and the code of the README, as a user runs them."""

from __future__ import annotations

import io
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
    reason="the demo bundle or its clips are not there",
)


def truth() -> list[dict[str, str]]:
    found = json.loads((CLIPS / "captions.json").read_text(encoding="utf-8"))
    assert 8 <= len(found) <= 12
    return found


def same_claims(answer: str, caption: str) -> bool:
    """Whether two sentences of the demo world say the same, in whatever words."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from demo_world.language import claims
    finally:
        sys.path.remove(str(ROOT / "tools"))
    return claims(answer) == claims(caption) != set()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's first command."""
    folder = tmp_path_factory.mktemp("examples")
    out = folder / "captions.parquet"
    assert run(["describe", str(CLIPS), "--out", str(out), "--cache-dir", str(folder / "cache")]) == 0
    return out


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


@needs_demo
def test_asking_gives_a_true_answer(tmp_path, capsys):
    clips = [one for one in truth() if one["file"].endswith(".mp4")][:3]
    right = 0
    for one in clips:
        assert run(["ask", str(CLIPS / one["file"]), "What happens?", "--cache-dir", str(tmp_path)]) == 0
        out, err = capsys.readouterr()
        right += same_claims(out.strip(), one["caption"])
        assert "demo" in err  # the notice
    assert right >= len(clips) - 1


@needs_demo
def test_table_in_the_readme_is_what_a_run_gives(table):
    shown = re.findall(r"^\| (\S+\.(?:mp4|png)) \| [\d.]+ \| (.+?) \| (\w+) \|$", README, re.M)
    rows = read_table(table).sort("path").to_dicts()
    assert shown == [(row["path"], row["answer"], row["status"]) for row in rows], "python tools/update_readme.py"


@needs_demo
def test_python_code_of_the_readme(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples", target_is_directory=True)
    exec(compile(code, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()[-1]) > 5
    assert (tmp_path / "captions.parquet").exists()


@needs_demo
def test_shell_commands_of_the_readme_name_what_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples", target_is_directory=True)
    monkeypatch.setenv("VIDQA_CACHE", str(tmp_path / "cache"))
    (questions,) = re.findall(r"```toml\n(.*?)```", README, re.S)
    (tmp_path / "my_questions.toml").write_text(questions)
    import shlex

    lines = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()]
    commands = [line.split("&& ")[-1] for line in lines if line.split("&& ")[-1].startswith("vidqa ")]
    assert len(commands) >= 3
    for command in commands:
        monkeypatch.setattr("sys.stdin", io.StringIO("What happens?\n"))  # for the dialogue
        assert run(shlex.split(command)[1:]) == 0, command


def test_the_test_command_of_the_readme_can_be_found():
    block = re.search(r"<!-- test command -->\n```sh\n(.+)\n```", README)
    assert block and "tools/check" in block[1] and ".venv" in block[1]
    assert (ROOT / "tools" / "check").stat().st_mode & 0o111
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
