"""Structure of containers whose end is missing. Complete ones are covered by test_completeness.py."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from vidqa.media.completeness.truncation import is_truncated

ZEROS = bytes(10_000)


def box(kind: bytes, n_bytes: int) -> bytes:
    return struct.pack(">I4s", n_bytes + 8, kind) + b"\1" * n_bytes


def pack(n_bytes: int) -> bytes:
    """A pack of an MPEG-1 program stream with one packet."""
    return b"\0\0\1\xba" + b"\x21" * 8 + b"\0\0\1\xe0" + struct.pack(">H", n_bytes) + b"\1" * n_bytes


def page(n_bytes: int) -> bytes:
    return b"OggS" + bytes(22) + bytes([1, n_bytes]) + b"\1" * n_bytes


def asf(n_bytes: int) -> bytes:
    properties = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365") + bytes(24) + struct.pack("<Q", n_bytes)
    return (bytes(30) + properties).ljust(n_bytes, b"\1")


@pytest.mark.parametrize(
    ("demuxer", "complete"),
    [
        ("mov", box(b"moov", 50) + box(b"mdat", 90)),
        ("mov", box(b"moov", 50) + struct.pack(">I4sQ", 1, b"mdat", 116) + b"\1" * 100),
        (
            "matroska",
            b"\x1a\x45\xdf\xa3\x84" + b"\1" * 4 + b"\x18\x53\x80\x67\x01" + struct.pack(">Q", 90)[1:] + b"\1" * 90,
        ),
        ("matroska", b"\x1a\x45\xdf\xa3\x80" + b"\x18\x53\x80\x67\xff" + b"\x1f\x43\xb6\x75\xc0" + b"\1" * 64),
        ("avi", b"RIFF" + struct.pack("<I", 101) + b"AVI " + b"\1" * 97),
        ("flv", b"FLV\1" + bytes(9) + b"\x09" + (80).to_bytes(3) + b"\1" * 87 + struct.pack(">I", 91)),
        ("mpegts", (b"\x47" + b"\1" * 187) * 20),
        ("mpegts", (b"\1" * 4 + b"\x47" + b"\1" * 187) * 20),
        ("mpeg", pack(100) + pack(80) + b"\0\0\1\xb9"),
        ("mpeg", pack(100) + pack(80)),
        ("asf", asf(400)),
        ("ogg", page(200) + page(100)),
    ],
)
def test_a_missing_end_is_found(demuxer: str, complete: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(complete)
    assert not is_truncated(str(path), demuxer)
    path.write_bytes(complete[:-40])
    assert is_truncated(str(path), demuxer)


@pytest.mark.parametrize(
    ("demuxer", "data"),
    [
        ("mov", box(b"moov", 50) + struct.pack(">I4s", 0, b"mdat") + b"\1" * 90),  # up to the end of the file
        ("mov", box(b"moov", 50) + box(b"mdat", 90) + b"trailer of a phone"),
        ("matroska", b"\x1a\x45\xdf\xa3\x80" + b"\x18\x53\x80\x67\xff" + b"\x1f\x43\xb6\x75\xff" + b"\1" * 64),  # live
        ("avi", b"RIFF" + bytes(4) + b"AVI " + b"\1" * 97),  # a recording without its length
        ("mpegts", (b"\x47" + b"\1" * 187) * 20 + b"metadata"),
        ("mpeg", pack(100) + pack(80) + bytes(500)),  # padding
        ("h264", b"\1" * 100),
        *((demuxer, b"") for demuxer in ("mov", "matroska", "avi", "mpegts", "mpeg", "asf", "ogg")),
    ],
)
def test_other_files_count_as_complete(demuxer: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(data)
    assert not is_truncated(str(tmp_path / "a"), demuxer)


@pytest.mark.parametrize(
    ("demuxer", "data"),
    [
        ("mov", box(b"moov", 50) + box(b"moof", 90) + ZEROS),
        ("matroska", b"\x1a\x45\xdf\xa3\x80" + b"\x18\x53\x80\x67\xff" + b"\x1f\x43\xb6\x75\xc0" + b"\1" * 64 + ZEROS),
        ("mpegts", (b"\x47" + b"\1" * 187) * 20 + bytes(188 * 40)),
        ("mpeg", pack(100) + ZEROS),
    ],
)
def test_space_that_was_never_written_is_found(demuxer: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(data)
    assert is_truncated(str(tmp_path / "a"), demuxer)
