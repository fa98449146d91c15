"""HEIC and AVIF: hidden parts are never shown, and further images are noted."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from heif_files import ALPHA, auxiliary, box, clean_aperture, heic_file, hevc_image, size_property
from numbered_videos import make_frame, read_number
from PIL import Image

from vidqa.errors import MediaError
from vidqa.media.decode import decode
from vidqa.media.image_formats.heif import HeifInfo, read_heif
from vidqa.media.probe import probe

SIZE = size_property(96, 64)


@pytest.fixture(scope="module")
def image() -> tuple[bytes, bytes]:
    return hevc_image(make_frame(246))


@pytest.fixture(scope="module")
def other() -> tuple[bytes, bytes]:
    return hevc_image(make_frame(1))


def shown(path: Path) -> np.ndarray:
    media = decode(str(path))
    assert media.facts.kind == "image" and probe(str(path), count=True) == media.facts
    pixels: np.ndarray = media.segments[0].frames.pixels[0]
    assert pixels.shape == (media.facts.height, media.facts.width, 3)
    return pixels


@pytest.mark.parametrize(
    "extra",
    [[], [clean_aperture(96, 64)], [box(b"irot", b"\0")], [clean_aperture(300, 10)]],
)
def test_an_ordinary_image(image, extra: list[bytes], tmp_path: Path) -> None:
    configuration, data = image
    used = list(range(1, 3 + len(extra)))
    (tmp_path / "a.heic").write_bytes(heic_file({1: data}, [configuration, SIZE, *extra], {1: used}))
    assert read_number(shown(tmp_path / "a.heic")) == 246
    assert read_heif(str(tmp_path / "a.heic")) == HeifInfo()


def test_rotation(image, tmp_path: Path) -> None:
    configuration, data = hevc_image(np.ascontiguousarray(np.rot90(make_frame(246), -1)))
    properties = [configuration, size_property(64, 96), box(b"irot", b"\1")]  # 90 degrees counterclockwise
    (tmp_path / "a.heic").write_bytes(heic_file({1: data}, properties, {1: [1, 2, 3]}))
    assert read_number(shown(tmp_path / "a.heic")) == 246


@pytest.mark.parametrize("urn", [b"urn:mpeg:hevc:2015:auxid:1", b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha"])
def test_a_transparent_heic_is_refused(image, other, urn: bytes, tmp_path: Path) -> None:
    properties = [image[0], SIZE, other[0], auxiliary(urn)]
    used = {1: [1, 2], 2: [3, 2, 4]}
    (tmp_path / "a.heic").write_bytes(heic_file({1: image[1], 2: other[1]}, properties, used, [(b"auxl", 2, [1])]))
    for attempt in (decode, probe):
        with pytest.raises(MediaError, match="transparency") as caught:
            attempt(str(tmp_path / "a.heic"))
        assert caught.value.kind == "unsupported"


def test_a_cropped_heic_is_refused(image, tmp_path: Path) -> None:
    properties = [image[0], SIZE, clean_aperture(48, 32)]
    (tmp_path / "a.heic").write_bytes(heic_file({1: image[1]}, properties, {1: [1, 2, 3]}))
    assert read_heif(str(tmp_path / "a.heic")).crop == (24, 16, 72, 48)
    with pytest.raises(MediaError, match="clean aperture") as caught:
        decode(str(tmp_path / "a.heic"))
    assert caught.value.kind == "unsupported"


@pytest.mark.parametrize(
    ("references", "extra", "notes"),
    [
        ([], [], ("1 of 2 images",)),
        ([(b"thmb", 2, [1])], [], ()),
        ([(b"auxl", 2, [1])], [auxiliary(b"urn:com:apple:photo:2020:aux:hdrgainmap")], ()),
    ],
)
def test_further_images_are_noted(image, other, references: list, extra: list, notes: tuple, tmp_path: Path) -> None:
    properties = [image[0], SIZE, other[0], *extra]
    used = {1: [1, 2], 2: [3, 2] + [4] * len(extra)}
    (tmp_path / "a.heic").write_bytes(heic_file({1: image[1], 2: other[1]}, properties, used, references))
    assert read_number(shown(tmp_path / "a.heic")) == 246
    assert decode(str(tmp_path / "a.heic")).facts.notes == notes


def test_transparent_avif(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    clear.paste((255, 0, 0, 255), (16, 16, 48, 48))
    clear.save(tmp_path / "a.avif", quality=90)
    pixels = shown(tmp_path / "a.avif")
    assert pixels[4, 4].min() > 245 and pixels[32, 32].tolist() == pytest.approx([255, 0, 0], abs=12)
    assert decode(str(tmp_path / "a.avif")).facts.codec == "av1"


@pytest.mark.parametrize("orientation", [1, 6])
def test_cropped_avif(orientation: int, tmp_path: Path) -> None:
    """The numbered frame is the visible part of a larger image that is white everywhere else."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    inner = make_frame(246) if orientation == 1 else np.rot90(make_frame(246), 1)
    height, width = inner.shape[:2]
    whole = np.full((192, 192, 3), 255, np.uint8)
    whole[32 : 32 + height, 48 : 48 + width] = inner
    Image.fromarray(whole).save(tmp_path / "a.avif", quality=90, exif=exif)
    assert shown(tmp_path / "a.avif").shape == (192, 192, 3)
    aperture = clean_aperture(width, height, 48 + width // 2 - 96, 32 + height // 2 - 96)
    (tmp_path / "a.avif").write_bytes(with_property((tmp_path / "a.avif").read_bytes(), aperture))
    assert read_number(shown(tmp_path / "a.avif")) == 246


def with_property(data: bytes, content: bytes) -> bytes:
    """Replace the optional property `pixi` of an AVIF file with one image."""
    at = data.index(b"pixi") - 4
    old = data[at : at + int.from_bytes(data[at : at + 4])]
    data = data.replace(b"\x01\x02\x83", b"\x01\x82\x83")  # libavif requires the bit `essential` for a crop
    changed = bytearray(data.replace(old, content))
    places = [data.index(kind) - 4 for kind in (b"meta", b"iprp", b"ipco")]  # sizes of the boxes around it
    places.append(data.index(b"iloc") + 18)  # offset of the image in the file
    for place in places:
        value = int.from_bytes(changed[place : place + 4]) + len(content) - len(old)
        changed[place : place + 4] = value.to_bytes(4)
    return bytes(changed)


def test_damaged_boxes_count_as_an_ordinary_image(image, other, tmp_path: Path) -> None:
    """Any change of the boxes gives some result, and no other error."""
    properties = [image[0], SIZE, other[0], ALPHA, clean_aperture(48, 32)]
    used = {1: [1, 2, 5], 2: [3, 2, 4]}
    whole = heic_file({1: image[1], 2: other[1]}, properties, used, [(b"auxl", 2, [1])])
    rng, path = random.Random(0), tmp_path / "a.heic"
    for _ in range(500):
        data = bytearray(whole[: whole.index(b"mdat")])
        data[rng.randrange(24, len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.randrange(30, len(data) + 1)] if rng.random() < 0.3 else data)
        assert isinstance(read_heif(str(path)), HeifInfo)
