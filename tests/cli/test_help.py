"""`vidqa --help` is fast, and the help of every command has an example."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module

import click
import pytest

from vidqa.cli.main import COMMANDS, run
from vidqa.config.settings import OPTIONS

HEAVY = [
    "torch",
    "transformers",
    "onnxruntime",
    "av",
    "decord",
    "polars",
    "numpy",
    "pydantic",
    "PIL",
    "safetensors",
    "filelock",
]


def test_help_lists_the_question_sets() -> None:
    from vidqa.cli.commands.describe import command
    from vidqa.prompts.questions import question_sets

    (option,) = [p for p in command.params if p.name == "questions"]
    assert isinstance(option, click.Option) and option.help
    assert all(name in option.help for name in question_sets())


@pytest.mark.parametrize("arguments", [["--help"], ["describe", "--help"], ["ask", "-h"], ["cache", "stats", "-h"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, time; t = time.process_time()\n"
        "from vidqa.cli.main import run\n"
        f"assert run({arguments!r}) == 0\n"
        "seconds = time.process_time() - t\n"
        f"heavy = sorted(set({HEAVY!r}) & set(sys.modules))\n"
        "print(seconds, heavy, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    seconds, _, heavy = done.stderr.strip().splitlines()[-1].partition(" ")
    assert heavy == "[]", f"vidqa {' '.join(arguments)} imported {heavy}"
    # CPU time of this process, which does not depend on the load of the machine.
    assert float(seconds) < 0.3


@pytest.mark.parametrize("command", sorted(COMMANDS))
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_has_help_with_an_example(command: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, flag]) == 0
    out, err = capsys.readouterr()
    assert "Example" in out and f"vidqa {command}" in out
    assert err == ""


def commands() -> Iterator[tuple[str, click.Command]]:
    """Yield all commands, including those of groups such as `cache stats`."""
    for name, module in COMMANDS.items():
        command = import_module(module).command
        inner = command.commands.items() if isinstance(command, click.Group) else []
        yield from [(name, command)] if not inner else ((f"{name} {word}", one) for word, one in inner)


def test_commands_of_groups_have_an_example() -> None:
    found = dict(commands())
    assert len(found) == 27
    assert [name for name, one in found.items() if f"vidqa {name}" not in (one.help or "")] == []


def test_options_without_a_setting() -> None:
    """All other options have a variable and a key in vidqa.toml; docs/configuration.md names the exceptions."""
    only_flags = {"ask": {"more_media"}, "train": {"overrides"}, "models list": {"published"}, "models rm": {"yes"}}
    only_flags["models convert"] = {"out", "name", "towers", "dtype", "encoders", "replace"}
    only_flags["models pull"] = {"out", "revision", "dtype", "encoders", "set_default", "replace"}
    only_flags["table head"] = {"n_rows", "columns"}
    only_flags["table prune"] = {"gone", "superseded", "models", "questions", "settings", "yes"}
    only_flags |= {"table merge": {"out", "replace"}, "table convert": {"out", "current", "replace"}}
    for name, command in commands():
        options = {p.name for p in command.params if isinstance(p, click.Option)}
        assert options == set(OPTIONS[name]) | only_flags.get(name, set()), name


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["descibe"], "describe"),
        (["models", "shwo"], "show"),
        (["cache", "stat"], "stats"),
        (["ask", "a.mp4", "What?", "--modle", "x"], "--model"),
        (["describe", "clips", "--out", "t.csv", "--questions", "captoin"], "caption"),
    ],
)
def test_misspelled_names_get_a_suggestion(
    arguments: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    assert re.search(f"[Dd]id you mean ['`]{meant}['`]", capsys.readouterr().err)


def test_version() -> None:
    from vidqa import __version__

    command = [sys.executable, "-m", "vidqa", "--version"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == f"vidqa {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["describe"],
        ["describe", "clips", "--no-such-flag"],
        ["describe", "clips", "--out", "t.parquet", "--segment", "sometimes"],
        ["describe", "clips", "--out", "t.parquet", "--max-new-tokens", "0"],
        ["ask", "clip.mp4"],
        ["nonsense"],
        ["cache", "nonsense"],
    ],
)
def test_wrong_usage_is_exit_2_on_stderr(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err and err.strip()
