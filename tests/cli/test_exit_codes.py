"""Every way to end a command has its exit code and one message without a traceback; a bug keeps its traceback."""

from __future__ import annotations

import errno
import sys
import types

import click
import pytest

from vidqa import errors
from vidqa.cli import main


@pytest.fixture
def ending(monkeypatch):
    """`ending(error_or_value)`: exit code of a command that raises the error or returns the value."""

    def call(what: object) -> int:
        @click.command("fake")
        def command() -> object:
            if isinstance(what, BaseException):
                raise what
            return what

        module = types.ModuleType("vidqa_fake")
        module.command = command
        monkeypatch.setitem(sys.modules, "vidqa_fake", module)
        monkeypatch.setitem(main.COMMANDS, "fake", "vidqa_fake")
        return main.run(["fake"])

    return call


@pytest.mark.parametrize(
    ("what", "code", "message"),
    [
        (None, 0, ""),
        (0, 0, ""),
        (3, 3, ""),
        (
            errors.UsageError("a.toml:3: unknown key `x`", hint="try y"),
            2,
            "vidqa: a.toml:3: unknown key `x`\n  try: try y\n",
        ),
        (errors.DeviceError("no CUDA"), 2, "vidqa: no CUDA\n"),
        (errors.LockedError("busy"), 4, "vidqa: busy\n"),
        (errors.TableError("disk full"), 1, "vidqa: disk full\n"),
        (KeyboardInterrupt(), 130, "vidqa: interrupted\n"),
        (main.Terminated(), 143, "vidqa: terminated\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/t.csv"), 1, "vidqa: No space left on device: /x/t.csv\n"),
    ],
)
def test_codes_and_messages(ending, capsys, what, code, message):
    assert ending(what) == code
    out, err = capsys.readouterr()
    assert (out, err) == ("", message)


def test_a_bug_keeps_its_traceback(ending):
    with pytest.raises(ZeroDivisionError):
        ending(ZeroDivisionError())


def test_a_broken_pipe_is_silent(ending, capfd):
    assert ending(BrokenPipeError(errno.EPIPE, "Broken pipe")) == 141
    assert capfd.readouterr().err == ""


def test_help_works_with_invalid_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vidqa.toml").write_text("= broken")
    assert main.run(["cache", "stats"]) == 2
    assert "vidqa.toml" in capsys.readouterr().err
    assert main.run(["cache", "stats", "--help"]) == 0
