"""Images: EXIF orientation, pixel formats, truncation, and the frames of animations."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numbered_videos import make_frame, read_number, read_numbers
from PIL import Image

from vidqa.errors import MediaError
from vidqa.media.container import MAX_PIXELS
from vidqa.media.decode import decode, open_reader
from vidqa.media.probe import probe
from vidqa.records import SamplingSpec

#: EXIF orientation -> function that turns an upright image into the stored one.
STORED = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, 1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](make_frame(123)))
    Image.fromarray(stored).save(tmp_path / "a.jpg", quality=95, exif=exif)
    media = decode(str(tmp_path / "a.jpg"))
    assert (media.facts.kind, media.facts.width, media.facts.height, media.backend) == ("image", 96, 64, "pillow")
    (segment,) = media.segments
    assert (segment.start_s, segment.end_s, segment.frames.kind) == (0.0, 0.0, "image")
    assert segment.frames.pixels.shape == (1, 64, 96, 3) and read_number(segment.frames.pixels[0]) == 123
    assert probe(str(tmp_path / "a.jpg"), count=True) == media.facts


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "tiff", "gif", "jp2", "avif"])
def test_formats(suffix: str, tmp_path: Path) -> None:
    Image.fromarray(make_frame(246)).save(tmp_path / f"a.{suffix}")
    media = decode(str(tmp_path / f"a.{suffix}"))
    assert media.facts.kind == "image" and media.facts.duration_s is None
    assert read_number(media.segments[0].frames.pixels[0]) == 246


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("LA", (0, 0), (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 257 * 100, (100, 100, 100)),
        ("P", 5, None),
    ],
)
def test_modes(mode: str, color: int | tuple, expected: tuple | None, tmp_path: Path) -> None:
    Image.new(mode, (8, 8), color).save(tmp_path / "a.png")
    pixels = decode(str(tmp_path / "a.png")).segments[0].frames.pixels
    assert pixels.shape == (1, 8, 8, 3)
    if expected:
        assert np.abs(pixels.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "avif"])
def test_animations(suffix: str, tmp_path: Path) -> None:
    images = [Image.fromarray(make_frame(i)) for i in range(12)]
    delays = [100, 200, 300, 100, 100, 100, 400, 100, 100, 100, 100, 200]
    options = {"lossless": True} if suffix == "webp" else {"quality": 95} if suffix == "avif" else {}
    path = tmp_path / f"a.{suffix}"
    images[0].save(path, save_all=True, append_images=images[1:], duration=delays, loop=0, **options)
    media = decode(str(path), video=SamplingSpec("linspace", 4))
    assert (media.facts.kind, media.facts.n_frames_from_content) == ("video", 12)
    assert media.facts.duration_s == pytest.approx(1.9, abs=0.011)
    frames = media.segments[0].frames
    assert read_numbers(frames.pixels) == [0, 3, 7, 11]
    assert frames.pts_s == pytest.approx([0.0, 0.6, 1.3, 1.7], abs=0.011)
    with open_reader(str(path)) as reader:
        assert read_numbers(list(reader.frames([9, 2, 11]))) == [9, 2, 11]


def test_an_image_can_be_sampled_like_a_video(tmp_path: Path) -> None:
    Image.fromarray(make_frame(5)).save(tmp_path / "a.png")
    frames = decode(str(tmp_path / "a.png"), image=SamplingSpec("linspace", 8)).segments[0].frames
    assert frames.pixels.shape == (8, 64, 96, 3) and frames.repeated.tolist() == [False] + [True] * 7


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tiff", "gif"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_truncated_images_are_unreadable(suffix: str, kept: float, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(MediaError) as caught:
        decode(str(path))
    assert caught.value.kind == "unreadable"


def test_images_above_the_pixel_limit(tmp_path: Path) -> None:
    Image.new("1", (8, 8)).save(tmp_path / "huge.png")
    data = bytearray((tmp_path / "huge.png").read_bytes())
    data[16:24] = struct.pack(">II", 20_000, 16_384)  # a small file whose header claims 328 megapixels
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "huge.png").write_bytes(data)
    for attempt in (decode, probe):
        with pytest.raises(MediaError) as caught:
            attempt(str(tmp_path / "huge.png"))
        assert caught.value.kind == "too_large"
    assert MAX_PIXELS == 1 << 27  # accepts 108 megapixels of a phone, not 16,384 x 16,384
