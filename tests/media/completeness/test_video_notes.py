"""Incomplete and damaged videos: what is readable keeps its time and is noted. Sound videos have no notes."""

from __future__ import annotations

import struct
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from numbered_videos import make_frame, patch_box, read_numbers, write_video

from vidqa.media.backends.pyav import PyavReader
from vidqa.media.decode import decode
from vidqa.media.frame_index.frame_index import IndexSource
from vidqa.media.segments import plan_segments
from vidqa.records import DecodedMedia

SOURCES: tuple[IndexSource, ...] = ("container", "packets", "decoding")


def notes(path: Path) -> tuple[str, ...]:
    """Notes of a file, which must be the same with every source of the frame index."""
    found = set()
    for source in SOURCES:
        with PyavReader(str(path), index_source=source) as reader:
            found.add(reader.facts.notes)
    assert len(found) == 1
    return found.pop()


def shown(media: DecodedMedia) -> dict[int, float]:
    """Numbers and times of all sampled frames."""
    return {
        number: float(time_s)
        for segment in media.segments
        for number, time_s in zip(read_numbers(segment.frames.pixels), segment.frames.pts_s, strict=True)  # type: ignore[union-attr]
    }


def write(path: Path, codec: str = "libx264", n: int = 100, muxer: str | None = None, **options: str) -> Path:
    """Write numbered frames, 10 per second, with options for the container."""
    with av.open(str(path), "w", format=muxer, options=options) as container:
        stream = container.add_stream(codec, rate=10, options={"g": "10", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(n):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(make_frame(i), format="rgb24")))
        container.mux(stream.encode())
    return path


def with_hole(path: Path) -> Path:
    """Overwrite the middle third of the packets with zeros."""
    with av.open(str(path)) as container:
        offsets = [packet.pos for packet in container.demux(video=0) if packet.size and packet.pos is not None]
    start, end = (offsets[len(offsets) * i // 3] for i in (1, 2))
    data = path.read_bytes()
    path.write_bytes(data[:start] + bytes(end - start) + data[end:])
    return path


@pytest.mark.parametrize(
    ("name", "codec", "options", "promises"),
    [
        ("a.mp4", "libx264", {"movflags": "faststart"}, True),
        ("a.mov", "mpeg4", {"movflags": "faststart"}, True),
        ("sidx.mp4", "libx264", {"movflags": "frag_keyframe+empty_moov+dash+global_sidx"}, True),
        ("fragments.mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}, False),
        ("first.mp4", "libx264", {"movflags": "frag_keyframe"}, False),
        ("a.mkv", "libx264", {}, True),
        ("a.webm", "libvpx", {}, True),
        ("live.mkv", "libx264", {"live": "1"}, False),
        ("a.avi", "mpeg4", {}, True),
        ("h264.avi", "libx264", {}, True),
        ("a.flv", "flv", {}, True),
        ("a.ts", "libx264", {}, False),
        ("a.m2ts", "libx264", {}, False),
        ("a.vob", "mpeg2video", {}, False),
        ("a.wmv", "wmv2", {}, False),
        ("a.mxf", "mpeg2video", {}, True),
        ("a.ivf", "libvpx", {}, True),
    ],
)
def test_a_truncated_file_is_noted_and_a_complete_one_is_not(
    name: str, codec: str, options: dict[str, str], promises: bool, tmp_path: Path
) -> None:
    if name.endswith((".vob", ".mxf")):  # MPEG-2 needs one of the usual rates
        whole = write_video(tmp_path / name, codec, n=100, fps=25, g="10").read_bytes()
    else:
        whole = write(tmp_path / name, codec, **options).read_bytes()
    assert notes(tmp_path / name) == ()
    cut = tmp_path / f"cut_{name}"
    end = len(whole) * 6 // 10 + 101
    if "frag" in str(options):  # FFmpeg cannot open a file that ends in the header of a fragment
        end = whole.index(b"mdat", end) + 20
    cut.write_bytes(whole[:end])
    total_s = 4.0 if name.endswith((".vob", ".mxf")) else 10.0
    media = decode(str(cut))
    readable_s = media.facts.duration_s
    assert readable_s is not None and 0.2 * total_s < readable_s < 0.8 * total_s
    of = f" of {total_s}" if promises else ""
    assert notes(cut) == media.facts.notes == (f"truncated: {readable_s:.1f}{of} s readable",)


@pytest.mark.parametrize("name", ["a.mkv", "a.flv", "a.avi", "a.ts", "fragments.mp4"])
def test_space_that_was_reserved_but_never_written_is_noted(name: str, tmp_path: Path) -> None:
    options = {"movflags": "frag_keyframe+empty_moov"} if name.endswith("mp4") else {}
    path = write(tmp_path / name, "mpeg4" if name.endswith("avi") else "libx264", n=300, **options)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2].ljust(len(data), b"\0"))
    assert decode(str(path)).facts.notes[0].startswith("truncated: ")


def test_audio_that_is_longer_than_the_video_is_no_truncation(tmp_path: Path) -> None:
    for name in ("a.mkv", "a.mp4", "a.flv"):
        with av.open(str(tmp_path / name), "w") as container:
            video, audio = container.add_stream("libx264", rate=10), container.add_stream("aac", rate=44_100)
            video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
            for i in range(20):
                container.mux(video.encode(av.VideoFrame.from_ndarray(make_frame(i), format="rgb24")))
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 44_100), np.float32), format="fltp", layout="mono")
            silence.rate = 44_100
            for _ in range(10):
                container.mux(audio.encode(silence))
            container.mux(video.encode())
            container.mux(audio.encode())
        assert notes(tmp_path / name) == ()


