"""Images: EXIF orientation, pixel formats, truncation, and the frames of animations."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numbered_videos import assert_white_below, make_frame, on_transparent_red, read_number, read_numbers
from PIL import Image, TiffImagePlugin

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
@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("a.jpg", "RGB", {"quality": 95}),
        ("a.png", "RGB", {}),
        ("a.png", "I;16", {}),
        ("a.webp", "RGB", {"quality": 95}),
        ("a.avif", "RGB", {"quality": 95}),
        ("a.tif", "RGB", {}),
        ("a.tif", "RGB", {"compression": "tiff_lzw"}),
        ("a.tif", "RGB", {"compression": "jpeg", "quality": 95}),
        ("a.tif", "I;16", {}),
        ("a.tif", "F", {}),
        ("a.tif", "RGBA", {}),
    ],
)
def test_orientation(orientation: int, name: str, mode: str, options: dict, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](make_frame(123)))
    image = Image.fromarray(stored)
    if mode == "I;16":
        image = Image.fromarray(stored[..., 0].astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(stored[..., 0].astype(np.float32) / 255)
    elif mode == "RGBA":
        image = image.convert("RGBA")
    image.save(tmp_path / name, exif=exif, **options)
    media = decode(str(tmp_path / name))
    assert (media.facts.kind, media.facts.width, media.facts.height, media.backend) == ("image", 96, 64, "pillow")
    (segment,) = media.segments
    assert (segment.start_s, segment.end_s, segment.frames.kind) == (0.0, 0.0, "image")
    assert segment.frames.pixels.shape == (1, 64, 96, 3) and read_number(segment.frames.pixels[0]) == 123
    assert probe(str(tmp_path / name), count=True) == media.facts
    header = probe(str(tmp_path / name))
    assert (header.width, header.height, header.rotation_deg) == (96, 64, media.facts.rotation_deg)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_orientation_of_an_animation(suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    images = [Image.fromarray(np.ascontiguousarray(np.rot90(make_frame(i), 1))) for i in range(3)]
    options = {"lossless": True} if suffix == "webp" else {}
    path = tmp_path / f"a.{suffix}"
    images[0].save(path, save_all=True, append_images=images[1:], duration=100, exif=exif, **options)
    media = decode(str(path), video=SamplingSpec("linspace", 3))
    assert read_numbers(media.segments[0].frames.pixels) == [0, 1, 2]


@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\0\0", b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\x7f"])
def test_damaged_exif_data_is_ignored(exif: bytes, tmp_path: Path) -> None:
    Image.fromarray(make_frame(7)).save(tmp_path / "a.jpg", quality=95, exif=exif)
    assert read_number(decode(str(tmp_path / "a.jpg")).segments[0].frames.pixels[0]) == 7


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


def test_every_mode_of_tiff(tmp_path: Path) -> None:
    gray = make_frame(246)[..., 0]
    scaled = np.where(gray > 0, gray / 255, np.nan).astype(np.float32)  # NaN is shown in black
    scaled[0, 0] = np.inf
    for number, image in enumerate([
        Image.fromarray(scaled),
        Image.fromarray(gray / np.float32(2) + 400 * (gray > 200)),  # values above 1 set the white level
        Image.fromarray(gray.astype(np.int32) * 257),
        *(Image.fromarray(gray).convert(mode) for mode in ("L", "LA", "P", "RGB", "RGBA", "CMYK")),
    ]):  # fmt: skip
        image.save(tmp_path / f"{number}.tif")
        pixels = decode(str(tmp_path / f"{number}.tif")).segments[0].frames.pixels
        assert pixels.shape == (1, 64, 96, 3)
        if number != 1:
            assert read_number(pixels[0]) == 246, image.mode


def png(depth: int, color_type: int, row: bytes, transparent: bytes) -> bytes:
    """A PNG of two pixels, of which the first has the transparent value."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, depth, color_type, 0, 0, 0))
    rest = chunk(b"tRNS", transparent) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + rest


