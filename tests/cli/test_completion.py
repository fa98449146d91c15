"""Completion in bash, zsh and fish: the scripts, and what they receive."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vidqa.cli.main import run
from vidqa.model.bundle.registry import models_folder

SHELLS = ("bash", "zsh", "fish")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_calls_vidqa(shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_VIDQA_COMPLETE={shell}_complete" in script
    if program := shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([program, "-n", tmp_path / "script"], check=True)


def test_an_unknown_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", "tcsh"]) == 2
    error = capsys.readouterr().err
    assert all(shell in error for shell in SHELLS)
    assert run(["completion"]) == 2


def complete(*words: str) -> list[str]:
    """Return the lines that the script of bash receives for the last word."""
    line = " ".join(("vidqa", *words))
    environ = os.environ | {
        "_VIDQA_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run([sys.executable, "-m", "vidqa"], env=environ, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_commands_options_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    for name in ("real", "video-llava-7b"):
        (models_folder() / name).mkdir(parents=True)
        (models_folder() / name / "bundle.json").touch()
    (tmp_path / "vidqa.toml").write_text("nonsense = 1")  # must not disturb the shell
    monkeypatch.setenv("VIDQA_CONFIG", str(tmp_path / "vidqa.toml"))
    assert complete("de") == ["plain,describe"]
    assert complete("models", "s") == ["plain,set-default", "plain,show"]
    assert complete("describe", "clips", "--dry") == ["plain,--dry-run"]
    assert complete("describe", "--retry", "f") == ["plain,failed"]
    assert complete("describe", "clips", "--questions", "de") == ["file,de", "plain,demo", "plain,detail"]
    assert complete("describe", "clips", "--out", "t") == ["file,t"]
    assert complete("ask", "--model", "re") == ["dir,re", "plain,real"]
    for command in ("show", "rm", "set-default", "verify"):
        assert complete("models", command, "video") == ["dir,video", "plain,video-llava-7b"]
    assert "plain,video-llava-7b-hf" in complete("models", "pull", "video-llava")
    assert complete("completion", "") == ["plain,bash", "plain,zsh", "plain,fish"]


def test_the_script_does_not_read_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A typing error in vidqa.toml must not be reported by every new shell."""
    (tmp_path / "vidqa.toml").write_text("nonsense = 1")
    monkeypatch.chdir(tmp_path)
    assert run(["completion", "bash"]) == 0
    assert run(["doctor"]) == 2
