"""Properties of HEIF files (HEIC, AVIF) that the decoders ignore: cropping, transparency, further images.

A HEIF file lists its images as items. One is the primary item; others are thumbnails, tiles, or auxiliary images such
as an alpha plane. Every item has properties, for example a clean aperture, which crops it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from vidqa.media.files import file_error

_ALPHA = (b"urn:mpeg:hevc:2015:auxid:1\0", b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0")
_NO_IMAGES = (b"Exif", b"mime", b"uri ")
#: Limit for a damaged length.
_MAX_META_BYTES = 16 << 20


@dataclass(frozen=True)
class HeifInfo:
    """Properties of the primary item, and the number of images."""

    crop: tuple[int, int, int, int] | None = None  # left, top, right, bottom in stored pixels, before the rotation
    has_alpha: bool = False
    n_images: int = 1  # that a viewer lists: without thumbnails, tiles and auxiliary images


def read_heif(path: str) -> HeifInfo:
    """Read the properties of a HEIF file. A damaged or missing list of items counts as an ordinary image.

    Args:
        path: path of the file.

    Raises:
        MediaError: missing, permission, unreadable.
    """
    try:
        meta = _read_meta(path)
    except (OSError, ValueError) as e:
        raise file_error(path, e) from e
    try:
        return _parse(meta) if meta else HeifInfo()
    except (struct.error, IndexError, KeyError, ZeroDivisionError):
        return HeifInfo()


def image_notes(path: str) -> tuple[str, ...]:
    """Return a note for `MediaFacts` if a HEIF file has several images, of which only the primary one is shown.

    Args:
        path: path of the file.

    Raises:
        MediaError: as `read_heif`.
    """
    n = read_heif(path).n_images
    return (f"1 of {n} images",) if n > 1 else ()


def _read_meta(path: str) -> bytes:
    """Return the content of the box `meta`; empty if there is none."""
    with open(path, "rb") as f:
        while len(head := f.read(8)) == 8:
            size, kind = struct.unpack(">I4s", head)
            n_head = 8
            if size == 1:
                size, n_head = int.from_bytes(f.read(8)), 16
            if kind == b"meta":
                return f.read(min(max(0, size - n_head), _MAX_META_BYTES))
            if size < n_head:  # damaged, or up to the end of the file
                break
            f.seek(size - n_head, 1)
    return b""


def _parse(meta: bytes) -> HeifInfo:
    boxes = dict(_boxes(meta[4:]))
    pitm = boxes[b"pitm"]
    primary = int.from_bytes(pitm[4:8] if pitm[0] else pitm[4:6])
    references = list(_references(boxes.get(b"iref", b"\0\0\0\0")))
    properties = _properties(boxes[b"iprp"])
    auxiliary = {item for kind, item, targets in references if kind == b"auxl" and primary in targets}
    has_alpha = any(
        kind == b"auxC" and content[4:].startswith(_ALPHA)
        for item in auxiliary
        for kind, content in properties.get(item, ())
    )
    parts = {item for kind, item, _ in references if kind in (b"thmb", b"auxl")}
    parts |= {target for kind, _, targets in references if kind == b"dimg" for target in targets}
    n_images = len(set(_visible_items(boxes[b"iinf"])) - parts)
    return HeifInfo(_crop(dict(properties.get(primary, ()))), has_alpha, max(1, n_images))


def _crop(properties: dict[bytes, bytes]) -> tuple[int, int, int, int] | None:
    """Return the clean aperture in pixels; None if it is missing, invalid, or the whole image."""
    if b"clap" not in properties or b"ispe" not in properties:
        return None
    width, height = struct.unpack(">II", properties[b"ispe"][4:12])
    n = struct.unpack(">IIIIiIiI", properties[b"clap"][:32])
    cropped = [Fraction(n[i], n[i + 1]) for i in (0, 2, 4, 6)]  # width, height, offsets of the center
    left, top = (width - cropped[0]) / 2 + cropped[2], (height - cropped[1]) / 2 + cropped[3]
    box = round(left), round(top), round(left + cropped[0]), round(top + cropped[1])
    valid = 0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height
    return box if valid and box != (0, 0, width, height) else None


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and content of every box."""
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if size < 8:
            return
        yield kind, data[at + 8 : at + size]
        at += size


def _visible_items(iinf: bytes) -> Iterator[int]:
    """Yield the ids of images that are not hidden."""
    for kind, content in _boxes(iinf[6:] if iinf[0] == 0 else iinf[8:]):
        if kind == b"infe" and content[0] >= 2 and not content[3] & 1:
            n = 2 if content[0] == 2 else 4
            if content[6 + n : 10 + n] not in _NO_IMAGES:
                yield int.from_bytes(content[4 : 4 + n])


def _references(iref: bytes) -> Iterator[tuple[bytes, int, list[int]]]:
    """Yield kind, source and targets of every reference between items."""
    n = 4 if iref[0] else 2
    for kind, content in _boxes(iref[4:]):
        ids = [int.from_bytes(content[i : i + n]) for i in range(n + 2, len(content), n)]
        yield kind, int.from_bytes(content[:n]), ids


def _properties(iprp: bytes) -> dict[int, list[tuple[bytes, bytes]]]:
    """Return kind and content of the properties of every item."""
    boxes = list(_boxes(iprp))
    properties = list(_boxes(dict(boxes)[b"ipco"]))
    found: dict[int, list[tuple[bytes, bytes]]] = {}
    for kind, content in boxes:
        if kind != b"ipma":
            continue
        n_id, n_index = 4 if content[0] else 2, 2 if content[3] & 1 else 1
        at = 8
        for _ in range(int.from_bytes(content[4:8])):
            item, n = int.from_bytes(content[at : at + n_id]), content[at + n_id]
            at += n_id + 1
            numbers = [int.from_bytes(content[at + i * n_index : at + (i + 1) * n_index]) for i in range(n)]
            at += n * n_index
            mask = 0x7FFF if n_index == 2 else 0x7F  # without the bit `essential`
            found.setdefault(item, []).extend(properties[i - 1] for m in numbers if (i := m & mask))
    return found
