"""Runs and their storage: a full disk, a read-only cache, disappearing entries, and rows that are safe early."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from vidqa.cache.maintenance import verify
from vidqa.tables.formats import read_table


def fill(folder: Path, leave: int) -> None:
    """Fill a disk except for `leave` bytes."""
    with (folder / "ballast").open("wb", buffering=0) as f:
        while True:
            try:
                if not f.write(b"\0" * 4096):
                    break
            except OSError:
                break
        f.truncate(max(0, f.tell() - leave))


@pytest.mark.slow
def test_disk_full_for_the_cache(vidqa, clips, make_clip, small_disk, tmp_path):
    for i in range(6):
        make_clip(clips / f"more{i}.mp4", seed=50 + i)
    cache = small_disk / "cache"
    assert vidqa("describe", clips / "a.mp4", "--out", tmp_path / "first.parquet", "--cache-dir", cache).code == 0
    fill(small_disk, 24 << 10)
    done = vidqa("describe", clips, "--out", tmp_path / "t.parquet", "--cache-dir", cache, "--batch-size", 1)
    assert done.code == 1
    assert "is full" in done.err and str(cache) in done.err and "prune" in done.err and "Traceback" not in done.err
    assert not verify(cache).damaged
    n_finished = len(read_table(tmp_path / "t.parquet"))
    assert n_finished < 9
    (small_disk / "ballast").unlink()
    done = vidqa("describe", clips, "--out", tmp_path / "t.parquet", "--cache-dir", cache, "--json")
    assert done.code == 0 and json.loads(done.out)["existing"].get("ok", 0) == n_finished
    assert read_table(tmp_path / "t.parquet")["status"].to_list() == ["ok"] * 9


@pytest.mark.slow
def test_a_read_only_cache_is_used(vidqa, clips, make_clip, small_disk, mount, tmp_path):
    cache = small_disk / "cache"
    assert vidqa("describe", clips, "--out", tmp_path / "t.parquet", "--cache-dir", cache).code == 0
    mount("-o", "remount,ro", str(small_disk))
    plan = json.loads(
        vidqa("describe", clips, "--out", tmp_path / "u.csv", "--cache-dir", cache, "--dry-run", "--json").out
    )
    assert (plan["files_to_do"], plan["files_to_decode"]) == (3, 0)
    done = vidqa("describe", clips, "--out", tmp_path / "u.csv", "--cache-dir", cache, "--json")
    assert done.code == 0 and json.loads(done.out)["clips"]["cached"] == 3, done.err
    assert vidqa("ask", clips / "a.mp4", "What?", "--cache-dir", cache).out == "red\n"
    done = vidqa("ask", make_clip(tmp_path / "new.mp4", seed=77), "What?", "--cache-dir", cache)
    assert done.code == 1 and "cannot use the cache folder" in done.err and "--cache-dir" in done.err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t.parquet", "set/"])
def test_disk_full_for_the_table(vidqa, clips, small_disk, name):
    out = f"{small_disk}/{name}"
    assert vidqa("describe", clips / "a.mp4", "--out", out).code == 0
    before = read_table(out)
    fill(small_disk, 8 << 10)
    done = vidqa("describe", clips, "--out", out)
    assert done.code == 1
    assert "cannot be written" in done.err and "free space" in done.err and "Traceback" not in done.err
    assert read_table(out).equals(before)
    (small_disk / "ballast").unlink()
    done = vidqa("describe", clips, "--out", out, "--json")
    assert done.code == 0 and json.loads(done.out)["clips"]["cached"] in (0, 2)  # 0 if the rows were in a part file
    assert sorted(read_table(out)["path"]) == ["a.mp4", "b.mp4", "deeper/c.mp4"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "set/"])
def test_a_full_disk_is_reported_before_the_first_row(vidqa, clips, small_disk, name):
    out = f"{small_disk}/{name}"
    assert vidqa("describe", clips / "a.mp4", "--out", out).code == 0
    fill(small_disk, 4 << 10)
    done = vidqa("describe", clips, "--out", out)
    assert done.code == 1 and "No space left on device" in done.err and f"free space in {small_disk}" in done.err
    assert "warning: the table may need" in done.err and "seconds:" not in done.err and "Traceback" not in done.err
    done = vidqa("describe", clips / "a.mp4", "--out", out)
    assert done.code == 0, "a run with nothing to do needs no space"
    assert vidqa("describe", clips, "--out", out, "--dry-run").code == 0


@pytest.mark.slow
def test_cache_entries_that_disappear_during_the_run(vidqa, clips, tmp_path, environment, monkeypatch):
    from vidqa.cache.feature_store import FeatureStore

    vidqa("encode", clips)
    read = FeatureStore.get

    def damaging(self, key):
        entry = self.path(key)
        if victims and entry.exists():
            victims.pop()(entry)
        return read(self, key)

    victims = [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:100])]
    monkeypatch.setattr(FeatureStore, "get", damaging)
    done = vidqa("describe", clips, "--out", tmp_path / "t.parquet", "--json")
    assert done.code == 0 and not victims
    assert json.loads(done.out)["clips"] == {"done": 3, "cached": 1, "failed": 0}
    assert not verify(Path(environment["VIDQA_CACHE"])).damaged


@pytest.mark.slow
def test_a_finished_row_is_safe_while_the_next_file_takes_long(vidqa, clips, tmp_path, monkeypatch):
    from vidqa.pipeline import describe
    from vidqa.pipeline.run import bookkeeping

    parts, safe = tmp_path / "t.parquet.parts", []
    answer_items = describe.answer_items

    def slow(*arguments):
        for answered in answer_items(*arguments):
            yield answered
            if not safe:  # no other file is finished until the timer has run
                for _ in range(600):
                    if list(parts.glob("0*.parquet")):
                        break
                    time.sleep(0.1)
                safe.append(len(list(parts.glob("0*.parquet"))))
                assert not (tmp_path / "t.parquet").exists()

    monkeypatch.setattr(describe, "answer_items", slow)
    monkeypatch.setattr(bookkeeping, "COMMIT_S", 0.4)
    monkeypatch.setattr(bookkeeping, "_CHECK_S", 0.2)
    assert vidqa("describe", clips, "--out", tmp_path / "t.parquet").code == 0
    assert safe == [1] and len(read_table(tmp_path / "t.parquet")) == 3 and not parts.exists()
