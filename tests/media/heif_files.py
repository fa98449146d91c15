"""Write HEIC files, box by box: neither Pillow nor FFmpeg can."""

from __future__ import annotations

import io
import struct

import av
import numpy as np


def box(kind: bytes, *content: bytes) -> bytes:
    """A box: its size, its kind, its content."""
    body = b"".join(content)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def full_box(kind: bytes, *content: bytes, version: int = 0) -> bytes:
    """A box with a version and flags."""
    return box(kind, bytes([version, 0, 0, 0]), *content)


def size_property(width: int, height: int) -> bytes:
    """Size of an image."""
    return full_box(b"ispe", struct.pack(">II", width, height))


def clean_aperture(width: int, height: int, right: int = 0, down: int = 0) -> bytes:
    """Visible part of an image; its center is moved by `right` and `down`."""
    return box(b"clap", struct.pack(">IIIIiIiI", width, 1, height, 1, right, 1, down, 1))


def auxiliary(urn: bytes) -> bytes:
    """Kind of an auxiliary image."""
    return full_box(b"auxC", urn + b"\0")


ALPHA = auxiliary(b"urn:mpeg:hevc:2015:auxid:1")


def hevc_image(pixels: np.ndarray) -> tuple[bytes, bytes]:
    """Encode uint8 RGB [H, W, 3] as (decoder configuration, coded image)."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(
            "libx265", rate=1, options={"x265-params": "log-level=none:crf=10:ctu=16:keyint=1"}
        )
        stream.height, stream.width = pixels.shape[:2]
        stream.pix_fmt = "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    data = file.getvalue()
    at = data.index(b"hvcC")
    configuration = data[at - 4 : at - 4 + int.from_bytes(data[at - 4 : at])]
    with av.open(io.BytesIO(data)) as container:
        return configuration, bytes(next(container.demux(video=0)))


def heic_file(
    items: dict[int, bytes],
    properties: list[bytes],
    used: dict[int, list[int]],
    references: list[tuple[bytes, int, list[int]]] | None = None,
) -> bytes:
    """A HEIC file whose primary item is the first one.

    Args:
        items: coded images by id.
        properties: boxes of properties.
        used: for each item, the numbers of its properties, from 1.
        references: kind, source and targets of references between items.
    """
    ftyp = box(b"ftyp", b"heic\0\0\0\0mif1heic")

    def meta(offset: int) -> bytes:
        places = b""
        for item, data in items.items():
            places += struct.pack(">HHHII", item, 0, 1, offset, len(data))
            offset += len(data)
        entries = [full_box(b"infe", struct.pack(">HH4sB", item, 0, b"hvc1", 0), version=2) for item in items]
        links = [
            box(kind, struct.pack(f">HH{len(targets)}H", item, len(targets), *targets))
            for kind, item, targets in references or []
        ]
        associations = [struct.pack(">HB", item, len(ns)) + bytes(0x80 | n for n in ns) for item, ns in used.items()]
        return full_box(
            b"meta",
            full_box(b"hdlr", b"\0\0\0\0pict" + bytes(13)),
            full_box(b"pitm", struct.pack(">H", next(iter(items)))),
            full_box(b"iloc", b"\x44\0", struct.pack(">H", len(items)), places),
            full_box(b"iinf", struct.pack(">H", len(items)), *entries),
            full_box(b"iref", *links) if links else b"",
            box(
                b"iprp",
                box(b"ipco", *properties),
                full_box(b"ipma", struct.pack(">I", len(used)), *associations),
            ),
        )

    return ftyp + meta(len(ftyp) + len(meta(0)) + 8) + box(b"mdat", *items.values())
