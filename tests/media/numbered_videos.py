"""Videos whose frames show their own number: three gray columns are the digits, a white bar marks the top."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT = 96, 64
_LOW, _STEP = 20, 22  # gray level of digit 0, and per digit: far enough apart for every codec used here

#: Clockwise rotation in degrees -> a, b, c, d of the display matrix of an MP4 track. `mirror` is a front camera.
MATRICES: dict[int | str, tuple[int, int, int, int]] = {
    0: (1, 0, 0, 1),
    90: (0, 1, -1, 0),
    180: (-1, 0, 0, -1),
    270: (0, -1, 1, 0),
    "mirror": (-1, 0, 0, 1),
}


def make_frame(number: int) -> np.ndarray:
    """Return the frame that shows `number`, uint8 RGB [64, 96, 3]."""
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    frame[:16] = 235
    for column, digit in enumerate(f"{number:03d}"):
        frame[16:48, 32 * column : 32 * column + 32] = _LOW + _STEP * int(digit)
    return frame


def read_number(pixels: np.ndarray) -> int:
    """Return the number that a decoded frame shows; fails if the frame is not upright."""
    height, width = pixels.shape[:2]
    assert pixels[: height // 8].mean() > 190 and pixels[-height // 8 :].mean() < 60, "the frame is not upright"
    number = 0
    for column in range(3):
        left = width * column // 3 + width // 12
        middle = pixels[height * 6 // 16 : height * 10 // 16, left : left + width // 6]
        number = number * 10 + round((float(middle.mean()) - _LOW) / _STEP)
    return number


def read_numbers(frames: Sequence[np.ndarray] | np.ndarray) -> list[int]:
    """Return the numbers of several frames."""
    return [read_number(frame) for frame in frames]


def write_video(
    path: Path,
    codec: str = "libx264",
    n: int = 40,
    *,
    fps: int = 10,
    pts: Sequence[int] | None = None,
    frame: Callable[[int], np.ndarray] = make_frame,
    pix_fmt: str = "yuv420p",
    muxer: str | None = None,
    **settings: str,
) -> Path:
    """Encode `n` numbered frames.

    Args:
        path: output file; its suffix selects the container unless `muxer` is given.
        codec: name of the encoder.
        n: number of frames.
        fps: frames per second, if `pts` is not given.
        pts: pts of each frame in milliseconds.
        frame: function that returns the frame for a number, in RGB or RGBA.
        pix_fmt: pixel format.
        muxer: name of the container format.
        **settings: encoder options (`g` GOP size, `bf` B-frames); `aspect` is the pixel aspect ratio W/H.
    """
    aspect = settings.pop("aspect", None)
    with _restored_priority(), av.open(str(path), "w", format=muxer) as container:
        stream = container.add_stream(codec, rate=fps, options={"g": "12", **settings})
        height, width = frame(0).shape[:2]
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        if aspect:
            stream.sample_aspect_ratio = Fraction(aspect)
        if pts is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(n):
            pixels = frame(i)
            video_frame = av.VideoFrame.from_ndarray(pixels, format="rgba" if pixels.shape[2] == 4 else "rgb24")
            if pts is not None:
                video_frame.pts, video_frame.time_base = pts[i], Fraction(1, 1000)
            container.mux(stream.encode(video_frame))
        container.mux(stream.encode())
    return path


def pack_as_divx(source: Path, path: Path) -> Path:
    """Copy an MPEG-4 AVI with single B-frames as DivX and Xvid stored them: packed bitstream.

    Each B-frame is in the packet of its reference frame, and an empty packet takes its place.
    """
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        template = old.streams.video[0]
        stream = new.add_stream_from_template(template)
        packets = [(bytes(p), p.is_keyframe) for p in old.demux(template) if p.size]
        is_b = [data[data.index(b"\0\0\1\xb6") + 4] >> 6 == 2 for data, _ in packets]
        stored: list[tuple[bytes, bool]] = []
        for i, (data, is_key) in enumerate(packets):
            if is_b[i]:
                stored[-1] = (stored[-1][0] + data, stored[-1][1])
                stored.append((b"\0\0\1\xb6\x50\0\x7f", False))
            else:
                stored.append((_signed_as_divx(data), is_key))
        for n, (data, is_key) in enumerate(stored):
            packet = av.Packet(data)
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, n, n, template.time_base
            packet.is_keyframe = is_key
            new.mux(packet)
    return path


def _signed_as_divx(data: bytes) -> bytes:
    """Add the encoder name by which decoders recognize a packed bitstream."""
    at = data.find(b"\0\0\1\xb2")
    if at < 0:
        return data
    return data[: at + 4] + b"DivX503b1393p" + data[data.index(b"\0\0\1", at + 4) :]


@contextmanager
def _restored_priority() -> Iterator[None]:
    """Restore the scheduling policy of this thread after encoding.

    SVT-AV1 gives the thread that opens it a real-time policy if the user may do that (root may). Threads and processes
    started later inherit it, and a busy one then blocks all others on its core.
    """
    if not hasattr(os, "sched_setscheduler"):
        yield
        return
    policy, param = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, param)


def patch_box(path: Path, kind: bytes, offset: int, values: bytes) -> None:
    """Overwrite bytes inside the first box of a kind; `offset` counts from the end of its name."""
    data = bytearray(path.read_bytes())
    at = data.index(kind) + 4 + offset
    data[at : at + len(values)] = values
    path.write_bytes(bytes(data))


def set_orientation(path: Path, orientation: int | str) -> None:
    """Write a display matrix into the track header of an MP4 file."""
    a, b, c, d = (v << 16 for v in MATRICES[orientation])
    patch_box(path, b"tkhd", 40, struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30))


def shift_edit_list(path: Path, skipped: int, ticks_per_frame: int) -> None:
    """Make the edit list of an MP4 file start some frames later, in the middle of a GOP."""
    data = path.read_bytes()
    at = data.index(b"elst") + 4
    version, entries = data[at], struct.unpack_from(">I", data, at + 4)[0]
    assert (version, entries) == (0, 1)
    (start,) = struct.unpack_from(">i", data, at + 12)
    patch_box(path, b"elst", 12, struct.pack(">i", start + skipped * ticks_per_frame))


def on_transparent_red(number: int) -> np.ndarray:
    """Return a numbered frame as uint8 RGBA [64, 96, 4]: its black lower part is transparent, and red underneath."""
    frame = np.dstack([make_frame(number), np.full((HEIGHT, WIDTH), 255, np.uint8)])
    frame[48:] = (200, 0, 0, 0)
    return frame


def assert_white_below(pixels: np.ndarray) -> None:
    """Check that the transparent part of `on_transparent_red` is shown in white."""
    assert pixels[52:].min() > 245 and pixels[18:46].max() < 235
