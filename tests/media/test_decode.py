"""Decoding whole files: wrong headers, truncation, rejected files, segments, memory, and unusual paths."""

from __future__ import annotations

import errno
import os
import struct
import weakref
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_videos import make_frame, read_numbers, write_video

from vidqa.errors import MediaError
from vidqa.media import container
from vidqa.media import decode as decode_module
from vidqa.media.backends import pyav
from vidqa.media.backends.gop_reader import GopReader
from vidqa.media.backends.pyav import PyavReader
from vidqa.media.container import OpenVideo, open_video, read_packets
from vidqa.media.decode import decode, decode_parts, join_parts, open_reader
from vidqa.media.frame_index.frame_index import IndexMismatchError
from vidqa.media.probe import probe
from vidqa.media.segments import find_pauses, plan_segments
from vidqa.records import FrameBatch, MediaFacts, SamplingSpec, Segment

pytestmark = pytest.mark.smoke

CLIPS = Path(__file__).parent / "clips"


@pytest.mark.parametrize(
    ("name", "codec", "size", "n", "fps", "last_s"),
    [
        ("h265_10bits.mp4", "hevc", (200, 200), 30, 30.0, 0.967),
        ("av1_video.mkv", "av1", (640, 360), 125, 25.0, 4.96),
        ("fixture.mpg", "mpeg1video", (160, 120), 19, 14.211, 1.267),  # header: 0.003 s, 25 frames per second
        ("fixture.flv", "flv1", (268, 156), 25, 34.286, 0.7),  # header: 60
        ("te[s]t_ video ' _ .flv", "h264", (320, 240), 10, 5.022, 1.792),  # header: 24; starts at 0.042 s
    ],
)
def test_real_videos(name: str, codec: str, size: tuple[int, int], n: int, fps: float, last_s: float) -> None:
    media = decode(str(CLIPS / name))
    facts, frames = media.facts, media.segments[0].frames
    assert (facts.codec, (facts.width, facts.height), facts.n_frames_from_content) == (codec, size, n)
    assert facts.fps == pytest.approx(fps, abs=0.001)
    assert isinstance(frames, FrameBatch) and frames.pixels.shape == (8, size[1], size[0], 3)
    assert frames.pts_s[0] == 0 and frames.pts_s[-1] == pytest.approx(last_s, abs=0.001)
    assert len(list(CLIPS.glob("*.*"))) == 7  # six videos and their licenses


def test_header_and_counted_facts_are_separate(tmp_path: Path, clip: Path) -> None:
    header, counted = probe(str(clip)), probe(str(clip), count=True)
    assert (header.n_frames_from_header, header.n_frames_from_content) == (40, None)
    assert (counted.n_frames_from_header, counted.n_frames_from_content) == (40, 40)
    whole = write_video(tmp_path / "whole.mkv", n=100).read_bytes()
    (tmp_path / "half.mkv").write_bytes(whole[: len(whole) // 2])
    header, counted = probe(str(tmp_path / "half.mkv")), probe(str(tmp_path / "half.mkv"), count=True)
    assert header.duration_s == pytest.approx(10.0)
    assert counted.n_frames_from_content is not None and 20 < counted.n_frames_from_content < 90
    assert counted.duration_s == pytest.approx(counted.n_frames_from_content / 10)
    frames = decode(str(tmp_path / "half.mkv")).segments[0].frames
    assert isinstance(frames, FrameBatch) and read_numbers(frames.pixels)[-1] == counted.n_frames_from_content - 1


def test_a_truncated_mp4_ends_with_its_last_complete_frame(tmp_path: Path) -> None:
    path = tmp_path / "cut.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "12", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(make_frame(i), format="rgb24")))
        container.mux(stream.encode())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * 0.75)])
    media = decode(str(path))
    n = media.facts.n_frames_from_content
    assert media.facts.n_frames_from_header == 60 and n is not None and 10 < n < 60
    read = read_numbers(media.segments[0].frames.pixels)  # type: ignore[union-attr]
    assert read[0] == 0 and read == sorted(read) and read[-1] >= n - 4


def test_fragmented_mp4(tmp_path: Path) -> None:
    path = tmp_path / "fragmented.mp4"
    with av.open(str(path), "w", options={"movflags": "frag_keyframe+empty_moov"}) as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "12", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(make_frame(i), format="rgb24")))
        container.mux(stream.encode())
    assert probe(str(path)).n_frames_from_header is None
    media = decode(str(path))
    assert media.facts.n_frames_from_content == 40
    assert read_numbers(media.segments[0].frames.pixels) == [0, 5, 11, 16, 22, 27, 33, 39]  # type: ignore[union-attr]


