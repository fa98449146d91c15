"""Contents are named in order, several at a time, and nobody waits for a file that hangs."""

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
from vidqa.pipeline.run.hashing import identify_all
from vidqa.records import MediaItem


@pytest.fixture
def index(tmp_path: Path) -> Iterator[MediaIndex]:
    made = MediaIndex(tmp_path / "cache")
    yield made
    made.close()


@pytest.fixture
def items(tmp_path: Path) -> list[MediaItem]:
    """Files that were written long ago."""
    found = []
    for n in range(40):
        path = tmp_path / f"{n:02d}.mp4"
        path.write_bytes(bytes([n]) * (1000 + n))
        found.append(MediaItem(str(path), str(tmp_path), path.name, 1000 + n, path.stat().st_mtime_ns))
    return found


def _digest(n: int) -> str:
    return hashlib.sha256(bytes([n]) * (1000 + n)).hexdigest()[:32]


@pytest.mark.parametrize("n_threads", [1, 3, None])
def test_in_order_with_errors_in_their_places(index: MediaIndex, items: list[MediaItem], n_threads: int | None) -> None:
    Path(items[7].path).unlink()
    found = list(identify_all(index, items, n_threads))
    assert [item.path for item, _ in found] == [item.path for item in items]
    assert isinstance(found[7][1], ItemError) and found[7][1].kind == "missing"
    assert [known for _, known in found if isinstance(known, str)] == [_digest(n) for n in range(40) if n != 7]


def test_known_files_are_neither_read_nor_given_to_threads(
    index: MediaIndex, items: list[MediaItem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_MTIME_RESOLUTION_NS", -1)  # written just now, and believed all the same
    list(identify_all(index, items))
    n_hashed = index.n_hashed
    assert n_hashed == 40
    monkeypatch.setattr(threading.Thread, "start", lambda thread: pytest.fail("a thread for a known file"))
    assert [known for _, known in identify_all(index, items)] == [_digest(n) for n in range(40)]
    assert index.n_hashed == n_hashed


def test_several_are_read_side_by_side(
    index: MediaIndex, items: list[MediaItem], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(3, timeout=20)
    read = index_module._digest_stable

    def in_company(path: str) -> tuple[int, int, str]:
        together.wait()
        return read(path)

    monkeypatch.setattr(index_module, "_digest_stable", in_company)
    assert [known for _, known in identify_all(index, items[:6], 3)] == [_digest(n) for n in range(6)]


def test_who_stops_early_does_not_wait(
    index: MediaIndex, items: list[MediaItem], monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go, read, asked = threading.Event(), index_module._digest_stable, []

    def slow(path: str) -> tuple[int, int, str]:
        asked.append(path)
        if not path.endswith("00.mp4"):
            assert let_go.wait(60)
        return read(path)

    monkeypatch.setattr(index_module, "_digest_stable", slow)
    found = identify_all(index, items, 2)
    assert next(found) == (items[0], _digest(0))
    began = time.monotonic()
    found.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began < 30
    let_go.set()
    for thread in threading.enumerate():
        if thread.name == "vidqa-hash":
            thread.join(20)
            assert not thread.is_alive()
    assert len(asked) <= 4, "files that only waited are not read"


def test_a_cache_that_fails_ends_the_run(
    index: MediaIndex, items: list[MediaItem], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise CacheError("no room", hint="")

    monkeypatch.setattr(index, "_write", full)
    with pytest.raises(CacheError, match="no room"):
        list(identify_all(index, items))