@pytest.mark.parametrize(
    ("data", "second"),
    [
        (png(1, 0, b"\x40", b"\0\0"), 255),
        (png(2, 0, b"\x60", b"\0\1"), 170),
        (png(4, 0, b"\x3a", b"\0\3"), 170),
        (png(8, 0, b"\x03\xc8", b"\0\x03"), 200),
        (png(16, 0, struct.pack(">2H", 1000, 40000), struct.pack(">H", 1000)), 155),
        (png(8, 2, b"\1\2\3\xc8\xc8\xc8", b"\0\1\0\2\0\3"), 200),
        (png(16, 2, struct.pack(">6H", 1000, 2000, 3000, *[40000] * 3), struct.pack(">3H", 1000, 2000, 3000)), 156),
    ],
)
def test_a_transparent_value_is_white(data: bytes, second: int, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(data)
    assert decode(str(tmp_path / "a.png")).segments[0].frames.pixels[0, 0].tolist() == [[255] * 3, [second] * 3]


@pytest.mark.parametrize("suffix", ["png", "gif", "webp", "avif", "tif", "jp2"])
@pytest.mark.parametrize("n_frames", [1, 3])
def test_transparent_areas_are_white(suffix: str, n_frames: int, tmp_path: Path) -> None:
    if n_frames > 1 and suffix in ("tif", "jp2"):
        pytest.skip("not an animation")
    images = [Image.fromarray(on_transparent_red(i)) for i in range(n_frames)]
    options = {"lossless": True, "exact": True} if suffix == "webp" else {"quality": 95} if suffix == "avif" else {}
    if n_frames > 1:
        options |= {"save_all": True, "append_images": images[1:], "duration": 100}
    images[0].save(tmp_path / f"a.{suffix}", **options)
    media = decode(str(tmp_path / f"a.{suffix}"), video=SamplingSpec("linspace", 3))
    assert (media.facts.kind, media.facts.n_frames_from_content) == ("video" if n_frames > 1 else "image", n_frames)
    for pixels in media.segments[0].frames.pixels:
        assert_white_below(pixels)


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


def gradient() -> Image.Image:
    """An image without blank rows, 300 x 200."""
    y, x = np.mgrid[:200, :300]
    noise = np.random.default_rng(0).integers(0, 9, x.shape)
    return Image.fromarray(np.stack([x * 0.8 + noise, y + 40, (x + y) / 2], -1).astype(np.uint8))


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("a.jpg", "RGB", {"quality": 90}),
        ("a.jpg", "L", {"quality": 90}),
        ("a.jpg", "CMYK", {"quality": 90}),
        ("a.png", "RGB", {}),
        ("a.png", "RGBA", {}),
        ("a.gif", "RGB", {"interlace": 0}),
        ("a.gif", "RGB", {"interlace": 1}),
        ("a.bmp", "RGB", {}),
        ("a.tif", "RGB", {}),
    ],
)
@pytest.mark.parametrize("kept", [0.5, 0.95])
def test_the_rows_of_a_truncated_image(kept: float, name: str, mode: str, options: dict, tmp_path: Path) -> None:
    path = tmp_path / name
    gradient().convert(mode).save(path, **options)
    whole = decode(str(path)).segments[0].frames.pixels[0]
    assert decode(str(path)).facts.notes == ()
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    media = decode(str(path))
    (note,) = media.facts.notes
    share = int(note.removeprefix("truncated: ").removesuffix("% of the rows readable"))
    assert 100 * kept - 12 <= share <= 100 * kept + 4
    pixels = media.segments[0].frames.pixels[0]
    assert pixels.shape == whole.shape and (media.facts.width, media.facts.height) == (300, 200)
    n = 200 * share // 100 - 32  # without the last blocks of a JPEG
    same = slice(200 - n, 200) if name == "a.bmp" else slice(0, n)
    if options != {"interlace": 1}:
        assert np.array_equal(pixels[same], whole[same])
    assert np.abs(pixels[::8].astype(int) - whole[::8]).mean() < 90


