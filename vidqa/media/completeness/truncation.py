"""Path of a video -> whether the end of the file is missing, judged by the structure of its container.

An interrupted download or a full disk ends a file in the middle of an element that states its own length. Only these
lengths are read, a few bytes each, and never the video itself. Containers without lengths are taken for complete.
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

#: Bytes at the end of a file that contain at least one complete element of a program stream or an Ogg file.
_TAIL_BYTES = 1 << 17
#: Bytes at the start of a file that contain the header of an ASF file or of a fragmented MP4.
_HEAD_BYTES = 1 << 16
#: So many zeros instead of an element were never written. Padding to the next sector is shorter.
_N_ZEROS = 4096
_MATROSKA_SEGMENT = 0x18538067
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def is_truncated(path: str, demuxer: str) -> bool:
    """Return whether a file ends in the middle of an element of its container.

    Args:
        path: path of the file.
        demuxer: FFmpeg's first name of the container, such as `mov` or `matroska`.
    """
    check = _CHECKS.get(demuxer)
    if check is None:
        return False
    try:
        with open(path, "rb") as f:
            return check(f, f.seek(0, os.SEEK_END))
    except (OSError, struct.error, IndexError):
        return False  # not the structure that was expected


def has_fragment_list(path: str) -> bool:
    """Return whether a fragmented MP4 states its total duration, before its fragments."""
    with open(path, "rb") as f:
        head = f.read(_HEAD_BYTES)
    return b"sidx" in head[: head.find(b"moof")] or b"mehd" in head


def _isobmff(f: BinaryIO, size: int) -> bool:
    """MP4 and MOV: a sequence of boxes."""
    at = 0
    while at + 8 <= size:
        length, kind = struct.unpack(">I4s", _read(f, at, 8))
        if length == 1:
            (length,) = struct.unpack(">Q", _read(f, at + 8, 8))
        if length < 8:  # 0: up to the end of the file; less than a header: no box
            return _is_zeroed(f, at)
        if at + length > size:
            return kind in (b"mdat", b"moof", b"moov")  # anything else may be data after the last box
        at += length
    return False


def _matroska(f: BinaryIO, size: int) -> bool:
    """Matroska and WebM: a segment, or its clusters if it was written as a stream of unknown length."""
    at = 0
    while at < size:
        if _read(f, at, 1) == b"\0":  # no element
            return _is_zeroed(f, at)
        number, data_at, end = _ebml_element(_read(f, at, 12), at)
        if end is None and number != _MATROSKA_SEGMENT:
            return False  # a cluster of unknown length: only reading all its blocks would show where it ends
        at = data_at if end is None else end
    return at > size


def _ebml_element(head: bytes, at: int) -> tuple[int, int, int | None]:
    """Return id, start of the data, and end (None if unknown) of the EBML element that starts with `head` at `at`."""
    n_id = 9 - head[0].bit_length()
    n_size = 9 - head[n_id].bit_length()
    length = int.from_bytes(head[n_id : n_id + n_size]) & ((1 << 7 * n_size) - 1)
    data_at = at + n_id + n_size
    unknown = length == (1 << 7 * n_size) - 1
    return int.from_bytes(head[:n_id]), data_at, None if unknown else data_at + length


def _riff(f: BinaryIO, size: int) -> bool:
    """AVI: one chunk per gigabyte."""
    at = 0
    while at + 12 <= size:
        kind, length = struct.unpack("<4sI", _read(f, at, 8))
        if kind != b"RIFF" or not length:
            return False
        at += 8 + length + length % 2
    return at - 1 > size  # the padding byte may be missing


def _flv(f: BinaryIO, size: int) -> bool:
    """FLV: the length of each tag is repeated after it."""
    (length,) = struct.unpack(">I", _read(f, size - 4, 4))
    if not 11 <= length <= size - 13:
        return True
    kind, data_length = struct.unpack(">B3s", _read(f, size - 4 - length, 4))
    return kind & 0x1F not in (8, 9, 18) or int.from_bytes(data_length) != length - 11


def _transport_stream(f: BinaryIO, size: int) -> bool:
    """MPEG-TS: packets of equal length, each with a sync byte."""
    head = _read(f, 0, 2048)
    for length, sync_at in ((188, 0), (192, 4), (204, 0)):
        if len(head) > 4 * length and all(head[sync_at + i * length] == 0x47 for i in range(5)):
            n_rest = size % length
            if _is_zeroed(f, size - _N_ZEROS):
                return True
            return n_rest > sync_at and _read(f, size - n_rest + sync_at, 1) == b"\x47"
    return False


def _program_stream(f: BinaryIO, size: int) -> bool:
    """MPEG-PS: packs of packets, which start with 00 00 01 and a type."""
    if _is_zeroed(f, size - _N_ZEROS):
        return True
    start = max(0, size - _TAIL_BYTES)
    tail = _read(f, start, size - start)
    at = tail.find(b"\0\0\1\xba")
    while 0 <= at < len(tail):
        if at + 6 > len(tail):
            return tail[at:].startswith(b"\0\0\1") and tail[at + 3 : at + 4] != b"\xb9"
        kind = tail[at + 3]
        if tail[at : at + 3] != b"\0\0\1" or kind < 0xB9:
            return False
        if kind == 0xB9:  # end code
            at += 4
        elif kind == 0xBA:
            at += 14 + (tail[at + 13] & 7) if tail[at + 4] >> 6 == 1 else 12
        else:
            at += 6 + int.from_bytes(tail[at + 4 : at + 6])
    return at > len(tail)


def _asf(f: BinaryIO, size: int) -> bool:
    """ASF and WMV: the header states the length of the file."""
    head = _read(f, 0, _HEAD_BYTES)
    at = head.find(_ASF_FILE_PROPERTIES)
    return at >= 0 and struct.unpack_from("<Q", head, at + 40)[0] > size


def _ogg(f: BinaryIO, size: int) -> bool:
    """Ogg: pages that state the lengths of their parts."""
    start = max(0, size - _TAIL_BYTES)
    tail = _read(f, start, size - start)
    at = tail.rfind(b"OggS")
    if at < 0:
        return False
    if at + 27 > len(tail):
        return True
    n_parts = tail[at + 26]
    return at + 27 + n_parts + sum(tail[at + 27 : at + 27 + n_parts]) > len(tail)


def _is_zeroed(f: BinaryIO, at: int) -> bool:
    """Return whether the space at an offset was reserved, but never written."""
    data = _read(f, max(0, at), _N_ZEROS)
    return len(data) == _N_ZEROS and not any(data)


def _read(f: BinaryIO, at: int, n_bytes: int) -> bytes:
    f.seek(at)
    return f.read(n_bytes)


_CHECKS = {
    "mov": _isobmff,
    "matroska": _matroska,
    "avi": _riff,
    "flv": _flv,
    "mpegts": _transport_stream,
    "mpeg": _program_stream,
    "asf": _asf,
    "ogg": _ogg,
}