def test_damage_in_the_middle_keeps_the_other_frames(tmp_path: Path, clip: Path) -> None:
    """Some packets cannot be decoded, so the index comes from decoding."""
    data = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    for position, size in packets[12:24]:  # fill the second GOP with noise
        data[position : position + size] = struct.pack(">I", size - 4) + bytes([0x41]) + b"\xff" * (size - 5)
    (tmp_path / "damaged.mp4").write_bytes(data)
    media = decode(str(tmp_path / "damaged.mp4"), video=SamplingSpec("linspace", 40))
    frames = media.segments[0].frames
    read = read_numbers(frames.pixels)  # type: ignore[union-attr]
    assert set(read) == {*range(11), 13, *range(34, 40)}  # up to the next keyframe, frames would look wrong
    assert frames.pts_s.tolist() == pytest.approx([number / 10 for number in read])
    assert media.facts.n_frames_from_header == 40 and media.facts.n_frames_from_content == 18


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "empty_file"),
        (b"hello, this is text", "not_media"),
        (b"PK\x03\x04" + bytes(50), "not_media"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nSECRET\n#EXT-X-ENDLIST\n", "not_local"),
        (b"ffconcat version 1.0\nfile 'SECRET'\n", "not_local"),
        (b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nm=video 5004 RTP/AVP 96\r\n", "not_local"),
        (b"<?xml version='1.0'?><MPD type='static'><BaseURL>SECRET</BaseURL></MPD>", "not_local"),
        (b"[playlist]\nFile1=http://127.0.0.1/x\n", "not_local"),
        (b"\x1aE\xdf\xa3" + bytes(200), "unreadable"),
        (b"\0\0\0\x20ftypisom" + bytes(200), "unreadable"),
        (b"RIFF\x10\0\0\0AVI " + bytes(200), "unreadable"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "unreadable"),
        (bytes(range(128, 256)) * 40, "not_media"),
        (b"ID3\x04\0\0\0\0\0\0" + b"\xff\xfb\x90\x64" * 200, "no_video"),
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ""])
def test_error_kinds_of_invalid_files(content: bytes, kind: str, suffix: str, tmp_path: Path, clip: Path) -> None:
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content.replace(b"SECRET", str(clip).encode()))
    for attempt in (decode, probe):
        with pytest.raises(MediaError) as caught:
            attempt(str(path))
        assert caught.value.kind == kind and path.name in caught.value.what


def test_missing_and_special_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    for name, kind in (("gone.mp4", "missing"), ("pipe.mp4", "not_media"), (".", "not_media"), ("x\0y", "unreadable")):
        with pytest.raises(MediaError) as caught:
            decode(os.path.join(str(tmp_path), name))
        assert caught.value.kind == kind
    with pytest.raises(MediaError) as caught:
        decode(str(CLIPS / "video_without_video_stream.mp4"))
    assert caught.value.kind == "no_video"


