"""stderr goes away during a run: messages are lost and nothing else. The reader of stdout goes away: a quiet end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vidqa.tables.formats import read_table

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="POSIX")]

TIMEOUT_S = 280


def run(arguments: list[object], environment: dict[str, str], **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vidqa", *map(str, arguments)],
        text=True,
        timeout=TIMEOUT_S,
        env=os.environ | environment,
        **options,  # type: ignore[call-overload]
    )


def closed_pipe() -> int:
    """Return the end for writing of a pipe that has no reader any more, as after `2>&1 | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def full_disk() -> int:
    if not os.path.exists("/dev/full"):
        pytest.skip("Linux")
    return os.open("/dev/full", os.O_WRONLY)


def closed_terminal() -> int:
    """Return the end of a terminal whose window is closed."""
    ours, theirs = os.openpty()
    os.close(ours)
    return theirs


@pytest.mark.parametrize("stderr", [closed_pipe, full_disk, closed_terminal])
def test_describe_without_stderr(
    stderr: Callable[[], int], clips: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    (clips / "bad.mp4").write_text("not a video")
    table, log = tmp_path / "t.parquet", tmp_path / "a.log"
    writer = stderr()
    done = run(["describe", clips, "--out", table, "-v", "--log", log], environment, stderr=writer)
    os.close(writer)
    assert done.returncode == 3, "one file fails, as with stderr"
    assert sorted(read_table(table)["status"]) == ["failed", "ok", "ok", "ok"]
    assert log.read_text().splitlines()[-1].split("\t")[2] == "items failed"


def test_the_end_of_the_terminal_does_not_end_the_run(clips: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    """Closing the window of a terminal also sends SIGHUP to its processes."""
    import pty

    table = tmp_path / "t.parquet"
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(
            sys.executable,
            [sys.executable, "-m", "vidqa", "describe", str(clips), "--out", str(table)],
            os.environ | environment,
        )
    assert os.read(terminal, 1), "the first message: the run has started"
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert read_table(table)["status"].to_list() == ["ok"] * 3


def test_event_log_on_a_full_disk(clips: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("Linux")
    table = tmp_path / "t.parquet"
    done = run(["describe", clips, "--out", table, "--log", "/dev/full"], environment, stderr=subprocess.PIPE)
    assert done.returncode == 0 and "warning: stopped logging: No space left" in done.stderr
    assert len(read_table(table)) == 3


def test_errors_without_stderr_keep_their_exit_code(tmp_path: Path, environment: dict[str, str]) -> None:
    writer = closed_pipe()
    assert run(["describe", tmp_path, "--out", tmp_path / "t.csv"], environment, stderr=writer).returncode == 1
    assert run(["describe", tmp_path, "--no-such-option"], environment, stderr=writer).returncode == 2
    os.close(writer)


@pytest.mark.parametrize(
    "arguments", [["ask", "CLIPS", "What?"], ["ask", "CLIPS", "What?", "--json"], ["models", "list"]]
)
def test_results_without_a_reader(arguments: list[str], clips: Path, environment: dict[str, str]) -> None:
    writer = closed_pipe()
    arguments = [str(clips) if one == "CLIPS" else one for one in arguments]
    done = run(arguments, environment, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.returncode == 141, "as if SIGPIPE had ended it"
    assert "Error" not in done.stderr and "Traceback" not in done.stderr


def test_results_on_a_full_disk(clips: Path, environment: dict[str, str]) -> None:
    writer = full_disk()
    done = run(["ask", clips, "What?"], environment, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.returncode == 1
    assert "vidqa: No space left on device" in done.stderr and "Exception ignored" not in done.stderr
