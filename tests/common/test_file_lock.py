"""One run at a time, whatever became of the last one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vidqa.common.file_lock import FileLock
from vidqa.errors import EXIT_LOCKED, LockedError, TableError

REPOSITORY = str(Path(__file__).parents[2])
HOLD = """
import sys, time, os
sys.path.insert(0, sys.argv[1])
from vidqa.common.file_lock import FileLock
with FileLock(sys.argv[2]):
    if len(sys.argv) > 3:
        started, running = os.pipe()
        if os.fork() == 0:  # a decoder process that outlives its run
            os.write(running, b'x')  # the child runs, so it has closed the lock file
            os.close(1)
            time.sleep(30)
            os._exit(0)
        os.read(started, 1)
    print("held", flush=True)
    time.sleep(60)
"""


def holder(table: Path, *more: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, REPOSITORY, str(table), *more], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    return process


def killed(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_the_second_run_is_told_who_holds_it(tmp_path: Path) -> None:
    table = tmp_path / "t.parquet"
    process = holder(table)
    try:
        with pytest.raises(LockedError, match=f"process {process.pid} on ") as caught, FileLock(table):
            pass
        assert caught.value.exit_code == EXIT_LOCKED == 4
        with FileLock(tmp_path / "other.parquet"):
            pass
    finally:
        killed(process)


@pytest.mark.parametrize("more", [(), ("with a forked worker",)])
def test_the_lock_of_a_killed_run_is_taken_over_and_said(tmp_path: Path, more: tuple[str, ...]) -> None:
    table = tmp_path / "t.parquet"
    process = holder(table, *more)
    killed(process)
    with FileLock(table) as lock:
        assert lock.stale_holder is not None and lock.stale_holder.pid == process.pid
        assert json.loads(lock.path.read_text())["pid"] == os.getpid()
    with FileLock(table) as lock:
        assert lock.stale_holder is None
    assert os.listdir(tmp_path) == []


def test_two_threads_and_a_link_are_not_two_runs(tmp_path: Path) -> None:
    (tmp_path / "link.parquet").symlink_to(tmp_path / "t.parquet")
    refused: list[LockedError] = []

    def second() -> None:
        try:
            with FileLock(tmp_path / "link.parquet"):
                pass
        except LockedError as error:
            refused.append(error)

    with FileLock(tmp_path / "t.parquet"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert len(refused) == 1
        with pytest.raises(LockedError), FileLock(tmp_path / "t.parquet"):  # the refusal above took nothing away
            pass
    with FileLock(tmp_path / "t.parquet"):
        pass


def test_an_error_inside_lets_go(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), FileLock(tmp_path / "t.parquet"):
        raise RuntimeError
    with FileLock(tmp_path / "t.parquet") as lock:
        assert lock.stale_holder is None


def test_a_lock_file_of_garbage_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".t.parquet.lock").write_bytes(b"\xff\x00garbage")
    with FileLock(tmp_path / "t.parquet") as lock:
        assert lock.stale_holder is None


def test_no_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="cannot create the lock file"), FileLock(tmp_path / "none" / "t.parquet"):
        pass


RACE = """
import sys, time
sys.path.insert(0, sys.argv[1])
from vidqa.errors import LockedError
from vidqa.common.file_lock import FileLock
done = 0
while done < 60:
    try:
        with FileLock(sys.argv[2]):
            with open(sys.argv[3]) as f:
                n = int(f.read())
            with open(sys.argv[3], "w") as f:
                f.write(str(n + 1))
            done += 1
    except LockedError:
        time.sleep(0.001)  # where priorities are strict, a spinning loser would keep the holder from ever letting go
"""


def test_only_one_of_many_is_inside(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    command = [sys.executable, "-c", RACE, REPOSITORY, str(tmp_path / "t.parquet"), str(counter)]
    runs = [subprocess.Popen(command) for _ in range(3)]
    assert [r.wait(60) for r in runs] == [0, 0, 0]
    assert counter.read_text() == "180"
