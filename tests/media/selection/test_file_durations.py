"""Durations of real files, read in decoder processes and stored in the media index."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from vidqa.cache.media_index import MediaIndex
from vidqa.media.scan import scan
from vidqa.media.selection.file_durations import probe_durations, stored_durations
from vidqa.media.workers.decode_pool import DecodePool


@pytest.fixture
def index(tmp_path: Path) -> Iterator[MediaIndex]:
    index = MediaIndex(tmp_path / "cache")
    yield index
    index.close()


@pytest.fixture
def folder(tmp_path: Path, make_clip: Callable[..., Path]) -> Path:
    folder = tmp_path / "clips"
    make_clip(folder / "a.mp4")
    Image.new("RGB", (8, 8)).save(folder / "b.png")
    (folder / "c.mp4").write_bytes(b"broken")
    for path in folder.iterdir():
        os.utime(path, (10**9, 10**9))
    return folder


def probed(folder: Path, index: MediaIndex) -> dict[str, float | None]:
    items = scan([str(folder)]).items
    with DecodePool(1) as pool:
        return {os.path.basename(path): seconds for path, seconds in probe_durations(items, index, pool)}


@pytest.mark.slow
def test_durations_are_stored_also_those_that_are_unknown(folder: Path, index: MediaIndex) -> None:
    items = scan([str(folder)]).items
    assert stored_durations(items, index) == {}
    first = probed(folder, index)
    assert first["a.mp4"] is not None and first["a.mp4"] > 0.5 and first["b.png"] is None and first["c.mp4"] is None
    stored = stored_durations(items, index)
    assert {os.path.basename(path): seconds for path, seconds in stored.items()} == first
    os.utime(folder / "a.mp4", (2 * 10**9, 2 * 10**9))
    assert str(folder / "a.mp4") not in stored_durations(scan([str(folder)]).items, index), (
        "a changed file is read again"
    )


@pytest.mark.slow
def test_errors_that_may_pass_are_not_stored(folder: Path, index: MediaIndex) -> None:
    items = scan([str(folder)]).items
    (folder / "a.mp4").unlink()
    with DecodePool(1) as pool:
        assert dict(probe_durations(items, index, pool))[str(folder / "a.mp4")] is None
    assert set(stored_durations(items, index)) == {str(folder / "b.png"), str(folder / "c.mp4")}


def test_facts_of_earlier_runs_are_used(folder: Path, index: MediaIndex) -> None:
    from vidqa.media.probe import probe

    items = scan([str(folder)]).items
    for item in items[:2]:
        index.store_facts(index.media_id(item), probe(item.path))
    assert [seconds is None for seconds in stored_durations(items, index).values()] == [False, True]