def test_a_truncated_progressive_jpeg_lacks_details(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    gradient().save(path, progressive=True)
    whole = decode(str(path)).segments[0].frames.pixels[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    media = decode(str(path))
    assert media.facts.notes == ("truncated: a part of the image data is missing",)
    assert np.abs(media.segments[0].frames.pixels[0].astype(int) - whole).mean() < 5


def test_a_damaged_png(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    gradient().save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    path.write_bytes(data)
    (note,) = decode(str(path)).facts.notes
    assert note.startswith("damaged: ") and note.endswith("% of the rows readable")


@pytest.mark.parametrize(("suffix", "kept"), [("gif", 0.5), ("png", 0.5), ("png", 0.95)])
def test_the_frames_of_a_truncated_animation(suffix: str, kept: float, tmp_path: Path) -> None:
    images, path = [Image.fromarray(np.roll(np.asarray(gradient()), 9 * i, 1)) for i in range(12)], tmp_path / "a"
    images[0].save(path, suffix, save_all=True, append_images=images[1:], duration=100)
    whole = decode(str(path), video=SamplingSpec("linspace", 12)).segments[0].frames.pixels
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    media = decode(str(path), video=SamplingSpec("linspace", 2))
    n = media.facts.n_frames_from_content
    assert 12 * kept - 2 <= n <= 12 * kept and media.facts.duration_s == pytest.approx(n / 10)
    claimed = {"gif": n + 1, "png": 12}[suffix]  # a GIF does not state its number of frames
    assert media.facts.notes == (f"truncated: {n} of {claimed} frames readable",)
    assert np.array_equal(media.segments[0].frames.pixels, whole[[0, n - 1]])


@pytest.mark.parametrize(
    ("suffix", "kept"),
    [(s, k) for s in ("webp", "jp2", "avif") for k in (0.1, 0.5, 0.95)]
    + [("jpg", 0.02), ("gif", 0.02), ("png", 0.001)],
)
def test_nothing_readable_fails(suffix: str, kept: float, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    gradient().save(path)
    path.write_bytes(path.read_bytes()[: max(12, int(path.stat().st_size * kept))])
    with pytest.raises(MediaError) as caught:
        decode(str(path))
    assert caught.value.kind == "unreadable"


def test_pages_are_noted(tmp_path: Path) -> None:
    pages = [Image.fromarray(make_frame(i)) for i in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    media = decode(str(tmp_path / "a.tif"))
    assert (media.facts.kind, media.facts.notes) == ("image", ("1 of 3 pages",))
    assert read_number(media.segments[0].frames.pixels[0]) == 0
    assert probe(str(tmp_path / "a.tif"), count=True) == media.facts
    pages[0].save(tmp_path / "b.tif")
    assert decode(str(tmp_path / "b.tif")).facts.notes == ()


def test_reduced_versions_and_masks_are_no_pages(tmp_path: Path) -> None:
    with TiffImagePlugin.AppendingTiffWriter(str(tmp_path / "a.tif"), new=True) as file:
        for kind in (0, 1, 4):  # the image, a thumbnail, a transparency mask
            Image.fromarray(make_frame(9)).save(file, "TIFF", tiffinfo={254: kind})
            file.newFrame()
    with Image.open(tmp_path / "a.tif") as image:
        assert image.n_frames == 3
    assert decode(str(tmp_path / "a.tif")).facts.notes == ()


def test_big_tiff(tmp_path: Path) -> None:
    Image.fromarray(make_frame(9)).save(tmp_path / "a.tif", big_tiff=True)
    assert read_number(decode(str(tmp_path / "a.tif")).segments[0].frames.pixels[0]) == 9


def test_views_are_noted_but_not_previews_and_gain_maps(tmp_path: Path) -> None:
    first, second, path = Image.fromarray(make_frame(1)), Image.fromarray(make_frame(2)), tmp_path / "a.jpg"
    first.save(path, "MPO", save_all=True, append_images=[second], quality=95)
    media = decode(str(path))
    assert (media.facts.kind, media.facts.notes) == ("image", ("1 of 2 views",))
    assert read_number(media.segments[0].frames.pixels[0]) == 1
    first.save(path, "MPO", save_all=True, append_images=[second.resize((48, 32))])
    assert decode(str(path)).facts.notes == ()
    first.save(path, "MPO", save_all=True, append_images=[second], xmp=b'<x hdrgm:Version="1.0"/>')
    assert decode(str(path)).facts.notes == ()


def test_images_above_the_pixel_limit(tmp_path: Path) -> None:
    Image.new("1", (8, 8)).save(tmp_path / "huge.png")
    data = bytearray((tmp_path / "huge.png").read_bytes())
    data[16:24] = struct.pack(">II", 20_000, 16_384)  # a small file whose header claims 328 megapixels
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "huge.png").write_bytes(data)
    for attempt in (decode, probe):
        with pytest.raises(MediaError) as caught:
            attempt(str(tmp_path / "huge.png"))
        assert caught.value.kind == "too_large" and str(MAX_PIXELS) in caught.value.what
    assert MAX_PIXELS == 1 << 27  # accepts 108 megapixels of a phone, not 16,384 x 16,384
