"""Bad weather, each on the real thing: whatever a file or the machine does, the run ends and every file has its row."""

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

import pytest
import weather_hooks
from PIL import Image

from vidqa.pipeline.run import hashing, prefetch, rows
from vidqa.records import MediaItem
from vidqa.tables.formats import read_table

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and rights of POSIX")

#: Seconds for one file: a busy machine must not make a timeout of a good one.
LIMIT_S = 20


def outcome(table: Path) -> dict[str, str]:
    """File -> error kind, or status where it did not fail. One row a file."""
    found = read_table(table).to_dicts()
    assert len(found) == len({row["path"] for row in found})
    assert all(bool(row["answer"]) == (row["status"] == "ok") for row in found)
    return {row["path"]: row["error_kind"] or row["status"] for row in found}


def long_clip(path: Path, seconds: list[float]) -> None:
    """A Matroska clip whose pictures begin at these seconds."""
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


def test_decoders_that_die_hang_or_want_everything(vidqa, make_clip, tmp_path, monkeypatch):
    monkeypatch.setattr(prefetch, "preprocess", weather_hooks.strike)
    folder = tmp_path / "clips"
    for name in ("SEGFAULT", "OOM_KILLED", "HANGS", "GREEDY"):
        make_clip(folder / f"{name.lower()}.mp4", size=getattr(weather_hooks, name))
    make_clip(folder / "good.mp4")
    make_clip(folder / "one_frame.mp4", seed=1, n_frames=1)
    long_clip(folder / "ten_hours.mkv", [0.0, 1.0, 18000.0, 35999.0])
    long_clip(folder / "no_time.mkv", [0.0])
    Image.new("1", (16384, 16384)).save(folder / "16k.png")
    table = tmp_path / "t.parquet"
    done = vidqa("describe", folder, "--out", table, "--timeout", LIMIT_S, "--json")
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
    said = {row["path"]: row["error"] for row in read_table(table).to_dicts()}
    assert "SIGSEGV" in said["segfault.mp4"] and "SIGKILL, as the system does when memory" in said["oom_killed.mp4"]
    facts = {row["path"]: row["duration_s"] for row in read_table(table).to_dicts()}
    assert facts["ten_hours.mkv"] == pytest.approx(36000, abs=2) and (facts["no_time.mkv"] or 0) < 1
    assert json.loads(done.out)["errors"] == {"crashed": 2, "timeout": 1, "out_of_memory": 1, "too_large": 1}


def test_containers_that_kill_whoever_opens_them(vidqa, make_clip, tmp_path, monkeypatch):
    """Neither the plan nor the scan opens a strange file in the run's own process."""
    monkeypatch.setattr("vidqa.media.probe.has_video_stream", weather_hooks.strike_look)
    monkeypatch.setattr("vidqa.pipeline.dry_run.probe", weather_hooks.strike_probe)
    monkeypatch.setattr(prefetch, "preprocess", weather_hooks.strike)
    folder, table = tmp_path / "clips", tmp_path / "t.parquet"
    make_clip(folder / "segfault.mp4", size=weather_hooks.SEGFAULT)
    (folder / "twin_of_segfault.mp4").write_bytes((folder / "segfault.mp4").read_bytes())
    make_clip(folder / "good.mp4")
    unknown = bytes(range(1, 256)) * 20  # neither text nor any container
    (folder / "segfault.bin").write_bytes(unknown)
    (folder / "harmless.bin").write_bytes(unknown)
    planned = vidqa("describe", folder, "--out", table, "--segment", 0.5, "--dry-run", "--json")
    assert planned.code == 0, planned.err
    plan = json.loads(planned.out)
    assert plan["left_out"] == {"crashed when probed": 1, "not media": 1}
    assert (plan["files"], plan["files_to_do"], plan["files_known"], plan["files_unreadable"]) == (3, 2, 0, 1)
    done = vidqa("describe", folder, "--out", table, "--segment", 0.5, "--json")
    assert done.code == 3, done.err
    made = json.loads(done.out)
    assert made["left_out"] == plan["left_out"] and sum(made["rows"].values()) == plan["new_rows"] == 5
    assert {row["path"]: row["error_kind"] for row in read_table(table).to_dicts()} == {
        "segfault.mp4": "crashed",
        "twin_of_segfault.mp4": "crashed",
        "good.mp4": None,
    }


