"""What Pillow does not report about PNG files: the bits per channel, and whether the image data is complete."""

from __future__ import annotations

import struct
import zlib

_DEPTH_AT = 24  # offset of the bits per channel in the file


def depth(path: str) -> int:
    """Return the bits per channel: 1, 2, 4, 8 or 16.

    Args:
        path: path of a PNG file.
    """
    with open(path, "rb") as f:
        f.seek(_DEPTH_AT)
        return f.read(1)[0]


def damage(path: str) -> str | None:
    """Return `truncated`, `damaged`, or None for an intact file. Pillow leaves missing rows blank without an error.

    Args:
        path: path of a PNG file.
    """
    with open(path, "rb") as f:
        f.seek(8)  # after the signature
        while len(head := f.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            content, checksum = f.read(length), f.read(4)
            if len(checksum) < 4:
                break
            if kind == b"IEND":
                return None
            if kind == b"IDAT" and zlib.crc32(content, zlib.crc32(kind)) != int.from_bytes(checksum):
                return "damaged"
    return "truncated"
