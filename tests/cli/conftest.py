"""Running the command line: inside this process where it is enough, as a process where signals or exit matter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from vidqa.cli.main import run

#: `weather_hooks` is imported here and in decoder processes, by its name.
sys.path.append(str(Path(__file__).parent))


@dataclass(frozen=True)
class Done:
    """What a command left."""

    code: int
    out: str
    err: str


@pytest.fixture
def surroundings(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The tiny model and a cache of its own, by the variables that users set."""
    values = {"VIDQA_MODEL": str(tiny_bundle), "VIDQA_CACHE": str(tmp_path / "cache")}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return values


@pytest.fixture
def vidqa(surroundings: dict[str, str], capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """`vidqa("describe", folder, ...)` in this process."""

    def call(*arguments: object) -> Done:
        capsys.readouterr()
        code = run([os.fspath(a) if isinstance(a, Path) else str(a) for a in arguments])
        said = capsys.readouterr()
        return Done(code, said.out, said.err)

    return call


def _hear_ctrl_c() -> None:
    """Started in the background of a script, the tests ignore Ctrl-C, and so would the command."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def start(surroundings: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`start("describe", folder, ...)` as a process of its own, both outputs piped. None outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def call(*arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "vidqa", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | surroundings,
            start_new_session=True,
            preexec_fn=_hear_ctrl_c if sys.platform != "win32" else None,
        )
        started.append(process)
        return process

    yield call
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()