@pytest.fixture
def meddle(monkeypatch) -> Callable[[dict[str, Callable[[Path], object]]], None]:
    """`meddle({name: act})`: act on a file after its content was named, and before it is decoded."""

    def with_acts(acts: dict[str, Callable[[Path], object]]) -> None:
        identify = hashing.identify

        def meddled(index: object, item: MediaItem) -> tuple[MediaItem, str]:
            found = identify(index, item)  # type: ignore[arg-type]
            acts.pop(item.rel, lambda path: None)(Path(item.path))
            return found

        monkeypatch.setattr(hashing, "identify", meddled)

    return with_acts


def test_files_that_change_under_the_reader(vidqa, make_clip, tmp_path, meddle, surroundings):
    folder, table = tmp_path / "clips", tmp_path / "t.parquet"
    for i, name in enumerate(("good", "grows", "is_replaced", "vanishes")):
        make_clip(folder / f"{name}.mp4", seed=i)
    other = make_clip(tmp_path / "other.mp4", seed=9)
    meddle(
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
    entries = list(Path(surroundings["VIDQA_CACHE"]).rglob("*.safetensors"))
    assert len(entries) == 1, "features of one content must not stand under the name of another"
    assert vidqa("describe", folder, "--out", table).code == 0
    assert outcome(table) == {
        "good.mp4": "ok",
        "grows.mp4": "ok",
        "is_replaced.mp4": "ok",
        "vanishes.mp4": "missing",  # what is not there is not asked for; its row stays
    }


def test_a_scan_of_long_ago(make_clip, tmp_path):
    """What was found hours before is read as it is now, under the name of what it is now."""
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

    def as_somebody_else(index: object, item: MediaItem) -> tuple[MediaItem, str]:
        if os.geteuid() != 0:
            return identify(index, item)  # type: ignore[arg-type]
        os.seteuid(65534)  # root may read everything
        try:
            return identify(index, item)  # type: ignore[arg-type]
        finally:
            os.seteuid(0)

    monkeypatch.setattr(hashing, "identify", as_somebody_else)
    assert vidqa("describe", folder, "--out", table).code == 3
    assert outcome(table) == {"secret.mp4": "permission"}
    monkeypatch.setattr(hashing, "identify", identify)
    secret.chmod(0o644)
    assert vidqa("describe", folder, "--out", table).code == 0
    assert outcome(table) == {"secret.mp4": "ok"}


def test_a_source_that_may_only_be_read_is_left_as_it_is(vidqa, clips, tmp_path):
    def state() -> dict[str, tuple[int, int]]:
        return {str(p): (p.stat().st_mtime_ns, p.stat().st_mode) for p in [clips, *clips.rglob("*")]}

    for path in [*clips.rglob("*"), clips]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = state()
    assert vidqa("describe", clips, "--out", tmp_path / "t.parquet").code == 0
    assert state() == before
    for path in [clips, *clips.rglob("*")]:
        path.chmod(0o755)


def test_a_source_on_a_disk_that_is_mounted_read_only(vidqa, clips, small_disk, mount, tmp_path):
    shutil.copytree(clips, small_disk / "clips")
    mount("-o", "remount,ro", str(small_disk))
    done = vidqa("describe", small_disk / "clips", "--out", tmp_path / "t.parquet")
    assert done.code == 0, done.err
    assert outcome(tmp_path / "t.parquet") == {"a.mp4": "ok", "b.mp4": "ok", "deeper/c.mp4": "ok"}


def test_a_gpu_that_runs_full_in_the_middle(vidqa, clips, tmp_path, monkeypatch):
    """The provider says so for two clips at once: the batch is halved, and nobody's row suffers."""
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
    assert refused and "out of memory, batch size is now 1" in done.err


def test_a_clock_that_is_set_back(vidqa, clips, tmp_path, monkeypatch, make_clip):
    table = tmp_path / "t.parquet"
    (clips / "text.mp4").write_text("no film")
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
    assert done["rows"] == {"ok": 1, "failed": 1} and done["known"] == {"ok": 3}
    nights = json.loads((tmp_path / "t.parquet.failures.json").read_text())["failures"]
    assert [night["n_failed"] for night in nights] == [2]
    monkeypatch.undo()
