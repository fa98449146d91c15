"""The examples in every `--help` use the files of `vidqa examples clips`, and can be pasted."""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from vidqa.cli.commands.examples import SOURCE
from vidqa.cli.main import group, run

ROOT = Path(__file__).parents[2]
#: Examples that need a network, published weights, several processes, or half a minute.
NOT_RUN = r"models (pull|convert|rm)|torchrun|vidqa bench$"


def examples() -> Iterator[str]:
    """Yield the different example lines of all commands, in the order of `vidqa --help`."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from update_cli_docs import split_help, walk
    finally:
        sys.path.remove(str(ROOT / "tools"))
    context = click.Context(group, info_name="vidqa")
    commands = (group, *(inner.command for inner in walk(context)))
    yield from dict.fromkeys(line for command in commands for line in split_help(command)[1])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIDQA_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_examples_are_copied_and_never_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["examples", "deep/clips"]) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in paths[:4]] == ["clip01.mp4", "clip05.mp4", "clip06.mp4", "questions.toml"]
    assert all(path.read_bytes() == (ROOT / "examples" / "clips" / path.name).read_bytes() for path in paths[:3])
    assert sum(path.stat().st_size for path in paths) < 20_000
    paths[0].unlink()
    assert run(["examples", "deep/clips", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == [str(path) for path in paths] and paths[0].is_file()
    paths[3].write_text("mine")
    paths[0].unlink()
    assert run(["examples", "deep/clips"]) == 2
    assert "questions.toml exists already" in capsys.readouterr().err
    assert paths[3].read_text() == "mine" and not paths[0].exists()
    assert run(["examples", str(paths[3])]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_files_in_examples_are_those_of_the_package() -> None:
    lines = [line for line in examples() if "models convert" not in line and "vidqa completion" not in line]
    assert len(lines) > 30
    for line in lines:
        for word in shlex.split(line):
            assert not re.match(r"[./~]", word), line  # no other folder
            if "*" in word:
                continue
            if word.startswith("clips/") or re.search(r"\.(mp4|png|toml)\b", word):
                name = word.removeprefix("clips/").partition("@")[0]  # `clip01.mp4@1` is a row of a table
                assert (SOURCE / name).is_file(), line


@pytest.mark.slow
def test_examples_can_be_pasted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = 0
    for line in examples():
        if re.search(NOT_RUN, line):
            continue
        piped, _, command = line.rpartition(" | ")
        words = shlex.split(command.partition(" > ")[0])
        if "=" in words[0]:
            monkeypatch.setenv(*words.pop(0).split("=", 1))
        monkeypatch.setattr("sys.stdin", io.StringIO("What happens?\n" if not piped else "What happens?\nAnd then?\n"))
        assert words[0] == "vidqa" and run(words[1:]) == 0, line
        ran += 1
    assert ran > 30
