"""The sample table of an MP4 file gives the same index as its packets, or none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from numbered_videos import read_numbers, shift_edit_list, write_video

from vidqa.media.backends import pyav
from vidqa.media.backends.pyav import PyavReader
from vidqa.media.decode import decode, open_reader
from vidqa.media.frame_index import from_container
from vidqa.media.frame_index.frame_index import FrameIndex
from vidqa.records import SamplingSpec

N = 60
SPARSE = [0, 1, 11, 12, 13, 23, 24, 37, 58, 59]


@pytest.fixture(autouse=True)
def short_videos(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use the sample table for short videos, too."""
    monkeypatch.setattr(from_container, "MIN_FRAMES", 10)
    yield


@pytest.mark.parametrize(
    ("codec", "settings"),
    [
        ("libx264", {"bf": "0"}),
        ("libx264", {"bf": "3"}),
        ("libx264", {"bf": "2", "x264-params": "open-gop=1"}),
        ("libx265", {"x265-params": "log-level=none:bframes=3:keyint=12:open-gop=0"}),
        ("libx265", {"x265-params": "log-level=none:bframes=3:keyint=12:open-gop=1"}),
        ("mpeg4", {"bf": "2", "sc_threshold": "1000000000", "b": "4M"}),
    ],
)
@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_same_index_as_from_packets(codec: str, settings: dict[str, str], suffix: str, tmp_path: Path) -> None:
    path = str(write_video(tmp_path / f"a.{suffix}", codec, N, **settings))
    with PyavReader(path) as fast, PyavReader(path, index_source="packets") as slow:
        assert fast.index.unverified and not slow.index.unverified
        assert np.array_equal(fast.index.pts, slow.index.pts) and np.array_equal(fast.pts_s, slow.pts_s)
        assert fast.facts == slow.facts
        assert read_numbers(list(fast.frames(SPARSE))) == SPARSE
        assert read_numbers(list(fast.frames(range(N)))) == list(range(N))
        assert read_numbers(list(fast.frames([59, 3, 30]))) == [59, 3, 30]


def test_only_the_last_gop_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", n=600, bf="2", frame=lambda n: np.full((64, 96, 3), n % 256, np.uint8))
    n_read = 0
    read = from_container.read_packets

    def counting(video: object):
        nonlocal n_read
        for packet in read(video):  # type: ignore[arg-type]
            n_read += 1
            yield packet

    monkeypatch.setattr(from_container, "read_packets", counting)
    monkeypatch.setattr(pyav, "read_packets", counting)
    with PyavReader(str(path)) as reader:
        assert len(reader.index) == 600 and n_read <= 13


def _variable(path: Path) -> None:
    write_video(path, n=N, pts=[40 * i + 7 * (i % 3) for i in range(N)], bf="2")


def _muxed(path: Path, movflags: str) -> None:
    """Write the same packets with other muxer options."""
    source = write_video(path.with_name("source.mp4"), n=N, bf="2")
    with av.open(str(source)) as old, av.open(str(path), "w", options={"movflags": movflags}) as new:
        template = old.streams.video[0]
        stream = new.add_stream_from_template(template)
        for packet in old.demux(template):
            if packet.size:
                packet.stream = stream
                new.mux(packet)


def _in_fragments(path: Path) -> None:
    _muxed(path, "frag_keyframe+empty_moov")


def _in_fragments_after_a_table(path: Path) -> None:
    _muxed(path, "frag_keyframe")  # only the first GOP is in the table


def _edited(path: Path) -> None:
    write_video(path, n=N, bf="2")
    shift_edit_list(path, 5, 1024)


def _cut(path: Path) -> None:
    _muxed(path, "faststart")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * 0.8)])


def _other_container(path: Path) -> None:
    write_video(path, n=N, bf="2", muxer="matroska")


def _one_keyframe_far_away(path: Path) -> None:
    write_video(path, n=N, bf="2", g="1000", sc_threshold="0")


@pytest.mark.parametrize(
    "make",
    [_variable, _in_fragments, _edited, _cut, _other_container, _one_keyframe_far_away],
    ids=lambda f: f.__name__,
)
def test_falls_back_to_packets(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(from_container, "_MAX_CHECKED", 30)
    path = tmp_path / "a.mp4"
    make(path)
    with PyavReader(str(path)) as reader, PyavReader(str(path), index_source="packets") as slow:
        assert not reader.index.unverified
        assert np.array_equal(reader.index.pts, slow.index.pts)
        n = len(reader.pts_s)
        assert read_numbers(list(reader.frames([0, n - 1]))) == read_numbers(list(slow.frames([0, n - 1])))


@pytest.mark.parametrize("error", ["missing end", "one frame too many", "variable rate"])
def test_a_wrong_table_is_detected(error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", n=N, bf="2")
    matches = from_container._last_gop_matches

    def altered(video: object, index: FrameIndex, n_last: int) -> bool:
        if error == "missing end":
            return False
        step = index.last_duration
        if error == "one frame too many":
            return matches(video, replace(index, pts=np.append(index.pts, index.pts[-1] + step)), n_last + 1)  # type: ignore[arg-type]
        index.pts[20:40] += step // 3  # in the middle, which is not checked
        return True

    monkeypatch.setattr(from_container, "_last_gop_matches", altered)
    media = decode(str(path), video=SamplingSpec("linspace", 7))
    assert media.facts.n_frames_from_content == N
    assert read_numbers(media.segments[0].frames.pixels) == [0, 9, 19, 29, 39, 49, 59]  # type: ignore[union-attr]
    with open_reader(str(path), index_source="packets") as reader:
        assert np.allclose(media.segments[0].frames.pts_s, reader.pts_s[[0, 9, 19, 29, 39, 49, 59]])  # type: ignore[union-attr]
