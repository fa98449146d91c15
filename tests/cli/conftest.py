"""Running the command line in this process, or as a separate process if signals or the exit matter."""

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

#: `fault_hooks` is imported by name, here and in decoder processes.
sys.path.append(str(Path(__file__).parent))


@dataclass(frozen=True)
class Done:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def environment(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Variables for the tiny model and an own cache."""
    values = {"VIDQA_MODEL": str(tiny_bundle), "VIDQA_CACHE": str(tmp_path / "cache")}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return values


@pytest.fixture
def vidqa(environment: dict[str, str], capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """`vidqa("describe", folder, ...)` in this process."""

    def call(*arguments: object) -> Done:
        capsys.readouterr()
        code = run([os.fspath(a) if isinstance(a, Path) else str(a) for a in arguments])
        output = capsys.readouterr()
        return Done(code, output.out, output.err)

    return call


def _default_sigint() -> None:
    """Restore the handling of Ctrl-C, which a shell script disables for tests that it runs in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`start("describe", folder, ...)`: a separate process with piped output, killed at the end of the test."""
    started: list[subprocess.Popen[str]] = []

    def call(*arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "vidqa", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
            start_new_session=True,
            preexec_fn=_default_sigint if sys.platform != "win32" else None,
        )
        started.append(process)
        return process

    yield call
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()
