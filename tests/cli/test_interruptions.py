"""Signals, locks, unwritable folders and invalid arguments: exit codes, messages, and what is kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vidqa.common.file_lock import FileLock
from vidqa.tables.formats import read_table

pytestmark = pytest.mark.slow

#: A run takes a few seconds, but longer on a busy machine.
TIMEOUT_S = 280

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@pytest.fixture
def many_clips(tmp_path: Path, make_clip) -> Path:
    """Enough videos to interrupt a run in the middle."""
    for i in range(60):
        make_clip(tmp_path / "many" / f"{i:03d}.mp4", seed=100 + i)
    return tmp_path / "many"


def wait_until_answering(process: subprocess.Popen[str], cache: Path) -> None:
    """Wait until the run has encoded some files."""
    for _ in range(10 * TIMEOUT_S):
        if len(list(cache.rglob("*.safetensors"))) >= 16 or process.poll() is not None:
            return
        time.sleep(0.1)
    raise AssertionError("the run made no progress")


def no_leftovers(folder: Path) -> bool:
    return not [path for path in folder.iterdir() if path.name.endswith((".part", ".lock"))]


@POSIX
@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_and_finished_rows_are_kept(start, many_clips, tmp_path, environment, sign, code):
    out = tmp_path / "out" / "t.parquet"
    out.parent.mkdir()
    process = start("describe", many_clips, "--out", out, "--batch-size", 1)
    wait_until_answering(process, Path(environment["VIDQA_CACHE"]))
    os.killpg(process.pid, sign)  # as a terminal does, so decoder processes receive it as well
    stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    rows = read_table(out)
    assert 0 < len(rows) < 60
    assert set(rows["status"]) == {"ok"}
    assert no_leftovers(out.parent)
    rest = start("describe", many_clips, "--out", out, "--json")
    summary = json.loads(rest.communicate(timeout=TIMEOUT_S)[0])
    assert summary["existing"] == {"ok": len(rows)} and summary["rows"] == {"ok": 60 - len(rows)}


@POSIX
def test_a_killed_run_leaves_no_partial_table(start, many_clips, tmp_path, environment):
    out = tmp_path / "t.parquet"
    process = start("describe", many_clips, "--out", out, "--batch-size", 1)
    wait_until_answering(process, Path(environment["VIDQA_CACHE"]))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=TIMEOUT_S)
    assert not out.exists() or len(read_table(out)) >= 0
    again = start("describe", many_clips, "--out", out, "--json")
    stdout, stderr = again.communicate(timeout=TIMEOUT_S)
    assert again.returncode == 0, stderr
    done = json.loads(stdout)
    assert done["rows"]["ok"] + done["existing"].get("ok", 0) == 60  # on a slow machine, some rows were in a part file
    assert len(read_table(out)) == 60 and not (tmp_path / "t.parquet.parts").exists()


def test_a_concurrent_run_is_exit_4(start, vidqa, clips, tmp_path):
    table = tmp_path / "t.parquet"
    with FileLock(table):
        process = start("describe", clips, "--out", table)
        _, stderr = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 4
        assert f"process {os.getpid()}" in stderr
        assert vidqa("describe", clips, "--out", table).code == 4
        assert vidqa("describe", clips, "--out", tmp_path / "other.parquet").code == 0
    assert vidqa("describe", clips, "--out", table).code == 0


def test_no_media_is_exit_1(vidqa, tmp_path):
    (tmp_path / "empty").mkdir()
    done = vidqa("describe", tmp_path / "empty", "--out", tmp_path / "t.parquet")
    assert done.code == 1
    assert "no media" in done.err
    assert not (tmp_path / "t.parquet").exists()
    assert vidqa("describe", str(tmp_path / "*.mp4"), "--out", tmp_path / "t.parquet").code == 1


@pytest.mark.parametrize("out", ["t.xlsx", "t", "missing/folder/t.parquet"])
def test_an_invalid_table_name_is_exit_2_before_any_work(vidqa, clips, out):
    done = vidqa("describe", clips, "--out", out)
    assert done.code == 2, done.err
    assert "Traceback" not in done.err


def test_a_file_that_is_not_a_vidqa_table_is_not_overwritten(vidqa, clips, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("name,price\napple,3\n")
    done = vidqa("describe", clips, "--out", table)
    assert done.code == 1
    assert table.read_text() == "name,price\napple,3\n"
    assert "t.csv" in done.err


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root can write everywhere")
def test_folders_without_write_permission(vidqa, clips, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    done = vidqa("describe", clips, "--out", locked / "t.parquet")
    assert done.code == 1 and "ermission" in done.err
    done = vidqa("describe", clips, "--out", tmp_path / "t.parquet", "--cache-dir", locked / "cache")
    assert done.code == 1 and "cache" in done.err


def test_cache_folder_that_is_a_file(vidqa, clips, tmp_path):
    (tmp_path / "file").write_text("")
    done = vidqa("describe", clips, "--out", tmp_path / "t.parquet", "--cache-dir", tmp_path / "file")
    assert done.code == 1
    assert "cache" in done.err and "Traceback" not in done.err


def test_an_unavailable_device_is_exit_2(vidqa, clips, tmp_path):
    from vidqa.common.devices import available_devices

    if any(device.usable and device.name != "cpu" for device in available_devices()):
        pytest.skip("this machine has a GPU")
    done = vidqa("describe", clips, "--out", tmp_path / "t.parquet", "--device", "cuda")
    assert done.code == 2
    assert "CUDA" in done.err
    assert vidqa("describe", clips, "--out", tmp_path / "t.parquet", "--device", "tpu").code == 2


def test_missing_model(vidqa, clips, tmp_path):
    done = vidqa("describe", clips, "--out", tmp_path / "t.parquet", "--model", tmp_path / "nowhere")
    assert done.code == 1
    assert "nowhere" in done.err


def test_an_invalid_question_set_names_file_and_key(vidqa, clips, tmp_path):
    questions = tmp_path / "q.toml"
    questions.write_text('[[question]]\nid = "a"\ntext = "What?"\ncolour = "red"\n')
    done = vidqa("describe", clips, "--out", tmp_path / "t.parquet", "--questions", questions)
    assert done.code == 2
    assert "q.toml" in done.err and "colour" in done.err


def test_damaged_cache_entry_is_encoded_again(vidqa, clips, tmp_path, environment):
    vidqa("encode", clips)
    entries = sorted(Path(environment["VIDQA_CACHE"]).rglob("*.safetensors"))
    assert len(entries) == 3
    content = bytearray(entries[0].read_bytes())
    content[-1] ^= 0xFF
    entries[0].write_bytes(content)
    done = vidqa("describe", clips, "--out", tmp_path / "t.parquet", "--json")
    assert done.code == 0
    assert "damaged" in done.err and entries[0].name in done.err
    assert json.loads(done.out)["clips"] == {"done": 3, "cached": 2, "failed": 0}


@POSIX
def test_broken_pipe_of_a_process(start, clips):
    process = start("ask", clips, "What?", "--json")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    stderr = process.stderr.read()
    assert process.wait(timeout=TIMEOUT_S) == 141
    assert "Traceback" not in stderr and "BrokenPipe" not in stderr


@POSIX
@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "2>&-", ">&-"])
def test_started_without_standard_streams(clips, tmp_path, environment, closed):
    """Some services start processes this way. No other file may then receive what is written to stderr."""
    table = tmp_path / "t.csv"
    command = f'exec "$0" -m vidqa describe "$1" --out "$2" {closed}'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, str(clips), str(table)],
        capture_output=True,
        timeout=TIMEOUT_S,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    assert read_table(table)["status"].to_list() == ["ok"] * 3
