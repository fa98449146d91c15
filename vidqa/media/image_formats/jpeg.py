"""JPEG files that contain more than one image: the stream of a camera, or a photo followed by other data.

IP cameras write JPEG images one after another (Motion JPEG). A photo may be followed by the second view of a stereo
camera, a preview, a gain map, or the video of a motion photo.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Part of a file that `is_jpeg_sequence` needs: two images of a camera are shorter.
JPEG_SEQUENCE_BYTES = 32 << 20

_SOI, _EOI, _SOS, _APP2 = 0xD8, 0xD9, 0xDA, 0xE2
_SIZE_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame
#: End of compressed data: a marker other than a restart marker or an escaped 0xFF.
_MARKER = re.compile(rb"\xff(?=[^\x00\xd0-\xd7\xff])")
#: Padding that cameras write between two images.
_NEXT_IMAGE = re.compile(rb"[\x00\xff\r\n]{0,4096}?(?=\xff\xd8\xff)")


@dataclass(frozen=True)
class _JpegHeader:
    size: bytes  # height and width as stored
    has_index: bool  # an MPF index lists the images of the file
    data_at: int  # offset of the compressed data


def is_jpeg_sequence(data: bytes) -> bool:
    """Return whether a JPEG image is followed by another one of the same size, as in the stream of a camera.

    Args:
        data: the first `JPEG_SEQUENCE_BYTES` bytes of a file, starting with a JPEG image.
    """
    first = _header(data, 0)
    if first is None or first.has_index:
        return False
    end = _MARKER.search(data, first.data_at)
    while end and data[end.end()] not in (_SOI, _EOI):  # a further scan of a progressive image, or its tables
        end = _MARKER.search(data, end.end())
    if end is None:
        return False
    # Some cameras do not write the end marker.
    following = _NEXT_IMAGE.match(data, end.start() if data[end.end()] == _SOI else end.start() + 2)
    second = _header(data, following.end()) if following else None
    return second is not None and second.size == first.size


def _header(data: bytes, at: int) -> _JpegHeader | None:
    """Read the segments from the start of an image to its first scan; None if there is none."""
    size, has_index, at = None, False, at + 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4])
        if marker in _SIZE_MARKERS:
            size = data[at + 5 : at + 9]
        has_index |= marker == _APP2 and data[at + 4 : at + 8] == b"MPF\0"
        at += 2 + length
        if marker == _SOS:
            return _JpegHeader(size, has_index, at) if size else None
    return None
