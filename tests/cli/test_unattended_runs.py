"""Scheduled runs: retries, signals, locks, concurrent runs, the event log, metrics and the dry run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from vidqa.errors import MediaError
from vidqa.pipeline.monitor.reporter import StageClock
from vidqa.pipeline.run import hashing, retry_policy
from vidqa.tables.formats import read_table

TIMEOUT_S = 280
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@pytest.fixture
def default_sigint():
    """Restore the handling of Ctrl-C, which a shell script disables for tests that it runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def statuses(table: Path) -> dict[str, str]:
    if not table.exists():
        return {}
    return {row["path"]: row["status"] for row in read_table(table).to_dicts()}


@pytest.mark.slow
def test_three_failed_runs_lead_to_quarantine_until_the_file_changes(vidqa, tmp_path, make_clip, monkeypatch):
    monkeypatch.setattr(retry_policy, "BACK_OFF", (2,))  # the true pauses: tests/pipeline/run/test_retry_policy.py
    folder, table, questions = tmp_path / "clips", tmp_path / "t.parquet", tmp_path / "q.toml"
    make_clip(folder / "a.mp4")
    questions.write_text(f'[[question]]\nid = "long"\ntext = "{"why " * 800}"\n')  # more than the model can take

    def run(*options: str) -> dict:
        asked = ("--questions", "caption", "--questions", questions)
        done = vidqa("describe", folder, "--out", table, "--json", *asked, *options)
        assert done.code == 3, done.err
        return json.loads(done.out) | {"stderr": done.err}

    first = run()
    assert first["rows"] == {"ok": 1, "failed": 1} and "1 failed (1 of them new)" in first["line"]
    assert run()["rows"] == {}, "without --retry a failed row is not tried again"
    for _ in range(2):
        again = run("--retry", "failed")
        assert again["rows"] == {"failed": 1} and again["failed_again"] == 1
        assert "1 failed (0 of them new)" in again["line"] and "had failed before" in again["stderr"]
    for _ in range(2):
        resting = run("--retry", "failed")
        assert resting["rows"] == {} and resting["quarantined"] == [str(folder / "a.mp4")]
        assert "--retry failed tries" not in resting["stderr"] and "bottleneck" not in resting["stderr"]
    assert all(part in resting["stderr"] for part in ("quarantined: 1 file", "a.mp4", "--retry all"))
    assert run("--retry", "failed")["rows"] == {"failed": 1}, "after a pause it is tried again"
    assert run("--retry", "failed")["quarantined"]
    assert run("--retry", "all")["rows"] == {"failed": 1}
    make_clip(folder / "a.mp4", seed=3)
    changed = run("--retry", "failed")
    assert changed["rows"] == {"ok": 1, "failed": 1}, "new content starts from zero"
    assert changed["failed_again"] == 0


def test_an_unreadable_file_is_new_once_and_the_line_names_the_dataset(vidqa, make_clip, tmp_path, monkeypatch):
    make_clip(tmp_path / "a.mp4")

    def unreadable(index, item):
        raise MediaError("permission", "Permission denied")

    monkeypatch.setattr(hashing, "identify", unreadable)
    for news in (1, 0):
        done = vidqa("describe", tmp_path / "a.mp4", "--out", f"{tmp_path}/set/")
        assert done.code == 3
        line = done.err.splitlines()[-1]
        assert line.startswith(f"vidqa: set: 1 new row, 1 failed ({news} of them new); 1 file in "), line


