"""First bytes of a file -> its type, by magic numbers.

The order of the rules matters: strong signatures first, then scripts, then plain text, then weak signatures.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Family = Literal["video", "image", "audio", "subtitles", "playlist", "text", "other", "empty", "unknown"]

#: Number of bytes that `sniff` needs.
SNIFF_BYTES = 4096


@dataclass(frozen=True)
class Signature:
    """File type according to the first bytes."""

    family: Family  # `video` includes containers that may contain only audio; `unknown` means inconclusive
    container: str  # short name such as `isobmff`, `matroska`, `jpeg`, `zip`


_UNKNOWN = Signature("unknown", "unknown")

_PREFIXES: tuple[tuple[bytes, Family, str], ...] = (
    (b"\xff\xd8\xff", "image", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image", "png"),
    (b"GIF87a", "image", "gif"),
    (b"GIF89a", "image", "gif"),
    (b"II*\0", "image", "tiff"),
    (b"MM\0*", "image", "tiff"),
    (b"II+\0", "image", "tiff"),  # BigTIFF
    (b"MM\0+", "image", "tiff"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "image", "jp2"),
    (b"\xff\x4f\xff\x51", "image", "jp2"),
    (b"FLV\x01", "video", "flv"),
    (b"0&\xb2u\x8ef\xcf\x11\xa6\xd9\0\xaa\0b\xcel", "video", "asf"),
    (b".RMF", "video", "rm"),
    (b"\x06\x0e+4\x02\x05\x01\x01\r\x01\x02\x01\x01\x02", "video", "mxf"),
    (b"DKIF\0\0", "video", "ivf"),
    (b"YUV4MPEG2 ", "video", "yuv4mpeg"),
    (b"nut/multimedia container\0", "video", "nut"),
    (b"\0\0\x01\xba", "video", "mpeg_ps"),
    (b"\0\0\x01\xb3", "video", "mpeg_es"),
    (b"\0\0\x01\xb0", "video", "mpeg4_es"),
    (b"\x1f\x07\0", "video", "dv"),
    (b"BIKi", "video", "bink"),
    (b"SMK2", "video", "smacker"),
    (b"ID3", "audio", "mp3"),
    (b"fLaC", "audio", "flac"),
    (b"FORM", "audio", "aiff"),
    (b"MThd", "audio", "midi"),
    (b"#!AMR", "audio", "amr"),
    (b"caff", "audio", "caf"),
    (b"wvpk", "audio", "wavpack"),
    (b"MAC ", "audio", "ape"),
    (b"\x0bw", "audio", "ac3"),
    (b"%PDF-", "other", "pdf"),
    (b"PK\x03\x04", "other", "zip"),
    (b"PK\x05\x06", "other", "zip"),
    (b"\x1f\x8b", "other", "gzip"),
    (b"BZh", "other", "bzip2"),
    (b"\xfd7zXZ\0", "other", "xz"),
    (b"(\xb5/\xfd", "other", "zstd"),
    (b"7z\xbc\xaf'\x1c", "other", "7z"),
    (b"Rar!\x1a\x07", "other", "rar"),
    (b"\x7fELF", "other", "program"),
    (b"MZ", "other", "program"),
    (b"\xcf\xfa\xed\xfe", "other", "program"),
    (b"\xca\xfe\xba\xbe", "other", "program"),
    (b"SQLite format 3\0", "other", "sqlite"),
    (b"\x93NUMPY", "other", "numpy"),
    (b"PAR1", "other", "parquet"),
    (b"ARROW1", "other", "arrow"),
    (b"\x89HDF\r\n", "other", "hdf5"),
    (b"\x80\x02", "other", "pickle"),
    (b"\x80\x03", "other", "pickle"),
    (b"\x80\x04\x95", "other", "pickle"),
    (b"\x80\x05\x95", "other", "pickle"),
    (b"\0\x01\0\0\0", "other", "font"),
    (b"OTTO", "other", "font"),
    (b"wOF", "other", "font"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "other", "office"),
    (b"8BPS", "other", "photoshop"),
    (b"\0\0\x01\0", "other", "icon"),
    (b"\0\x05\x16\x07", "other", "appledouble"),
)

#: Scripts that make a player open other files. They are never passed to FFmpeg.
_PLAYLIST = re.compile(
    rb"#EXTM3U|#EXT-X-|ffconcat version|\[playlist\]|\[reference\]|RTSPtext|v=0\s+o=|"
    rb"(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:MPD|SmoothStreamingMedia|playlist|asx|smil)\b",
    re.IGNORECASE | re.DOTALL,
)
_SUBTITLES = re.compile(rb"WEBVTT|\[Script Info\]|\d+\s*\r?\n\d+:\d\d:\d\d[,.]\d+ *-->|\{\d+\}\{\d+\}")
#: JPEG images as an HTTP stream of an IP camera.
_MULTIPART_JPEG = re.compile(
    rb"\s*--[^\r\n]+\r?\n(?:[\w-]+:[^\r\n]*\r?\n)*Content-Type:\s*image/jpe?g\b[^\xff]*\xff\xd8\xff", re.IGNORECASE
)

_AUDIO_BRANDS = {b"M4A ", b"M4B ", b"M4P ", b"F4A ", b"F4B "}
_IMAGE_BRANDS = {b"heic", b"heix", b"mif1", b"avif", b"hevc", b"hevx", b"msf1", b"avis", b"heim", b"heis"}
_AVIF_BRANDS = {b"avif", b"avis"}
_BOXES = {b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp", b"moof", b"sidx"}


def sniff(head: bytes) -> Signature:
    """Determine the type of a file from its first bytes.

    Args:
        head: the first `SNIFF_BYTES` bytes, or fewer if the file is shorter.

    Returns:
        The signature; its family is `unknown` if the bytes are inconclusive.
    """
    if not head:
        return Signature("empty", "empty")
    for find in (_prefix, _boxes, _riff_ogg_ebml, _streams, _script_or_text, _weak):
        if found := find(head):
            return found
    return _UNKNOWN


def _prefix(head: bytes) -> Signature | None:
    for magic, family, container in _PREFIXES:
        if head.startswith(magic):
            return Signature(family, container)
    return None


def _boxes(head: bytes) -> Signature | None:
    """Recognize ISO base media (MP4, MOV, 3GP, HEIF, AVIF). Audio brands are trusted; others may contain anything."""
    kind = head[4:8]
    if kind == b"ftyp":
        brand = head[8:12]
        if brand in _AUDIO_BRANDS:
            return Signature("audio", "isobmff")
        if brand not in _IMAGE_BRANDS:
            return Signature("video", "isobmff")
        end = min(int.from_bytes(head[:4]), len(head))
        brands = {brand, *(head[i : i + 4] for i in range(16, end, 4))}
        return Signature("image", "avif" if brands & _AVIF_BRANDS else "heif")
    return Signature("video", "isobmff") if kind in _BOXES else None


def _riff_ogg_ebml(head: bytes) -> Signature | None:
    if head[:4] in (b"RIFF", b"RF64", b"RIFX"):
        kinds: dict[bytes, Signature] = {
            b"AVI ": Signature("video", "avi"),
            b"AVIX": Signature("video", "avi"),
            b"WEBP": Signature("image", "webp"),
            b"WAVE": Signature("audio", "wav"),
        }
        return kinds.get(head[8:12], Signature("other", "riff"))
    if head.startswith(b"OggS"):  # the first pages name the codec of every stream
        video_codecs = (b"\x80theora", b"BBCD\0", b"OVP80", b"\x01video\0", b"fishead\0")
        return Signature("video" if any(codec in head for codec in video_codecs) else "audio", "ogg")
    return Signature("video", "matroska") if head.startswith(b"\x1aE\xdf\xa3") else None


def _streams(head: bytes) -> Signature | None:
    """Recognize MPEG transport streams (a sync byte every 188, 192 or 204 bytes), raw H.264 / HEVC, multipart JPEG."""
    if _MULTIPART_JPEG.match(head):
        return Signature("video", "mpjpeg")
    for step, first in ((188, 0), (192, 4), (204, 0)):
        sync_bytes = head[first : first + 8 * step : step]
        if len(sync_bytes) >= 3 and set(sync_bytes) == {0x47}:
            return Signature("video", "mpegts")
    nal = 4 if head.startswith(b"\0\0\0\x01") else 3 if head.startswith(b"\0\0\x01") else 0
    if nal and len(head) > nal + 1:
        if head[nal] & 0x9F in (0x07, 0x09):  # sequence parameter set or access unit delimiter
            return Signature("video", "h264_es")
        if head[nal] in (0x40, 0x42, 0x46) and head[nal + 1] == 0x01:
            return Signature("video", "hevc_es")
    return None


def _script_or_text(head: bytes) -> Signature | None:
    body = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if _PLAYLIST.match(body):
        return Signature("playlist", "playlist")
    if _SUBTITLES.match(body):
        return Signature("subtitles", "subtitles")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) and len(head) > 3 and 0 in head[2:4]:
        return Signature("text", "utf-16")
    if any(c < 32 and c not in b"\t\n\v\f\r\x1b" for c in head[:512]):
        return None
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as e:
        # The sample may end in the middle of a character.
        return Signature("text", "utf-8") if len(head) == SNIFF_BYTES and e.start >= len(head) - 3 else None
    return Signature("text", "utf-8")


def _weak(head: bytes) -> Signature | None:
    """Recognize short signatures, which may also occur in random bytes and are therefore checked last."""
    if (
        head.startswith(b"BM")
        and len(head) >= 26
        and head[14:18] in (b"\x28\0\0\0", b"\x6c\0\0\0", b"\x7c\0\0\0", b"\x0c\0\0\0")
    ):
        return Signature("image", "bmp")
    if len(head) >= 3 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        layer, rate, frequency = head[1] >> 1 & 3, head[2] >> 4, head[2] >> 2 & 3
        if head[1] & 0xF6 == 0xF0 or (layer and rate != 15 and frequency != 3):
            return Signature("audio", "mpeg_audio")
    if len(set(head)) == 1:
        return Signature("other", "filler")
    return None
