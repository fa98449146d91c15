"""Video with an alpha channel: transparent areas are white, also after seeking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numbered_videos import (
    HEIGHT,
    WIDTH,
    assert_white_below,
    make_frame,
    on_transparent_red,
    read_number,
    write_video,
)

from vidqa.errors import MediaError
from vidqa.media.decode import decode, open_reader
from vidqa.media.probe import probe


def number_of(pixels: np.ndarray) -> int:
    """Read the number of a frame without checking its lower part."""
    upright = pixels.copy()
    upright[48:] = 0
    return read_number(upright)


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "options"),
    [
        ("a.webm", "libvpx-vp9", "yuva420p", {"auto-alt-ref": "0"}),
        ("a.webm", "libvpx", "yuva420p", {"auto-alt-ref": "0"}),
        ("a.mkv", "libvpx-vp9", "yuva420p", {"auto-alt-ref": "0"}),
        ("a.mov", "prores_ks", "yuva444p10le", {}),
        ("a.mov", "qtrle", "argb", {}),
        ("a.mov", "png", "rgba", {}),
        ("a.avi", "utvideo", "gbrap", {}),
        ("a.mkv", "ffv1", "bgra", {}),
        ("a.avi", "rawvideo", "bgra", {}),
        ("a.mov", "tiff", "rgba", {}),
    ],
)
def test_transparent_areas_are_white(name: str, codec: str, pix_fmt: str, options: dict, tmp_path: Path) -> None:
    path = write_video(tmp_path / name, codec, 30, frame=on_transparent_red, pix_fmt=pix_fmt, **options)
    assert probe(str(path)).kind == "video"
    frames = decode(str(path)).segments[0].frames.pixels
    assert [number_of(f) for f in frames] == [0, 4, 8, 12, 16, 20, 24, 29]
    for pixels in frames:
        assert_white_below(pixels)
    with open_reader(str(path)) as reader:
        for number, pixels in zip((25, 3, 28, 13), reader.frames([25, 3, 28, 13]), strict=True):
            assert number_of(pixels) == number
            assert_white_below(pixels)


def test_an_unused_fourth_channel_is_ignored(tmp_path: Path) -> None:
    """Programs that store RGB with 32 bits leave zeros in the fourth channel."""

    def frame(number: int) -> np.ndarray:
        return np.dstack([make_frame(number), np.zeros((HEIGHT, WIDTH), np.uint8)])

    path = write_video(tmp_path / "a.avi", "rawvideo", 3, frame=frame, pix_fmt="bgra")
    assert [number_of(p) for p in decode(str(path)).segments[0].frames.pixels[[0, 7]]] == [0, 2]


def test_decord_is_not_used_for_transparent_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mov", "png", 5, frame=on_transparent_red, pix_fmt="rgba")
    with pytest.raises(MediaError, match=r"decord ignores transparency|decord is not installed") as caught:
        decode(str(path), backend="decord")
    assert caught.value.kind == "unsupported"
