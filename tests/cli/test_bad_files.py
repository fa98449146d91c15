"""Bad files and bad machines: whatever they do, the run finishes and every file has its row."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import fault_hooks
import pytest
from PIL import Image

from vidqa.pipeline.run import hashing, prefetch, rows
from vidqa.records import MediaItem
from vidqa.tables.formats import read_table

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and permissions")]

#: Seconds per file: good files must not time out on a busy machine.
TIMEOUT_S = 20


def outcome(table: Path) -> dict[str, str]:
    """Return the error kind, or else the status, of each file, which has one row."""
    found = read_table(table).to_dicts()
    assert len(found) == len({row["path"] for row in found})
    assert all(bool(row["answer"]) == (row["status"] == "ok") for row in found)
    return {row["path"]: row["error_kind"] or row["status"] for row in found}


def long_clip(path: Path, seconds: list[float]) -> None:
    """Write a Matroska video with frames at these seconds."""
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for second in seconds:
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), len(seconds), np.uint8), format="rgb24")
            frame.pts = round(second * 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_decoders_that_crash_hang_or_exhaust_memory_cost_one_row(vidqa, make_clip, tmp_path, monkeypatch):
    monkeypatch.setattr(prefetch, "preprocess", fault_hooks.faulty_preprocess)
    folder = tmp_path / "clips"
    for name in ("SEGFAULT", "OOM_KILLED", "HANGS", "GREEDY"):
        make_clip(folder / f"{name.lower()}.mp4", size=getattr(fault_hooks, name))
    make_clip(folder / "good.mp4")
    make_clip(folder / "one_frame.mp4", seed=1, n_frames=1)
    long_clip(folder / "ten_hours.mkv", [0.0, 1.0, 18000.0, 35999.0])
    long_clip(folder / "no_time.mkv", [0.0])
    Image.new("1", (16384, 16384)).save(folder / "16k.png")
    table = tmp_path / "t.parquet"
    done = vidqa("describe", folder, "--out", table, "--timeout", TIMEOUT_S, "--json")
    assert done.code == 3, done.err
    assert outcome(table) == {
        "segfault.mp4": "crashed",
        "oom_killed.mp4": "crashed",
        "hangs.mp4": "timeout",
        "greedy.mp4": "out_of_memory",
        "good.mp4": "ok",
        "one_frame.mp4": "ok",
        "ten_hours.mkv": "ok",
        "no_time.mkv": "ok",
        "16k.png": "too_large",
    }
    errors = {row["path"]: row["error"] for row in read_table(table).to_dicts()}
    assert (
        "SIGSEGV" in errors["segfault.mp4"]
        and "SIGKILL, probably because the system ran out of memory" in errors["oom_killed.mp4"]
    )
    facts = {row["path"]: row["duration_s"] for row in read_table(table).to_dicts()}
    assert facts["ten_hours.mkv"] == pytest.approx(36000, abs=2) and (facts["no_time.mkv"] or 0) < 1
    assert json.loads(done.out)["errors"] == {"crashed": 2, "timeout": 1, "out_of_memory": 1, "too_large": 1}


def test_containers_that_crash_the_process_that_opens_them(vidqa, make_clip, tmp_path, monkeypatch):
    """Neither the dry run nor the scan opens an unknown file in the main process."""
    monkeypatch.setattr("vidqa.media.probe.has_video_stream", fault_hooks.faulty_has_video_stream)
    monkeypatch.setattr("vidqa.pipeline.dry_run.probe", fault_hooks.faulty_probe)
    monkeypatch.setattr(prefetch, "preprocess", fault_hooks.faulty_preprocess)
    folder, table = tmp_path / "clips", tmp_path / "t.parquet"
    make_clip(folder / "segfault.mp4", size=fault_hooks.SEGFAULT)
    (folder / "duplicate_of_segfault.mp4").write_bytes((folder / "segfault.mp4").read_bytes())
    make_clip(folder / "good.mp4")
    unknown = bytes(range(1, 256)) * 20  # neither text nor any container
    (folder / "segfault.bin").write_bytes(unknown)
    (folder / "harmless.bin").write_bytes(unknown)
    planned = vidqa("describe", folder, "--out", table, "--segment", 0.5, "--dry-run", "--json")
    assert planned.code == 0, planned.err
    plan = json.loads(planned.out)
    assert plan["ignored"] == {"crashed when probed": 1, "not media": 1}
    assert (plan["files"], plan["files_to_do"], plan["files_complete"], plan["files_unreadable"]) == (3, 2, 0, 1)
    done = vidqa("describe", folder, "--out", table, "--segment", 0.5, "--json")
    assert done.code == 3, done.err
    made = json.loads(done.out)
    assert made["ignored"] == plan["ignored"] and sum(made["rows"].values()) == plan["new_rows"] == 5
    assert {row["path"]: row["error_kind"] for row in read_table(table).to_dicts()} == {
        "segfault.mp4": "crashed",
        "duplicate_of_segfault.mp4": "crashed",
        "good.mp4": None,
    }


@pytest.fixture
def tamper(monkeypatch) -> Callable[[dict[str, Callable[[Path], object]]], None]:
    """`tamper({name: action})`: change a file after it was hashed and before it is decoded."""

    def with_acts(acts: dict[str, Callable[[Path], object]]) -> None:
        identify = hashing.identify

        def identify_and_act(index: object, item: MediaItem) -> tuple[MediaItem, str]:
            found = identify(index, item)  # type: ignore[arg-type]
            acts.pop(item.rel, lambda path: None)(Path(item.path))
            return found

        monkeypatch.setattr(hashing, "identify", identify_and_act)

    return with_acts


def test_files_that_change_while_they_are_read(vidqa, make_clip, tmp_path, tamper, environment):
    folder, table = tmp_path / "clips", tmp_path / "t.parquet"
    for i, name in enumerate(("good", "grows", "is_replaced", "vanishes")):
        make_clip(folder / f"{name}.mp4", seed=i)
    other = make_clip(tmp_path / "other.mp4", seed=9)
    tamper(
        {
            "grows.mp4": lambda path: path.open("ab").write(b"more to come"),
            "is_replaced.mp4": lambda path: os.replace(other, path),
            "vanishes.mp4": lambda path: path.unlink(),
        }
    )
    assert vidqa("describe", folder, "--out", table).code == 3
    assert outcome(table) == {
        "good.mp4": "ok",
        "grows.mp4": "changed",
        "is_replaced.mp4": "changed",
        "vanishes.mp4": "missing",
    }
    entries = list(Path(environment["VIDQA_CACHE"]).rglob("*.safetensors"))
    assert len(entries) == 1, "features must not be stored under the media_id of other content"
    assert vidqa("describe", folder, "--out", table).code == 0
    assert outcome(table) == {
        "good.mp4": "ok",
        "grows.mp4": "ok",
        "is_replaced.mp4": "ok",
        "vanishes.mp4": "missing",  # it is not found any more; its row is kept
    }


def test_files_that_changed_since_the_scan(make_clip, tmp_path):
    """A file that was scanned hours ago is hashed as it is now."""
    from vidqa.cache.media_index import MediaIndex
    from vidqa.media.scan import scan
    from vidqa.pipeline.run.hashing import identify

    make_clip(tmp_path / "clips" / "a.mp4")
    (item,) = scan([str(tmp_path / "clips")]).items
    index = MediaIndex(tmp_path / "cache")
    assert identify(index, item)[0] == item
    make_clip(tmp_path / "clips" / "a.mp4", seed=5, n_frames=20)
    now, media_id = identify(index, replace(item, size=1))
    assert now.size == os.path.getsize(item.path) and now.mtime_ns == os.stat(item.path).st_mtime_ns
    assert media_id == identify(index, now)[1]
    index.close()


def test_permission_denied_is_a_row(vidqa, make_clip, tmp_path, monkeypatch):
    folder, table = tmp_path / "clips", tmp_path / "t.parquet"
    secret = make_clip(folder / "secret.mp4")
    secret.chmod(0)
    identify = hashing.identify

    def as_another_user(index: object, item: MediaItem) -> tuple[MediaItem, str]:
        if os.geteuid() != 0:
            return identify(index, item)  # type: ignore[arg-type]
        os.seteuid(65534)  # root can read everything
        try:
            return identify(index, item)  # type: ignore[arg-type]
        finally:
            os.seteuid(0)

    monkeypatch.setattr(hashing, "identify", as_another_user)
    assert vidqa("describe", folder, "--out", table).code == 3
    assert outcome(table) == {"secret.mp4": "permission"}
    monkeypatch.setattr(hashing, "identify", identify)
    secret.chmod(0o644)
    assert vidqa("describe", folder, "--out", table).code == 0
    assert outcome(table) == {"secret.mp4": "ok"}


def test_a_read_only_archive_is_not_modified(vidqa, clips, tmp_path):
    def state() -> dict[str, tuple[int, int]]:
        return {str(p): (p.stat().st_mtime_ns, p.stat().st_mode) for p in [clips, *clips.rglob("*")]}

    for path in [*clips.rglob("*"), clips]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = state()
    assert vidqa("describe", clips, "--out", tmp_path / "t.parquet").code == 0
    assert state() == before
    for path in [clips, *clips.rglob("*")]:
        path.chmod(0o755)


def test_an_archive_on_a_read_only_disk(vidqa, clips, small_disk, mount, tmp_path):
    shutil.copytree(clips, small_disk / "clips")
    mount("-o", "remount,ro", str(small_disk))
    done = vidqa("describe", small_disk / "clips", "--out", tmp_path / "t.parquet")
    assert done.code == 0, done.err
    assert outcome(tmp_path / "t.parquet") == {"a.mp4": "ok", "b.mp4": "ok", "deeper/c.mp4": "ok"}


def test_a_gpu_that_runs_out_of_memory_during_the_run(vidqa, clips, tmp_path, monkeypatch):
    """The provider runs out of memory for batches of two: the batch is halved, and no row fails."""
    from vidqa.encoders.onnx_errors import as_memory_error
    from vidqa.encoders.onnx_session import OnnxSession

    honest, refused = OnnxSession.run, []

    def full(self, batch):
        with as_memory_error():
            if len(batch) > 1:
                refused.append(len(batch))
                raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 2: out of memory ; GPU=0")
            return honest(self, batch)

    monkeypatch.setattr(OnnxSession, "run", full)
    done = vidqa("describe", clips, "--out", tmp_path / "t.parquet")
    assert done.code == 0, done.err
    assert set(outcome(tmp_path / "t.parquet").values()) == {"ok"}
    assert refused and "out of memory; batch size is now 1" in done.err


def test_setting_the_clock_back_changes_no_row(vidqa, clips, tmp_path, monkeypatch, make_clip):
    table = tmp_path / "t.parquet"
    (clips / "text.mp4").write_text("not a video")
    assert vidqa("describe", clips, "--out", table).code == 3

    class Long_ago(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(1999, 12, 31, tzinfo=UTC)

    monkeypatch.setattr(rows, "datetime", Long_ago)
    monkeypatch.setattr(time, "time", lambda: 946600000.0)
    monkeypatch.setattr(time, "time_ns", lambda: 946600000 * 10**9)
    make_clip(clips / "new.mp4", seed=7)
    done = json.loads(vidqa("describe", clips, "--out", table, "--retry", "failed", "--json").out)
    assert done["rows"] == {"ok": 1, "failed": 1} and done["existing"] == {"ok": 3}
    runs = json.loads((tmp_path / "t.parquet.failures.json").read_text())["failures"]
    assert [run["n_failed"] for run in runs] == [2]
    monkeypatch.undo()
