"""stats, verify and prune cover every entry, and change nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vidqa.cache import maintenance
from vidqa.cache.feature_store import FeatureStore
from vidqa.cache.key import CacheKey, default_cache_dir
from vidqa.cache.maintenance import parse_size
from vidqa.cache.media_index import MediaIndex
from vidqa.errors import UsageError
from vidqa.records import EncodedSegment

DAY = 86400.0


@pytest.fixture
def keys(tmp_path: Path, segment: Callable[..., EncodedSegment]) -> list[CacheKey]:
    """Six entries of two encoders; entry i was last used i days ago."""
    store, now = FeatureStore(tmp_path), time.time()
    MediaIndex(tmp_path)
    keys = [CacheKey(f"{i:032x}", "whole", "enc2" if i > 3 else "enc1") for i in range(6)]
    for i, key in enumerate(keys):
        store.put(key, segment(i))
        os.utime(store.path(key), (now - i * DAY, now - i * DAY))
    return keys


def remaining(root: Path, keys: list[CacheKey]) -> list[int]:
    return [i for i, k in enumerate(keys) if (root / k.relative).exists()]


def test_stats(tmp_path: Path, keys: list[CacheKey]) -> None:
    s = maintenance.stats(tmp_path)
    one = (tmp_path / keys[0].relative).stat().st_size
    assert (s.n_entries, s.n_bytes) == (6, sum((tmp_path / k.relative).stat().st_size for k in keys))
    assert [(e.encoder_id, e.n_entries) for e in s.encoders] == [("enc1", 4), ("enc2", 2)]
    assert s.encoders[0].n_bytes == 4 * one
    assert s.encoders[1].newest_use_s - s.encoders[1].oldest_use_s == pytest.approx(DAY, abs=1)
    assert s.n_index_bytes > 0 and s.n_leftovers == 0


def test_a_missing_cache_is_empty(tmp_path: Path) -> None:
    assert maintenance.stats(tmp_path / "none").n_entries == 0
    assert maintenance.verify(tmp_path / "none").n_entries == 0
    assert maintenance.prune(tmp_path / "none", max_size=0).n_removed == 0
    assert not (tmp_path / "none").exists()


def test_verify_lists_and_removes(tmp_path: Path, keys: list[CacheKey]) -> None:
    assert maintenance.verify(tmp_path).damaged == ()
    short, misplaced = tmp_path / keys[1].relative, tmp_path / keys[4].relative
    short.write_bytes(short.read_bytes()[:-1])
    misplaced.write_bytes((tmp_path / keys[5].relative).read_bytes())
    report = maintenance.verify(tmp_path)
    assert report.n_entries == 6 and report.n_removed == 0
    reasons = {d.path: d.reason for d in report.damaged}
    assert set(reasons) == {short, misplaced}
    assert "another key" in reasons[misplaced]
    assert maintenance.verify(tmp_path, delete=True).n_removed == 2
    assert remaining(tmp_path, keys) == [0, 2, 3, 5]
    assert maintenance.verify(tmp_path).damaged == ()


@pytest.mark.parametrize("part", ["tokens", "embedding"])
def test_verify_reports_values_that_are_not_finite(
    tmp_path: Path, keys: list[CacheKey], overflowed: Callable[..., bytes], part: str
) -> None:
    (tmp_path / keys[2].relative).write_bytes(overflowed(keys[2], part, float("inf")))
    (damaged,) = maintenance.verify(tmp_path).damaged
    assert damaged.path == tmp_path / keys[2].relative and "NaN or infinity" in damaged.reason


def test_prune_by_age(tmp_path: Path, keys: list[CacheKey]) -> None:
    dry_run = maintenance.prune(tmp_path, older_than_s=2.5 * DAY, dry_run=True)
    assert remaining(tmp_path, keys) == [0, 1, 2, 3, 4, 5]
    report = maintenance.prune(tmp_path, older_than_s=2.5 * DAY)
    assert report == dry_run and (report.n_removed, report.n_left) == (3, 3)
    assert remaining(tmp_path, keys) == [0, 1, 2]


def test_entries_with_a_time_in_the_far_future_count_as_never_used(tmp_path: Path, keys: list[CacheKey]) -> None:
    leftover = (tmp_path / keys[0].relative).parent / ".x.safetensors.1.part"
    leftover.write_bytes(b"half")
    for path in (tmp_path / keys[0].relative, leftover):
        os.utime(path, (13_569_465_600, 13_569_465_600))  # the year 2400
    assert maintenance.stats(tmp_path).n_entries == 6
    report = maintenance.prune(tmp_path, older_than_s=30 * DAY)
    assert (report.n_removed, report.n_leftovers_removed) == (1, 1)
    assert remaining(tmp_path, keys) == [1, 2, 3, 4, 5]


def test_prune_by_size_removes_the_least_recently_used(tmp_path: Path, keys: list[CacheKey]) -> None:
    total = maintenance.stats(tmp_path).n_bytes
    report = maintenance.prune(tmp_path, max_size=total // 2)
    assert remaining(tmp_path, keys) == [0, 1, 2]
    assert report.n_bytes_left <= total // 2 and report.n_bytes_left + report.n_bytes_removed == total
    assert maintenance.prune(tmp_path, max_size=total).n_removed == 0
    maintenance.prune(tmp_path, max_size=0)
    assert remaining(tmp_path, keys) == []


def test_reading_protects_from_pruning(tmp_path: Path, keys: list[CacheKey]) -> None:
    FeatureStore(tmp_path).get(keys[5])
    maintenance.prune(tmp_path, older_than_s=1.5 * DAY)
    assert remaining(tmp_path, keys) == [0, 1, 5]


def test_old_temporary_files_are_removed_and_foreign_files_stay(tmp_path: Path, keys: list[CacheKey]) -> None:
    folder, foreign = (tmp_path / keys[0].relative).parent, tmp_path / "holiday.part"
    old, new = folder / ".x.safetensors.1.part", folder / ".x.safetensors.2.part"
    for f in (old, new, foreign):
        f.write_bytes(b"half")
    for f in (old, foreign):
        os.utime(f, (time.time() - 2 * 3600,) * 2)
    assert maintenance.stats(tmp_path).n_leftovers == 2
    assert maintenance.stats(tmp_path).n_entries == 6
    assert maintenance.prune(tmp_path).n_leftovers_removed == 1
    assert not old.exists() and new.exists() and foreign.exists()
    assert remaining(tmp_path, keys) == [0, 1, 2, 3, 4, 5]


def test_record_indexes_are_counted_and_pruned_by_last_use(tmp_path: Path, keys: list[CacheKey]) -> None:
    folder, now = tmp_path / "records", time.time()
    folder.mkdir()
    # All files of one record index share the latest time of last use.
    ages = {"a-1.npz": 0, "a-1-x.npz": 9, "a-1.jsonl": 9, "b-2.npz": 9, "b-2-x.npz": 8, "notes.txt": 9}
    for name, age in ages.items():
        (folder / name).write_bytes(b"12345")
        os.utime(folder / name, (now - age * DAY,) * 2)
    (folder / ".b-2.npz.1.part").write_bytes(b"half")
    s = maintenance.stats(tmp_path)
    assert (s.n_records, s.n_record_bytes, s.n_entries, s.n_leftovers) == (5, 25, 6, 1)
    report = maintenance.prune(tmp_path, older_than_s=7 * DAY)
    assert (report.n_removed, report.n_bytes_removed, report.n_left) == (2, 10, 9)
    assert {p.name for p in folder.iterdir() if p.suffix != ".part"} == {
        "a-1.npz",
        "a-1-x.npz",
        "a-1.jsonl",
        "notes.txt",
    }
    assert remaining(tmp_path, keys) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("10GB", 10**10),
        ("1.5 GiB", 3 * 2**29),
        ("500M", 5 * 10**8),
        ("0", 0),
        ("7", 7),
        (" 2kb ", 2000),
        ("1TiB", 2**40),
    ],
)
def test_parse_size(text: str, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize("text", ["", "GB", "ten GB", "-1GB", "10XB", "1e3", "10 G B", "nan", "1,5GB", "9" * 400])
def test_invalid_sizes(text: str) -> None:
    with pytest.raises(UsageError, match="not a size") as caught:
        parse_size(text)
    assert repr(text) in caught.value.what


def test_the_default_folder_is_named_vidqa() -> None:
    assert default_cache_dir().name == "vidqa" or "vidqa" in default_cache_dir().parts
