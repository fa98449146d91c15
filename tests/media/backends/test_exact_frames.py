"""Every frame index returns exactly that frame, for every codec and container and both backends."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from numbered_videos import (
    MATRICES,
    make_frame,
    pack_as_divx,
    read_numbers,
    set_orientation,
    shift_edit_list,
    write_video,
)

from vidqa.errors import MediaError
from vidqa.media.backends import pyav
from vidqa.media.backends.gop_reader import GopReader
from vidqa.media.decode import FrameReader, decode, open_reader
from vidqa.media.frame_index.frame_index import IndexMismatchError
from vidqa.records import SamplingSpec

N = 40
SPARSE = [0, 5, 11, 12, 13, 24, 37, 39]

#: name, encoder, container format, encoder options, whether decord must accept it
CLIPS = [
    ("h264_b.mp4", "libx264", None, {"bf": "3"}, True),
    ("h264_open_gop.mp4", "libx264", None, {"bf": "2", "x264-params": "open-gop=1"}, False),
    ("h264_b.mkv", "libx264", None, {"bf": "2"}, True),
    ("h264_b.ts", "libx264", None, {"bf": "2"}, False),
    ("h264_b.flv", "libx264", None, {"bf": "2"}, False),
    ("h264_b.avi", "libx264", None, {"bf": "2"}, False),
    ("h264_raw.h264", "libx264", "h264", {"bf": "2"}, False),
    ("hevc_b.mp4", "libx265", None, {"x265-params": "log-level=none:bframes=3:keyint=12:open-gop=0"}, True),
    ("hevc_open_gop.mp4", "libx265", None, {"x265-params": "log-level=none:bframes=3:keyint=12:open-gop=1"}, False),
    ("vp8.webm", "libvpx", None, {"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "good", "b": "2M"}, True),
    ("vp9.webm", "libvpx-vp9", None, {"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "good"}, True),
    ("av1.mkv", "libsvtav1", None, {"preset": "8", "crf": "20", "svtav1-params": "lp=1"}, False),
    ("mpeg4_b.avi", "mpeg4", None, {"bf": "2", "sc_threshold": "1000000000", "q": "2", "b": "4M"}, False),
    ("mpeg4_b.mp4", "mpeg4", None, {"bf": "2", "sc_threshold": "1000000000", "b": "4M"}, False),
    ("mpeg2_b.mpg", "mpeg2video", "vob", {"bf": "2", "sc_threshold": "1000000000", "b": "4M"}, False),
    ("mjpeg.mov", "mjpeg", None, {"q": "3"}, True),
]


@pytest.fixture(scope="module", params=CLIPS, ids=lambda c: c[0])
def numbered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool]:
    name, codec, muxer, settings, for_decord = request.param
    path = tmp_path_factory.mktemp("numbered") / name
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    fps = 25 if codec == "mpeg2video" else 10
    return write_video(path, codec, N, fps=fps, muxer=muxer, pix_fmt=pix_fmt, **settings), for_decord


def test_pyav_returns_every_frame_in_any_order(numbered: tuple[Path, bool]) -> None:
    with open_reader(str(numbered[0]), "pyav") as reader:
        assert reader.facts.n_frames_from_content == N
        assert read_numbers(list(reader.frames(SPARSE))) == SPARSE
        assert read_numbers(list(reader.frames(range(N)))) == list(range(N))
        assert read_numbers(list(reader.frames([30, 3, 39, 0]))) == [30, 3, 39, 0]


def test_decord_returns_the_same_or_rejects_the_file(numbered: tuple[Path, bool]) -> None:
    pytest.importorskip("decord")
    path, for_decord = numbered
    try:
        with open_reader(str(path), "decord") as reader, open_reader(str(path), "pyav") as other:
            frames = list(reader.frames(SPARSE))
            assert read_numbers(frames) == SPARSE
            differences = [np.abs(a.astype(int) - b).mean() for a, b in zip(frames, other.frames(SPARSE), strict=True)]
            assert max(differences) <= 2
    except MediaError as rejection:
        assert rejection.kind == "unsupported" and not for_decord, rejection.what
    else:
        assert for_decord


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="needs sched_getscheduler")
def test_encoding_does_not_change_the_scheduling_policy(tmp_path: Path) -> None:
    before = os.sched_getscheduler(0)
    write_video(tmp_path / "a.mkv", "libsvtav1", 3, preset="8", **{"svtav1-params": "lp=1"})
    assert os.sched_getscheduler(0) == before, "processes started later would block a core"


def test_a_file_without_seeking_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(
        tmp_path / "a.mpg", "mpeg2video", N, fps=25, muxer="vob", bf="2", b="4M", sc_threshold="1000000000"
    )
    with open_reader(str(path)) as reader:
        assert not reader.index.by_order  # type: ignore[attr-defined]
        starts = []
        restart = reader._restart  # type: ignore[attr-defined]
        monkeypatch.setattr(reader, "_restart", lambda: (starts.append(1), restart()))
        assert read_numbers(list(reader.frames(range(13, N)))) == list(range(13, N))
        assert len(starts) <= 1


def test_only_gops_of_requested_frames_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """H.264 in AVI has no usable pts: frames are found by counting the packets of each GOP."""
    path = write_video(tmp_path / "a.avi", n=120, bf="2", sc_threshold="0")
    loaded = []
    load = GopReader._load
    monkeypatch.setattr(GopReader, "_load", lambda self, gop, wanted: (loaded.append(gop), load(self, gop, wanted))[1])
    with open_reader(str(path), "pyav") as reader:
        assert read_numbers(list(reader.frames([0, 11, 12, 100, 107]))) == [0, 11, 12, 100, 107]
        assert loaded == [0, 1, 8]
        assert read_numbers(list(reader.frames([105, 104, 3]))) == [105, 104, 3]
        assert loaded == [0, 1, 8, 0], "the GOP in memory is not loaded again"
        assert read_numbers(list(reader.frames(range(120)))) == list(range(120))


def test_packed_bitstream(tmp_path: Path) -> None:
    """B-frames before a keyframe are stored after it, so the GOP before is needed, too."""
    source = write_video(tmp_path / "a.avi", "mpeg4", 120, bf="1", q="2", b="4M", sc_threshold="1000000000")
    path = pack_as_divx(source, tmp_path / "packed.avi")
    with open_reader(str(path), "pyav") as reader:
        assert reader.index.gop_starts is not None  # type: ignore[attr-defined]
        assert read_numbers(list(reader.frames([0, 22, 23, 24, 25, 59, 119]))) == [0, 22, 23, 24, 25, 59, 119]
        assert read_numbers(list(reader.frames(range(120)))) == list(range(120))
        assert read_numbers(list(reader.frames([70, 23]))) == [70, 23]


def test_a_gop_with_a_missing_frame_is_indexed_by_decoding(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", n=60, bf="2", sc_threshold="0")
    whole = path.read_bytes()
    at = [i for i in range(len(whole)) if whole.startswith(b"00dc", i)][30] + 8  # the 31st packet
    path.write_bytes(whole[:at] + b"\xff" * 12 + whole[at + 12 :])
    with open_reader(str(path), "pyav") as reader:
        assert len(reader.pts_s) == 60
        assert read_numbers(list(reader.frames([0, 23, 59]))) == [0, 23, 59], "intact GOPs"
        with pytest.raises(IndexMismatchError):
            list(reader.frames([33]))
    with open_reader(str(path), "pyav", index_source="decoding") as slow:
        n = len(slow.pts_s)
        assert n < 60
    frames = decode(str(path), video=SamplingSpec("linspace", 60)).segments[0].frames
    found = read_numbers(frames.pixels)  # type: ignore[union-attr]
    assert len(set(found)) == n and sorted(found) == found


def test_dropped_frames_of_an_avi_shift_later_times(tmp_path: Path) -> None:
    """Frames dropped while recording are stored as empty packets, which delay the following frames."""
    pts = [*range(0, 2000, 100), *range(3000, 5000, 100)]
    path = write_video(tmp_path / "a.avi", n=N, fps=10, pts=pts, bf="2")
    with open_reader(str(path), "pyav") as reader:
        assert read_numbers(list(reader.frames([0, 19, 20, 39]))) == [0, 19, 20, 39]
        assert reader.pts_s[0] == 0 and abs(reader.pts_s[19] - 1.9) < 0.25
        assert reader.pts_s[-1] == pytest.approx(4.9, abs=0.05)


@pytest.mark.parametrize(("name", "encoder"), [("a.mp4", "libx264"), ("a.webm", "libvpx-vp9")])
def test_a_file_is_opened_once(name: str, encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Facts, index and frames need only one open, which takes 3 to 4 ms: a twentieth of decoding a short video."""
    path = write_video(tmp_path / name, encoder, N)
    calls = []
    open_video = pyav.open_video
    monkeypatch.setattr(pyav, "open_video", lambda *args: (calls.append(args), open_video(*args))[1])
    with open_reader(str(path)) as reader:
        assert read_numbers(list(reader.frames(SPARSE))) == SPARSE
    assert len(calls) == 1


