"""Colors of videos with every color matrix, range, and without tags."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vidqa.errors import note_kind
from vidqa.media.decode import decode, open_reader
from vidqa.media.probe import probe
from vidqa.records import MediaFacts

COLORS = ((200, 30, 60), (30, 200, 60), (255, 255, 255))
#: Red and blue weights of luma.
BT_601, BT_709, BT_2020 = (0.299, 0.114), (0.2126, 0.0722), (0.2627, 0.0593)
UNSPECIFIED, LIMITED, FULL = 0, 1, 2


def to_yuv(rgb: tuple[int, int, int], weights: tuple[float, float], color_range: int) -> list[int]:
    """Return Y, Cb and Cr of a color, 8 bits each, by the definition in ITU-R BT.601, BT.709 and BT.2020."""
    red, green, blue = (value / 255 for value in rgb)
    of_red, of_blue = weights
    luma = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
    chroma = ((blue - luma) / (2 - 2 * of_blue), (red - luma) / (2 - 2 * of_red))
    if color_range == FULL:
        return [round(255 * luma), *(round(128 + 255 * c) for c in chroma)]
    return [round(16 + 219 * luma), *(round(128 + 224 * c) for c in chroma)]


def write_colors(path: Path, weights: tuple[float, float], matrix: int, color_range: int, height: int = 64) -> None:
    """Write a video with one frame for each of `COLORS`, tagged with a matrix number of ITU-T H.273 and a range."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, height, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, color_range
        for i, rgb in enumerate(COLORS):
            frame = av.VideoFrame(64, height, "yuv420p")
            for plane, value in zip(frame.planes, to_yuv(rgb, weights, color_range), strict=True):
                plane.update(np.full(plane.buffer_size, value, np.uint8))
            frame.pts, frame.time_base = i, Fraction(1, 10)
            frame.colorspace, frame.color_range = matrix, color_range
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def shown_colors(path: Path, backend: str = "pyav") -> tuple[np.ndarray, MediaFacts]:
    """Return one pixel of each frame, int [3, 3], and the facts."""
    with open_reader(str(path), backend) as reader:  # type: ignore[arg-type]
        return np.array([frame[5, 5] for frame in reader.frames(range(len(COLORS)))], int), reader.facts


@pytest.mark.parametrize("backend", ["pyav", "decord"])
@pytest.mark.parametrize(
    ("weights", "matrix", "color_range", "height"),
    [
        (BT_601, 2, UNSPECIFIED, 64),
        (BT_601, 2, UNSPECIFIED, 1080),  # players would assume BT.709, but FFmpeg and decord do not
        (BT_601, 2, FULL, 64),
        (BT_601, 5, LIMITED, 64),
        (BT_601, 6, FULL, 1080),
        (BT_709, 1, LIMITED, 64),
        (BT_709, 1, FULL, 1080),
        (BT_2020, 9, LIMITED, 64),
    ],
)
def test_colors_follow_the_tags(
    weights: tuple[float, float], matrix: int, color_range: int, height: int, backend: str, tmp_path: Path
) -> None:
    if backend == "decord":
        pytest.importorskip("decord")
    write_colors(tmp_path / "a.mkv", weights, matrix, color_range, height)
    colors, facts = shown_colors(tmp_path / "a.mkv", backend)
    assert np.abs(colors - COLORS).max() <= 4
    assert facts.notes == ()


@pytest.mark.parametrize("matrix", [8, 10, 11, 12, 13, 14, 15, 16, 17])
def test_an_unsupported_matrix_is_noted(matrix: int, tmp_path: Path) -> None:
    weights = BT_2020 if 10 <= matrix <= 15 else BT_601
    write_colors(tmp_path / "a.mkv", weights, matrix, LIMITED)
    colors, facts = shown_colors(tmp_path / "a.mkv")
    assert np.abs(colors - COLORS).max() <= 4  # what the closest supported matrix gives
    (note,) = facts.notes
    assert note_kind(note) == "colors"
    assert probe(str(tmp_path / "a.mkv")).notes == decode(str(tmp_path / "a.mkv")).facts.notes == (note,)