def test_a_path_is_never_an_address_or_a_pattern(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (b"%03d.mp4", b"-i.mp4", b"concat:a|b.mp4", b"file:x.mp4", b"pipe:0", b"bad\xff\n.mp4", b"http:x"):
        with open(name, "wb") as f:
            f.write(clip.read_bytes())
        assert decode(os.fsdecode(name)).facts.n_frames_from_content == 40
    with pytest.raises(MediaError) as caught:
        decode(f"concat:{clip}|{clip}")
    assert caught.value.kind == "missing"


def test_cover_images_are_not_video(tmp_path: Path) -> None:
    """An audio file with a cover image has no video."""
    song = tmp_path / "song.mp4"
    with av.open(str(song), "w") as container:
        sound = container.add_stream("aac", rate=16000)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 96, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16000
        container.mux(cover.encode(av.VideoFrame.from_ndarray(make_frame(1), format="rgb24")))
        container.mux(cover.encode())
        container.mux(sound.encode(silence))
        container.mux(sound.encode())
    with pytest.raises(MediaError) as caught:
        decode(str(song))
    assert caught.value.kind == "no_video"


def test_the_default_stream_is_the_video(tmp_path: Path) -> None:
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = []
        for default in (False, True):
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            stream.disposition = av.stream.Disposition.default if default else av.stream.Disposition(0)
            streams.append(stream)
        for i in range(10):
            for first, stream in enumerate(streams):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(make_frame(i + 100 * first), format="rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    media = decode(str(path), video=SamplingSpec("linspace", 2))
    assert media.facts.stream_index == 1
    assert read_numbers(media.segments[0].frames.pixels) == [100, 109]  # type: ignore[union-attr]


def test_segments_and_memory(clip: Path) -> None:
    """Four segments of one second; the full-size frames of a segment are released after its transform."""
    alive: list[weakref.ref] = []

    def shrink(frames: FrameBatch) -> FrameBatch:
        assert all(r() is None for r in alive), "frames of an earlier segment are still in memory"
        alive.append(weakref.ref(frames.pixels))
        return FrameBatch(frames.pixels[:, ::4, ::4].copy(), frames.pts_s, frames.repeated)

    media = decode(str(clip), 1.0, video=SamplingSpec("linspace", 4), transform=shrink)  # type: ignore[arg-type]
    assert [s.segment.key for s in media.segments] == ["0.000-1.000", "1.000-2.000", "2.000-3.000", "3.000-4.000"]
    assert [(s.start_s, s.end_s) for s in media.segments] == [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 4.0)]
    for i, segment in enumerate(media.segments):
        assert segment.frames.pts_s == pytest.approx([i, i + 0.3, i + 0.6, i + 0.9])
    assert len(alive) == 4
    full = decode(str(clip), 1.0, video=SamplingSpec("linspace", 4))
    assert [read_numbers(s.frames.pixels) for s in full.segments] == [
        [10 * i + j for j in (0, 3, 6, 9)] for i in range(4)
    ]  # type: ignore[union-attr]


def test_fewer_frames_than_sampled(tmp_path: Path) -> None:
    one = decode(str(write_video(tmp_path / "one.mp4", n=1))).segments[0]
    assert one.frames.repeated.tolist() == [False] + [True] * 7 and one.end_s > 0
    few = decode(str(write_video(tmp_path / "few.mp4", n=3))).segments[0].frames
    assert read_numbers(few.pixels) == [0, 0, 0, 0, 1, 1, 1, 2]  # type: ignore[union-attr]
    assert few.repeated.sum() == 5


def test_frames_above_the_pixel_limit_are_rejected_before_decoding(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidqa.media.container.MAX_PIXELS", 96 * 64 - 1)
    with pytest.raises(MediaError) as caught:
        decode(str(clip))
    assert caught.value.kind == "too_large" and "96 x 64" in caught.value.what


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "codec", "settings", "n_gops"),
    [
        ("long.mp4", "libx264", {"bf": "2"}, 1),
        ("long.mkv", "libx264", {"bf": "2"}, 1),
        ("long.ts", "libx264", {"bf": "2"}, 1),  # the seek target must be the dts
        ("long.ts", "libx265", {"x265-params": "log-level=none:bframes=3:keyint=12:open-gop=0"}, 1),
        ("long.flv", "libx264", {"bf": "2"}, 1),
        ("long.vob", "mpeg2video", {"bf": "2", "b": "4M", "sc_threshold": "1000000000"}, 2),  # seeks fail
        ("long.mpg", "mpeg2video", {"bf": "2", "b": "4M", "sc_threshold": "1000000000"}, 5),  # no pts, open GOPs
        ("long.avi", "libx264", {"bf": "2"}, 2),  # no pts: each GOP is decoded twice, to verify it
        ("long.h264", "libx264", {"bf": "2"}, 2),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_sparse_frames_of_a_long_video_decode_only_their_gops(
    name: str, codec: str, settings: dict[str, str], n_gops: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / name, codec, n=960, fps=25, **settings)
    n_decoded = 0

    def count(cls: type, method: str) -> None:
        decoded = getattr(cls, method)

        def counting(*args: object):
            nonlocal n_decoded
            for frame in decoded(*args):
                n_decoded += 1
                yield frame

        monkeypatch.setattr(cls, method, counting)

    count(PyavReader, "_decoded")
    count(GopReader, "_decoded")
    media = decode(str(path))
    assert read_numbers(media.segments[0].frames.pixels) == [0, 137, 274, 411, 548, 685, 822, 959]  # type: ignore[union-attr]
    assert n_decoded <= 8 * 13 * n_gops + 24  # 24 frames verify an index


def test_reading_continues_after_eagain(clip: Path) -> None:
    """FFmpeg's MPEG-TS demuxer may return EAGAIN in a damaged stream; the next call continues from there."""

    class Interrupted:
        def __init__(self, video: OpenVideo, n_interruptions: int) -> None:
            self.packets, self.n_calls = list(video.container.demux(video.stream)), 0
            self.n_interruptions = n_interruptions

        def demux(self, _stream: object):
            self.n_calls += 1
            if self.n_calls == 1:
                yield from self.packets[:5]
            if self.n_calls <= self.n_interruptions:
                raise av.error.BlockingIOError(errno.EAGAIN, "try again")
            yield from self.packets[5:]

    with open_video(str(clip)) as video:
        interrupted = Interrupted(video, n_interruptions=3)
        assert list(read_packets(replace(video, container=interrupted))) == interrupted.packets  # type: ignore[arg-type]
    with open_video(str(clip)) as video, pytest.raises(BlockingIOError):
        list(read_packets(replace(video, container=Interrupted(video, n_interruptions=10**9))))  # type: ignore[arg-type]


def test_a_read_error_keeps_the_frames_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the index comes from decoding."""
    path = write_video(tmp_path / "a.ts", n=40, bf="0")
    read = container.read_packets

    def broken(video: OpenVideo):
        for n, packet in enumerate(read(video)):
            if n == 20:
                raise av.error.InvalidDataError(errno.EINVAL, "broken")
            yield packet

    monkeypatch.setattr(pyav, "read_packets", broken)
    with open_reader(str(path), "pyav", index_source="decoding") as reader:
        assert 0 < len(reader.pts_s) <= 20


def test_falls_back_to_decord(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("decord")

    def fail(self: PyavReader, indices: object) -> object:
        raise MediaError("unreadable", "no frame") if self.index.by_order else IndexMismatchError
        yield

    monkeypatch.setattr(PyavReader, "frames", fail)
    media = decode(str(clip))
    assert media.backend == "decord"
    assert read_numbers(media.segments[0].frames.pixels) == [0, 5, 11, 16, 22, 27, 33, 39]  # type: ignore[union-attr]
    with pytest.raises(MediaError, match="no frame"):
        decode(str(clip), backend="pyav")
    assert decode_module.decode is decode


def test_decoders_print_nothing(tmp_path: Path, clip: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(clip.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = b"\xff" * 200
    (tmp_path / "noisy.mp4").write_bytes(data)
    for path in (tmp_path / "noisy.mp4", CLIPS / "fixture.mpg"):
        decode(str(path), video=SamplingSpec("linspace", 40))
    assert capfd.readouterr() == ("", "")


def test_parts_are_yielded_one_by_one_and_a_mismatch_repeats_none(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, calls = decode_module._read_batch, []

    def mismatch(reader, indices, repeated):
        calls.append(reader)
        if len(calls) == 3:
            raise IndexMismatchError("frame 20 differs")
        return read(reader, indices, repeated)

    monkeypatch.setattr(decode_module, "_read_batch", mismatch)
    parts = []
    for part in decode_parts(str(clip), 1.0):
        parts.append(part)
        assert len(calls) == len(parts) + (len(parts) > 2), "nothing is decoded ahead"
    assert [part.segments[0].start_s for part in parts] == [0.0, 1.0, 2.0, 3.0]
    assert [part.is_last for part in parts] == [False, False, False, True]
    assert calls[0] is not calls[3]
    monkeypatch.undo()
    whole, joined = decode(str(clip), 1.0), join_parts(parts)
    for a, b in zip(joined.segments, whole.segments, strict=True):
        assert np.array_equal(a.frames.pixels, b.frames.pixels) and a.end_s == b.end_s  # type: ignore[union-attr]
    (nothing,) = decode_parts(str(clip), 1.0, skip=whole.planned)
    assert nothing.segments == () and nothing.is_last and len(nothing.planned) == 4


@settings(max_examples=300, deadline=None)
@given(
    first=st.lists(st.integers(0, 400), min_size=1, max_size=12),
    second=st.lists(st.integers(0, 400), min_size=1, max_size=12),
    n_done=st.integers(0, 40),
    length_s=st.sampled_from([0.3, 1.0, 2.5]),
)
def test_a_second_plan_continues_the_first(first: list[int], second: list[int], n_done: int, length_s: float) -> None:
    """Whatever times of frames are found when a file is read again, its windows follow those that are done."""

    def facts(tenths: list[int]) -> MediaFacts:
        pts_s = np.array(sorted({0, *tenths})) / 10
        return MediaFacts(
            "video", "h264", 64, 48, float(pts_s[-1]) + 0.1, 10.0, last_frame_s=float(pts_s[-1]),
            pauses=find_pauses(pts_s),
        )  # fmt: skip

    done = plan_segments(facts(first), length_s)[:n_done]
    decoded_s = (done[-1].end_s or 0.0) if done else 0.0
    planned = plan_segments(decode_module._continued(facts(first), facts(second), decoded_s), length_s)
    assert planned[: len(done)] == done
    assert planned[0].start_s == 0 and all(a.end_s == b.start_s for a, b in pairwise(planned))
    assert planned[-1].end_s is not None and planned[-1].end_s > max(0, *second) / 10


def test_a_segment_that_is_asked_for_twice_is_decoded_once(clip: Path) -> None:
    segments = (Segment(0.0, 1.0), Segment(1.0, 2.0), Segment(0.0, 1.0))
    parts = list(decode_parts(str(clip), segments))
    assert [part.segments[0].start_s for part in parts] == [0.0, 1.0]
    assert [part.is_last for part in parts] == [False, True]