def test_skipping_non_reference_frames_changes_no_pixel(clip: Path) -> None:
    wanted = [7, 17, 29, 38]
    with open_reader(str(clip)) as sparse, open_reader(str(clip), index_source="decoding") as full:
        assert not sparse.index.by_order and full.index.by_order  # type: ignore[attr-defined]
        for a, b in zip(sparse.frames(wanted), full.frames(wanted), strict=True):
            assert np.array_equal(a, b)


@pytest.mark.parametrize("backend", ["pyav", "decord"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_rate_and_late_start(backend: str, suffix: str, tmp_path: Path) -> None:
    gaps = np.tile([40, 40, 200, 1000, 33], 8)
    pts = [int(t) for t in 5000 + np.concatenate([[0], np.cumsum(gaps)[:-1]])]
    path = write_video(tmp_path / f"vfr.{suffix}", n=N, pts=pts, bf="2")
    with _open(path, backend) as reader:
        assert np.allclose(reader.pts_s, (np.asarray(pts) - 5000) / 1000, atol=0.0011)
        assert read_numbers(list(reader.frames(SPARSE))) == SPARSE
        assert reader.facts.fps == pytest.approx(39 / (reader.pts_s[-1]), rel=1e-3)


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_edit_list_starts_inside_a_gop(backend: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / "edited.mp4", n=N, bf="2")
    shift_edit_list(path, 5, 1024)  # 10240 ticks a second, 10 frames a second
    with _open(path, backend) as reader:
        assert len(reader.pts_s) == N - 5 and reader.pts_s[0] == 0
        assert read_numbers(list(reader.frames([0, 1, 7, 20, 34]))) == [5, 6, 12, 25, 39]


@pytest.mark.parametrize("backend", ["pyav", "decord"])
@pytest.mark.parametrize("rotation", [90, 180, 270, "mirror"])
def test_frames_are_upright(backend: str, rotation: int | str, tmp_path: Path) -> None:
    def stored(number: int) -> np.ndarray:
        upright = make_frame(number)
        return np.ascontiguousarray(
            upright[:, ::-1] if rotation == "mirror" else np.rot90(upright, int(rotation) // 90)
        )

    path = write_video(tmp_path / "turned.mp4", n=20, frame=stored, bf="2")
    set_orientation(path, rotation)
    with _open(path, backend) as reader:
        assert (reader.facts.width, reader.facts.height) == (96, 64)
        assert reader.facts.rotation_deg == (0 if rotation == "mirror" else rotation)
        frames = list(reader.frames([0, 9, 19]))
        assert frames[0].shape == (64, 96, 3)
        assert read_numbers(frames) == [0, 9, 19]
    assert set(MATRICES) == {0, 90, 180, 270, "mirror"}


@pytest.mark.parametrize("backend", ["pyav", "decord"])
@pytest.mark.parametrize("rotation", [0, 90])
def test_pixels_are_square(backend: str, rotation: int, tmp_path: Path) -> None:
    def stored(number: int) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(make_frame(number), rotation // 90))

    path = write_video(tmp_path / "wide.mp4", n=8, frame=stored, aspect="3/2")
    set_orientation(path, rotation)
    with _open(path, backend) as reader:
        shown = (144, 64) if rotation == 0 else (96, 96)  # the stored width is stretched before the rotation
        assert (reader.facts.width, reader.facts.height) == shown
        frames = list(reader.frames([0, 7]))
        assert frames[0].shape == (shown[1], shown[0], 3)
        assert read_numbers(frames) == [0, 7]


def test_full_and_limited_range_give_the_same_gray(tmp_path: Path) -> None:
    full = write_video(tmp_path / "full.mp4", n=3, pix_fmt="yuvj420p")
    limited = write_video(tmp_path / "limited.mp4", n=3)
    with open_reader(str(full)) as a, open_reader(str(limited)) as b:
        for x, y in zip(a.frames([0, 2]), b.frames([0, 2]), strict=True):
            assert np.abs(x.astype(int) - y).mean() <= 2


def _open(path: Path, backend: str) -> FrameReader:
    if backend == "decord":
        pytest.importorskip("decord")
    try:
        return open_reader(str(path), backend)  # type: ignore[arg-type]
    except MediaError as rejection:
        if backend == "decord" and rejection.kind == "unsupported":
            pytest.skip(f"decord rejects this file: {rejection.what.split(': ', 1)[1]}")
        raise
