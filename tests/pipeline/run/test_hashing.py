"""Files are hashed in order, several at a time, and a read that hangs blocks no exit; changed files are detected."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vidqa.cache import media_index as index_module
from vidqa.cache.media_index import MediaIndex
from vidqa.errors import CacheError, ItemError
from vidqa.pipeline.run.hashing import confirm, hash_files
from vidqa.records import MediaItem, WorkItem


@pytest.fixture
def index(tmp_path: Path) -> Iterator[MediaIndex]:
    index = MediaIndex(tmp_path / "cache")
    yield index
    index.close()


@pytest.fixture
def items(tmp_path: Path) -> list[MediaItem]:
    found = []
    for n in range(40):
        path = tmp_path / f"{n:02d}.mp4"
        path.write_bytes(bytes([n]) * (1000 + n))
        found.append(MediaItem(str(path), str(tmp_path), path.name, 1000 + n, path.stat().st_mtime_ns))
    return found


def _digest(n: int) -> str:
    return hashlib.sha256(bytes([n]) * (1000 + n)).hexdigest()[:32]


@pytest.mark.parametrize("n_threads", [1, 3, None])
def test_results_are_in_order_and_include_errors(
    index: MediaIndex, items: list[MediaItem], n_threads: int | None
) -> None:
    Path(items[7].path).unlink()
    found = list(hash_files(index, items, n_threads))
    assert [item.path for item, _ in found] == [item.path for item in items]
    assert isinstance(found[7][1], ItemError) and found[7][1].kind == "missing"
    assert [media_id for _, media_id in found if isinstance(media_id, str)] == [_digest(n) for n in range(40) if n != 7]


def test_indexed_files_are_not_read_and_start_no_thread(
    index: MediaIndex, items: list[MediaItem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_MTIME_RESOLUTION_NS", -1)  # trust files that were written just now
    list(hash_files(index, items))
    n_hashed = index.n_hashed
    assert n_hashed == 40
    monkeypatch.setattr(threading.Thread, "start", lambda thread: pytest.fail("a thread for an indexed file"))
    assert [media_id for _, media_id in hash_files(index, items)] == [_digest(n) for n in range(40)]
    assert index.n_hashed == n_hashed


def test_files_are_read_in_parallel(index: MediaIndex, items: list[MediaItem], monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(3, timeout=20)
    read = index_module._digest_stable

    def read_together(path: str) -> tuple[int, int, str]:
        together.wait()
        return read(path)

    monkeypatch.setattr(index_module, "_digest_stable", read_together)
    assert [media_id for _, media_id in hash_files(index, items[:6], 3)] == [_digest(n) for n in range(6)]


def test_ending_early_does_not_wait_for_reads(
    index: MediaIndex, items: list[MediaItem], monkeypatch: pytest.MonkeyPatch
) -> None:
    release, read, requested = threading.Event(), index_module._digest_stable, []

    def slow(path: str) -> tuple[int, int, str]:
        requested.append(path)
        if not path.endswith("00.mp4"):
            assert release.wait(60)
        return read(path)

    monkeypatch.setattr(index_module, "_digest_stable", slow)
    found = hash_files(index, items, 2)
    assert next(found) == (items[0], _digest(0))
    start = time.monotonic()
    found.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 30
    release.set()
    for thread in threading.enumerate():
        if thread.name == "vidqa-hash":
            thread.join(20)
            assert not thread.is_alive()
    assert len(requested) <= 4, "queued files are not read"


def test_a_full_cache_disk_ends_the_run(
    index: MediaIndex, items: list[MediaItem], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise CacheError("disk full", hint="")

    monkeypatch.setattr(index, "_write", full)
    with pytest.raises(CacheError, match="disk full"):
        list(hash_files(index, items))


def test_content_is_confirmed_after_decoding(items: list[MediaItem]) -> None:
    work, result = WorkItem(items[0], "1" * 32), ItemError("unreadable", "broken")
    assert confirm(work, result) == (work, result)
    Path(items[0].path).write_bytes(b"longer than before, " * 100)
    changed, error = confirm(work, result)
    assert changed == WorkItem(items[0], None)
    assert isinstance(error, ItemError) and error.kind == "changed"
    Path(items[0].path).unlink()
    assert isinstance(error := confirm(work, result)[1], ItemError) and error.kind == "missing"


def test_a_file_that_changed_since_the_scan_is_hashed_as_it_is_now(index: MediaIndex, items: list[MediaItem]) -> None:
    Path(items[3].path).write_bytes(b"new content")
    ((item, media_id),) = hash_files(index, [items[3]])
    assert media_id == hashlib.sha256(b"new content").hexdigest()[:32]
    assert item.size == len(b"new content") and item.mtime_ns == Path(item.path).stat().st_mtime_ns
