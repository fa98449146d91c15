"""Long videos and many questions: rows are durable one by one, and a run that ends in the middle is resumed there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fault_hooks
import polars as pl
import pytest

from vidqa.encoders.preprocess import preprocess
from vidqa.pipeline.run import prefetch
from vidqa.tables.formats import read_table

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")]

TIMEOUT_S = 280
#: Runs `vidqa` with parts of few rows and a slow LLM.
SLOW = """
import sys, time
from vidqa.generate.engine import Engine
from vidqa.pipeline.run import bookkeeping
bookkeeping.COMMIT_ROWS = 3
step = Engine.step
def slow_step(self):
    time.sleep(0.05)
    return step(self)
Engine.step = slow_step
from vidqa.cli.main import entry
entry()
"""


@pytest.fixture
def start_slow(environment: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started = []

    def call(*arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", SLOW, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    yield call
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture(params=["one long video", "many questions"])
def work(request: pytest.FixtureRequest, tmp_path: Path, make_clip: Callable[..., Path]) -> tuple[list[object], int]:
    """Arguments of a run and its number of rows: a video of 24 windows, or a short one with 24 questions."""
    clips = tmp_path / "clips"
    if request.param == "one long video":
        make_clip(clips / "long.mp4", n_frames=120)
        return [clips, "--segment", 0.5, "--batch-size", 1], 24
    make_clip(clips / "short.mp4")
    questions = tmp_path / "q.toml"
    questions.write_text("".join(f'[[question]]\nid = "q{i}"\ntext = "Is {i} in it?"\n' for i in range(24)))
    return [clips, "--questions", questions, "--batch-size", 1], 24


def rows(table: Path) -> pl.DataFrame:
    return read_table(table).drop("created_at").sort("path", "question_id", "start_s")


def parts_of(table: Path) -> Path:
    return table.with_name(table.name + ".parts")


def wait_for_parts(process: subprocess.Popen[str], table: Path, n_parts: int) -> None:
    for _ in range(10 * TIMEOUT_S):
        if len(list(parts_of(table).glob("0*.parquet"))) >= n_parts:
            return
        assert process.poll() is None, "the run ended before it was interrupted"
        time.sleep(0.05)
    raise AssertionError("no rows reach the disk before the file is finished")


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_killed_run_is_resumed_in_the_middle_of_a_file(start_slow, vidqa, work, tmp_path, suffix) -> None:
    arguments, total = work
    table, whole = tmp_path / f"t{suffix}", tmp_path / f"whole{suffix}"
    for is_second in (False, True):
        process = start_slow("describe", *arguments, "--out", table)
        while is_second and (
            not table.exists() or parts_of(table).exists()
        ):  # until the first run's rows are recovered
            assert process.poll() is None
            time.sleep(0.01)
        wait_for_parts(process, table, 2)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=TIMEOUT_S)
    plan = json.loads(vidqa("describe", *arguments, "--out", table, "--dry-run", "--json").out)
    assert plan["existing_rows"] >= 12 and plan["new_rows"] == total - plan["existing_rows"] > 0
    done = vidqa("describe", *arguments, "--out", table, "--json")
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert summary["existing"] == {"ok": plan["existing_rows"]} and summary["rows"] == {"ok": plan["new_rows"]}
    assert vidqa("describe", *arguments, "--out", whole).code == 0
    assert rows(table).equals(rows(whole)) and len(rows(table)) == total
    assert "nothing to do" in vidqa("describe", *arguments, "--out", table).err


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_middle_of_a_file(start_slow, vidqa, work, tmp_path, signum, code) -> None:
    arguments, total = work
    table = tmp_path / "t.parquet"
    process = start_slow("describe", *arguments, "--out", table)
    wait_for_parts(process, table, 1)
    os.killpg(process.pid, signum)
    _, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr and not parts_of(table).exists()
    first = rows(table)
    assert 3 <= len(first) < total and set(first["status"]) == {"ok"}
    done = json.loads(vidqa("describe", *arguments, "--out", table, "--json").out)
    assert done["rows"] == {"ok": total - len(first)} and done["existing"] == {"ok": len(first)}
    assert rows(table).select("start_s", "question").n_unique() == len(rows(table)) == total


def test_duplicates_of_an_interrupted_file_are_complete_in_the_end(start_slow, vidqa, tmp_path, make_clip) -> None:
    clips, table = tmp_path / "clips", tmp_path / "t.parquet"
    make_clip(clips / "b.mp4", n_frames=60)
    process = start_slow("describe", clips, "--segment", 0.5, "--batch-size", 1, "--out", table)
    wait_for_parts(process, table, 1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=TIMEOUT_S)
    (clips / "b.mp4").rename(clips / "c.mp4")
    for name in ("a.mp4", "d.mp4"):
        (clips / name).write_bytes((clips / "c.mp4").read_bytes())
    done = json.loads(vidqa("describe", clips, "--segment", 0.5, "--out", table, "--json").out)
    assert done["clips"]["done"] == 1 and done["renamed"] == 1, "the work is done once"
    found = rows(table)
    assert found.group_by("path").len().sort("path").rows() == [("a.mp4", 12), ("c.mp4", 12), ("d.mp4", 12)]
    assert found.select("path", "start_s").n_unique() == 36
    assert "nothing to do" in vidqa("describe", clips, "--segment", 0.5, "--out", table).err


def test_segments_after_a_hang_fail_and_a_retry_answers_only_those(vidqa, tmp_path, make_clip, monkeypatch) -> None:
    clips, table = tmp_path / "clips", tmp_path / "t.parquet"
    make_clip(clips / "long.mp4", n_frames=40)
    make_clip(clips / "other.mp4")
    arguments = ("describe", clips, "--segment", 1, "--out", table, "--json")
    monkeypatch.setattr(prefetch, "preprocess", fault_hooks.hang_after_two_seconds)
    done = vidqa(*arguments, "--timeout", 5)
    assert done.code == 3
    summary = json.loads(done.out)
    assert summary["rows"] == {"ok": 4, "failed": 2} and summary["errors"] == {"timeout": 2}
    assert summary["clips"] == {"done": 2, "cached": 0, "failed": 1}
    found = rows(table).filter(pl.col("path") == "long.mp4")
    assert found["start_s"].to_list() == [0.0, 1.0, 2.0, 3.0] and found["end_s"].to_list() == [1.0, 2.0, 3.0, 4.0]
    assert found["status"].to_list() == ["ok", "ok", "failed", "failed"] and set(found["n_segments"]) == {4}
    again = json.loads(vidqa(*arguments).out)
    assert again["rows"] == {} and again["existing"] == {"ok": 4, "failed": 2}
    monkeypatch.setattr(prefetch, "preprocess", preprocess)
    retried = json.loads(vidqa(*arguments, "--retry", "failed").out)
    assert retried["rows"] == {"ok": 2} and retried["existing"] == {"ok": 4}
    assert not table.with_name("t.parquet.failures.json").exists()
    assert rows(table)["status"].to_list() == ["ok"] * 6