def test_a_hole_in_the_file_keeps_duration_and_times(tmp_path: Path) -> None:
    path = with_hole(write(tmp_path / "hole.mp4"))
    media = decode(str(path), 2.0)
    assert media.facts.duration_s == pytest.approx(10.0) and media.facts.fps == pytest.approx(10.0)
    assert all(time_s == pytest.approx(number / 10) for number, time_s in shown(media).items())
    assert media.segments[0].start_s == 0 and media.segments[-1].end_s == pytest.approx(10.0)
    assert 10 < (media.facts.n_frames_from_content or 0) < 90
    (note,) = media.facts.notes
    assert note.startswith("damaged: ") and note.endswith(" of 10.0 s unreadable")


@pytest.mark.parametrize("length_s", [0.5, 1.0, 3.0, 4.0])
@pytest.mark.parametrize("n_intact", [30, 31, 40])
def test_windows_tile_a_damaged_video_although_damage_is_found_late(
    n_intact: int, length_s: float, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.mp4")
    with av.open(str(path)) as container:
        packets = [(packet.pos or 0, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for start, size in packets[n_intact:70]:
        data[start : start + size] = bytes(size)
    path.write_bytes(data)
    media = decode(str(path), length_s)
    assert media.segments[0].start_s == 0 and media.segments[-1].end_s == pytest.approx(10.0)
    assert all(a.end_s == pytest.approx(b.start_s) for a, b in pairwise(media.segments))
    assert tuple(s.segment for s in media.segments) == plan_segments(media.facts, length_s)
    assert set(shown(media)) <= {*range(n_intact), *range(70, 100)}
    assert media.facts.notes == (f"damaged: {7 - n_intact / 10:.1f} of 10.0 s unreadable",)


@pytest.mark.parametrize("name", ["hole.mkv", "hole.flv", "hole.ts"])
def test_a_hole_that_the_demuxer_skips_is_noted(name: str, tmp_path: Path) -> None:
    options = {"cluster_time_limit": "500"} if name.endswith("mkv") else {}
    path = with_hole(write(tmp_path / name, n=600, **options))
    media = decode(str(path))
    assert media.facts.duration_s == pytest.approx(60.0, abs=0.06)
    assert all(time_s == pytest.approx(number / 10, abs=0.01) for number, time_s in shown(media).items())
    assert [note.split(":")[0] for note in media.facts.notes] == ["damaged"]


def test_the_rest_of_a_download_that_reserved_its_space_keeps_the_duration(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", movflags="faststart")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2].ljust(len(data), b"\0"))
    media = decode(str(path), 2.0)
    assert media.facts.duration_s == pytest.approx(10.0) == media.segments[-1].end_s
    assert media.facts.last_frame_s is not None and media.facts.last_frame_s < 6
    (note,) = media.facts.notes
    assert note.startswith("damaged: ")


def test_an_edit_list_may_end_in_the_middle_of_a_frame(tmp_path: Path) -> None:
    """As in the live photos of phones: 22 frames, of which the last would be shown for 0.9 s, in 1.233 s."""
    path = write_video(tmp_path / "live.mov", n=23, pts=[*(i * 55 for i in range(22)), 2067], bf="0")
    patch_box(path, b"elst", 8, struct.pack(">I", 1233))
    media = decode(str(path))
    assert media.facts.n_frames_from_content == 22
    assert media.facts.duration_s == pytest.approx(1.233, abs=0.001) == media.segments[0].end_s
    assert notes(path) == ()


def stamped(path: Path, start_s: float, first: int = 0, n: int = 50, bf: str = "2") -> bytes:
    """Numbered frames, 10 per second, whose clock starts at a time."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "10", "bf": bf})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 90_000)
        for i in range(n):
            frame = av.VideoFrame.from_ndarray(make_frame(first + i), format="rgb24")
            frame.pts, frame.time_base = round(start_s * 90_000) + 9000 * i, Fraction(1, 90_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


@pytest.mark.parametrize("start_s", [100.0, 0.013, 0.0])
def test_a_clock_that_starts_again_is_noted(start_s: float, tmp_path: Path) -> None:
    path = tmp_path / "joined.ts"
    first = stamped(tmp_path / "0.ts", start_s)
    path.write_bytes(first + stamped(tmp_path / "1.ts", 0.0, first=50))
    media = decode(str(path), 2.0)
    assert media.facts.duration_s == pytest.approx(10.0, abs=0.01)
    assert len(media.segments) == 5
    assert all(time_s == pytest.approx(number / 10, abs=0.11) for number, time_s in shown(media).items())
    assert notes(path) == (f"clock jumps by {'104 s' if start_s == 100 else '5 s'}",)


def test_a_pause_keeps_its_time_and_is_no_jump(tmp_path: Path) -> None:
    path = tmp_path / "paused.ts"
    path.write_bytes(stamped(tmp_path / "0.ts", 0.0, bf="0") + stamped(tmp_path / "1.ts", 3600.0, first=50, bf="0"))
    media = decode(str(path), 10.0)
    assert [(s.start_s, s.end_s) for s in media.segments] == [(0.0, 3600.0), (3600.0, pytest.approx(3605.0))]
    assert media.facts.duration_s == pytest.approx(3605.0)
    assert notes(path) == ()


def test_a_jump_forward_is_noted_and_costs_one_window(tmp_path: Path) -> None:
    path = write_video(tmp_path / "wild.mkv", n=51, pts=[*(i * 40 for i in range(50)), 95_443_000], bf="0")
    media = decode(str(path), 60.0)
    assert [(s.start_s, s.end_s) for s in media.segments] == [(0.0, 95_400.0), (95_400.0, pytest.approx(95_443.1))]
    assert notes(path) == ("clock jumps by 26 h",)


@pytest.mark.parametrize(("changed", "n"), [(range(25, 26), 50), (range(1), 49), (range(10, 30), 50)])
def test_odd_timestamps_do_not_move_the_other_frames(changed: range, n: int, tmp_path: Path) -> None:
    path = tmp_path / "odd.mkv"
    with av.open(str(path), "w", options={"cluster_time_limit": "1"}) as container:  # one cluster per frame
        stream = container.add_stream("libx264", rate=10, options={"g": "1"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(50):
            frame = av.VideoFrame.from_ndarray(make_frame(i), format="rgb24")
            frame.pts, frame.time_base = 1_000_000 + i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = bytearray(path.read_bytes())
    clusters = [at for at in range(len(data)) if data[at : at + 4] == b"\x1f\x43\xb6\x75"]
    for i in changed:
        at = data.index(b"\xe7\x84", clusters[i]) + 2  # the time of the cluster in ms
        data[at : at + 4] = struct.pack(">I", struct.unpack_from(">I", data, at)[0] + 95_443_000)
    path.write_bytes(data)
    media = decode(str(path))
    assert media.facts.n_frames_from_content == n and media.facts.duration_s == pytest.approx(n / 10)
    first = 50 - n
    assert all(time_s == pytest.approx((number - first) / 10) for number, time_s in shown(media).items())
    assert notes(path) == ("clock jumps by 26 h",)


@pytest.mark.parametrize("start_s", [36_000.0, 2**33 / 90_000 - 2])
def test_a_clock_may_start_late_or_wrap_around(start_s: float, tmp_path: Path) -> None:
    stamped(tmp_path / "a.ts", start_s)
    media = decode(str(tmp_path / "a.ts"), 2.0)
    assert media.facts.duration_s == pytest.approx(5.0) and len(media.segments) == 3
    assert shown(media) == pytest.approx({number: number / 10 for number in shown(media)})
    assert notes(tmp_path / "a.ts") == ()