def test_duplicates_that_fail_again_are_not_new(vidqa, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.mp4").write_text("not a video")
    for news in (2, 0):
        done = vidqa("describe", tmp_path / "*.mp4", "--out", tmp_path / "t.csv", "--retry", "failed", "--json")
        summary = json.loads(done.out)
        assert summary["rows"] == {"failed": 2} and summary["failed_again"] == 2 - news
        assert f"2 failed ({news} of them new)" in summary["line"] and "throughput:" not in done.err


def test_rows_of_removed_files_are_kept_without_prune_missing(vidqa, clips, tmp_path):
    table = tmp_path / "t.parquet"
    assert vidqa("describe", clips, "--out", table).code == 0
    (clips / "a.mp4").unlink()
    (clips / "b.mp4").rename(clips / "z.mp4")
    (clips / "deeper" / "c.mp4").unlink()  # leaves an empty folder, like an unmounted disk
    deeper = str(Path("deeper", "c.mp4"))
    assert vidqa("describe", clips, "--out", table).code == 0
    assert set(statuses(table)) == {"a.mp4", "z.mp4", deeper}
    plan = json.loads(vidqa("describe", clips, "--out", table, "--prune-missing", "--dry-run", "--json").out)
    assert plan["files_pruned"] == 1 and len(statuses(table)) == 3
    done = vidqa("describe", clips, "--out", table, "--prune-missing")
    assert done.code == 0 and "dropped rows: 1 removed or replaced file" in done.err
    assert set(statuses(table)) == {"z.mp4", deeper}


@POSIX
@pytest.mark.parametrize(
    ("signum", "code", "stage"),
    [(signal.SIGINT, 130, "generate"), (signal.SIGTERM, 143, "generate"), (signal.SIGTERM, 143, "encode")],
)
@pytest.mark.slow
def test_a_signal_during_a_batch_waits_for_it(
    vidqa, make_clip, tmp_path, monkeypatch, default_sigint, signum, code, stage
):
    """Answers are in the table and features in the cache: nothing that was computed is lost."""
    for i in range(6):
        make_clip(tmp_path / "clips" / f"{i}.mp4", seed=i)
    enter, table = StageClock.stage, tmp_path / "t.parquet"

    @contextmanager
    def with_signal(self, name):
        with enter(self, name):
            if name == stage:
                os.kill(os.getpid(), signum)
                time.sleep(0.01)
            yield

    monkeypatch.setattr(StageClock, "stage", with_signal)
    options = ("--out", table, "--batch-size", 2, "--log", "a.log", "--metrics", "v.prom")
    done = vidqa("describe", tmp_path / "clips", *options)
    assert done.code == code, done.err
    assert "stopping after the current batch" in done.err
    found = list(statuses(table).values())
    assert set(found) <= {"ok"}, "how many answers were running depends on the timing"
    if stage == "encode":
        assert list((tmp_path / "cache").rglob("*.safetensors"))
    last = (tmp_path / "a.log").read_text().splitlines()[-1].split("\t")
    assert last[1:3] == ["run", {130: "interrupted", 143: "terminated"}[code]]
    assert f'vidqa_run_exit_code{{table="{table}"}} {code}\n' in (tmp_path / "v.prom").read_text()
    monkeypatch.setattr(StageClock, "stage", enter)
    rest = json.loads(vidqa("describe", tmp_path / "clips", "--out", table, "--json").out)
    assert rest["rows"] == ({"ok": 6 - len(found)} if len(found) < 6 else {})


@pytest.mark.slow
@POSIX
def test_the_second_signal_does_not_wait_for_a_stuck_batch(clips, tmp_path, environment):
    code = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from vidqa.encoders.encoder import Encoder\n"
        "def stuck(self, inputs):\n"
        "    for _ in range(2):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.sleep(0.1)\n"
        "    time.sleep(600)\n"
        "Encoder.encode = stuck\n"
        "from vidqa.cli.main import run\n"
        "sys.exit(run(sys.argv[1:]))\n"
    )
    table = tmp_path / "t.parquet"
    done = subprocess.run(
        [sys.executable, "-c", code, "describe", str(clips), "--out", str(table)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env=os.environ | environment,
    )
    assert done.returncode == 130, done.stderr
    assert "again to exit at once" in done.stderr and "exiting at once" in done.stderr
    assert not table.exists() or len(read_table(table)) == 0


@POSIX
def test_a_stale_lock_is_removed_and_reported(vidqa, clips, tmp_path):
    table = tmp_path / "t.parquet"
    code = (
        "import os, signal, sys; from vidqa.common.file_lock import FileLock\n"
        "FileLock(sys.argv[1]).__enter__(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    dead = subprocess.run([sys.executable, "-c", code, str(table)], timeout=TIMEOUT_S)
    assert dead.returncode == -signal.SIGKILL
    done = vidqa("describe", clips, "--out", table, "--log", "a.log")
    assert done.code == 0
    assert "removed a stale lock" in done.err and "process" in done.err
    assert "removed a stale lock" in (tmp_path / "a.log").read_text()
    assert "stale lock" not in vidqa("describe", clips, "--out", table).err


@pytest.mark.slow
def test_two_runs_with_two_tables_share_the_cache(start, make_clip, tmp_path, environment):
    for i in range(6):
        make_clip(tmp_path / "clips" / f"{i}.mp4", seed=i)
    tables = [tmp_path / "a.parquet", tmp_path / "b.csv"]
    runs = [start("describe", tmp_path / "clips", "--out", table, "--batch-size", 1) for table in tables]
    for run in runs:
        _, stderr = run.communicate(timeout=TIMEOUT_S)
        assert run.returncode == 0, stderr
        assert "warning" not in stderr
    assert [set(statuses(table).values()) for table in tables] == [{"ok"}, {"ok"}]
    assert [len(read_table(table)) for table in tables] == [6, 6]
    cache = Path(environment["VIDQA_CACHE"])
    assert len(list(cache.rglob("*.safetensors"))) == 6 and not list(cache.rglob("*.part"))


def test_log_metrics_and_summary_line(vidqa, clips, tmp_path):
    (clips / "bad.mp4").write_text("not a video")
    (clips / "notes.txt").write_text("ignored")
    table = tmp_path / "t.parquet"
    options = ("--out", table, "--log", "a.log", "--metrics", "vidqa.prom")
    done = vidqa("describe", clips, *options, "-q")
    assert (done.code, done.out, done.err) == (3, "", "")
    events = [line.split("\t") for line in (tmp_path / "a.log").read_text().splitlines()]
    assert all(len(event) == 6 for event in events)
    stages = [(stage, result) for _, stage, result, *_ in events]
    assert stages[0] == ("run", "started") and stages[-1] == ("run", "items failed")
    assert stages.count(("decode", "ok")) == stages.count(("answer", "ok")) == 3
    assert {("scan", "ok"), ("scan", "ignored"), ("decode", "failed"), ("write", "ok")} <= set(stages)
    by_media = {os.path.basename(event[4]): event for event in events if event[1] == "decode"}
    assert by_media["bad.mp4"][5].startswith("not_media: ") and float(by_media["a.mp4"][3]) > 0
    subject = events[-1][5]
    assert subject.startswith("vidqa: t.parquet: 4 new rows, 1 failed (1 of them new); 4 files in ")
    assert len(subject) < 100 and subject.isascii()
    found = {
        (sample.name, *list(sample.labels.values())[1:]): sample.value
        for family in text_string_to_metric_families((tmp_path / "vidqa.prom").read_text())
        for sample in family.samples
    }
    assert found["vidqa_run_exit_code",] == 3 and found["vidqa_rows", "ok", "new"] == 3
    assert found["vidqa_errors", "not_media"] == 1
    done = vidqa("describe", clips, *options, "--log-json")
    assert done.err.splitlines()[-1].startswith("vidqa: t.parquet: 0 new rows, 4 existing, 1 failed")
    last = json.loads((tmp_path / "a.log").read_text().splitlines()[-1])
    assert last["stage"] == "run" and last["outcome"] == "items failed"
    done = vidqa("describe", tmp_path / "nothing*.mp4", *options)
    assert done.code == 1
    assert f'vidqa_run_exit_code{{table="{table}"}} 1\n' in (tmp_path / "vidqa.prom").read_text()


def test_events_on_stderr(vidqa, clips, tmp_path):
    done = vidqa("describe", clips / "a.mp4", "--out", tmp_path / "t.csv", "-q", "--log-json")
    assert done.out == ""
    assert [json.loads(line)["stage"] for line in done.err.splitlines()] == [
        *("run", "scan", "decode", "answer", "write", "run")
    ]


@pytest.mark.slow
def test_the_dry_run_estimates_disk_and_time(vidqa, clips, tmp_path, make_clip):
    table = tmp_path / "t.parquet"
    (clips / "duplicate.mp4").write_bytes((clips / "a.mp4").read_bytes())
    done = vidqa("describe", clips, "--out", table, "--dry-run")
    assert "time: unknown" in done.out and "disk: cache" in done.out and "4 files: 0 complete, 3 to do" in done.out
    assert not table.exists()
    plan = json.loads(vidqa("describe", clips, "--out", table, "--dry-run", "--json").out)
    assert plan["seconds"] is None and plan["enough_disk"] and plan["cache_bytes_free"] > 0
    assert plan["new_rows"] == 4 and plan["segments_to_encode"] == 3
    assert plan["frames_to_encode"] > 3 and not plan["roughly"]
    assert vidqa("describe", clips, "--out", table).code == 0
    entries = [path.stat().st_size for path in (tmp_path / "cache").rglob("*.safetensors")]
    assert sum(entries) <= plan["cache_bytes_needed"] < sum(entries) + 4000
    make_clip(clips / "new.mp4", seed=8)
    plan = json.loads(vidqa("describe", clips, "--out", table, "--dry-run", "--json").out)
    assert (plan["files"], plan["files_complete"], plan["files_to_do"], plan["new_rows"]) == (5, 4, 1, 1)
    assert 0 < plan["seconds"] < 600 and plan["measured_runs"] == 1
    assert plan["table_bytes_needed"] > table.stat().st_size
    done = vidqa("describe", clips, "--out", table, "--dry-run")
    assert "time: about" in done.out and "estimated from 1 earlier run on this machine" in done.out
