"""Opening a container: the same facts with every supported version of PyAV."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import pytest

from tests.media.numbered_videos import make_frame, read_numbers, write_video
from vidqa.errors import MediaError
from vidqa.media.container import as_fraction, open_video, pixel_aspect, read_packets
from vidqa.media.decode import open_reader

pytestmark = pytest.mark.smoke


def test_a_rational_that_is_not_set_is_none() -> None:
    assert as_fraction(None) is None
    rational = pytest.importorskip("av.rational", reason="PyAV 18.0").AVRational
    assert [as_fraction(value) for value in (rational(0, 1), rational(0, 0), rational(1, 0))] == [None] * 3


def test_rationals_become_exact_fractions() -> None:
    """The arithmetic of AVRational is rounded to 32 bits."""
    rational = pytest.importorskip("av.rational", reason="PyAV 18.0").AVRational
    found = as_fraction(rational(1001, 30000))
    assert type(found) is Fraction
    assert found * (2**40 + 1) == Fraction(1001 * (2**40 + 1), 30000)


def test_values_of_a_stream_are_fractions(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", n=5, fps=30)
    with open_video(str(path)) as video:
        for value in (video.time_base, video.average_rate, pixel_aspect(video.stream)):
            assert type(value) is Fraction
        assert (video.time_base, video.average_rate) == (Fraction(1, 1000), 30)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_tags_that_are_not_utf8_do_not_matter(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "A TITLE OF LETTERS"
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode())
    data = path.read_bytes()
    assert data.count(b"A TITLE OF LETTERS") == 1
    path.write_bytes(data.replace(b"A TITLE OF LETTERS", "НАЗВАНИЕ И СЛОВАРЬ".encode("cp1251")))
    with open_video(str(path)) as video:
        assert video.stream.frames in (0, 1)


def write_streams(path: Path, streams: list[tuple[str, int]]) -> Path:
    """Write a file with several video streams: codec and number of frames. Stream 1 shows 100, 101, ..."""
    with av.open(str(path), "w") as container:
        added = []
        for codec, _ in streams:
            added.append(container.add_stream(codec, rate=10))
            added[-1].width, added[-1].height = 96, 64
            added[-1].pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for n, (stream, (_, n_frames)) in enumerate(zip(added, streams, strict=True)):
            for i in range(n_frames):
                frame = av.VideoFrame.from_ndarray(make_frame(100 * n + i), format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, 10)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "mov"])
@pytest.mark.parametrize(
    ("streams", "shown"),
    [
        ([("mjpeg", 1), ("libx264", 10)], 1),  # a cover image that is not marked as one
        ([("mjpeg", 10), ("libx264", 10)], 1),  # thumbnails
        ([("libx264", 10), ("mjpeg", 10)], 0),
        ([("mjpeg", 10), ("mjpeg", 10)], 0),  # a camera that records both its lenses
        ([("mjpeg", 10)], 0),
    ],
)
def test_a_stream_of_images_is_used_only_without_another(
    streams: list[tuple[str, int]], shown: int, suffix: str, tmp_path: Path
) -> None:
    path = write_streams(tmp_path / f"a.{suffix}", streams)
    with open_reader(str(path)) as reader:
        assert reader.facts.stream_index == shown
        assert read_numbers(list(reader.frames([0, 9]))) == [100 * shown, 100 * shown + 9]


@pytest.mark.parametrize("suffix", ["mkv", "avi", "ts"])
def test_a_stream_without_frames_is_not_used(suffix: str, tmp_path: Path) -> None:
    """A recorder may announce a stream, or a program of a television channel, that it never writes."""
    path = write_streams(tmp_path / f"a.{suffix}", [("libx264", 0), ("libx264", 10)])
    with open_reader(str(path)) as reader:
        assert reader.facts.stream_index == 1
        assert read_numbers(list(reader.frames([0, 9]))) == [100, 109]


def test_a_file_with_nothing_but_a_cover_image(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuvj420p"
        stream.disposition = av.stream.Disposition.attached_pic
        container.mux(stream.encode(av.VideoFrame(96, 64, "yuv420p").reformat(format="yuvj420p")))
        container.mux(stream.encode())
    with pytest.raises(MediaError, match="no video stream, only cover image") as caught, open_video(str(path)):
        pass
    assert caught.value.kind == "no_video"


def test_streams_that_begin_in_the_middle_do_not_matter(tmp_path: Path) -> None:
    """As in a recording of television, where the next programme has sound."""
    first = write_video(tmp_path / "a.ts", n=200)
    second = tmp_path / "b.ts"
    with av.open(str(first)) as source, av.open(str(second), "w", format="mpegts") as container:
        video = container.add_stream_from_template(source.streams.video[0])
        audio = container.add_stream("mp2", rate=48000)
        packets = [packet for packet in source.demux(video=0) if packet.size]
        for packet in packets:
            packet.stream = video
            packet.pts, packet.dts = packet.pts + 1_800_000, packet.dts + 1_800_000
            container.mux(packet)
        for n in range(100):
            frame = av.AudioFrame("s16", "stereo", 1152)
            frame.sample_rate, frame.pts, frame.time_base = 48000, n * 1152, Fraction(1, 48000)
            container.mux(audio.encode(frame))
        container.mux(audio.encode())
    joined = tmp_path / "joined.ts"
    null_packets = (b"\x47\x1f\xff\x10" + bytes(184)) * 40_000  # more than FFmpeg reads of the start and the end
    joined.write_bytes(first.read_bytes() + null_packets + second.read_bytes() + null_packets + first.read_bytes())
    with open_video(str(joined)) as opened:
        n_packets = sum(packet.size > 0 for packet in read_packets(opened))
        assert len(opened.container.streams) == 1  # as found at the start
        assert n_packets == 600


@pytest.mark.parametrize("rate", [5, 30, Fraction(30000, 1001)])
@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        ("h264", "libx264", {}),
        ("h264", "libx264", {"bf": "0"}),
        ("h264", "libx264", {"x264-params": "interlaced=1"}),
        ("hevc", "libx265", {"x265-params": "log-level=none"}),
        ("m2v", "mpeg2video", {}),
        ("m4v", "mpeg4", {}),
    ],
)
def test_raw_streams_have_the_rate_that_they_state(
    suffix: str, codec: str, options: dict[str, str], rate: int | Fraction, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(make_frame(i), format="rgb24")))
        container.mux(stream.encode())
    with open_reader(str(path)) as reader:
        assert reader.facts.fps == pytest.approx(float(rate), rel=0.001)
        assert reader.facts.duration_s == pytest.approx(float(20 / rate), rel=0.001)
        assert read_numbers(list(reader.frames([0, 7, 19]))) == [0, 7, 19]
