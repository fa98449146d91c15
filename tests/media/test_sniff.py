"""File types from first bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from numbered_videos import write_video

from vidqa.media.sniff import sniff


@pytest.mark.parametrize(
    ("name", "codec", "muxer", "expected"),
    [
        ("a.ts", "libx264", "mpegts", ("video", "mpegts")),
        ("a.mpg", "mpeg2video", "vob", ("video", "mpeg_ps")),
        ("a.m2v", "mpeg2video", "mpeg2video", ("video", "mpeg_es")),
        ("a.h264", "libx264", "h264", ("video", "h264_es")),
        ("a.ogv", "libvpx", "ogg", ("video", "ogg")),
        ("a.mkv", "libx264", None, ("video", "matroska")),
        ("a.avi", "mpeg4", None, ("video", "avi")),
        ("a.wmv", "wmv2", None, ("video", "asf")),
        ("a.flv", "flv", None, ("video", "flv")),
        ("a.mov", "mjpeg", None, ("video", "isobmff")),
        ("a.mxf", "mpeg2video", None, ("video", "mxf")),
    ],
)
def test_signatures_of_real_containers(
    name: str, codec: str, muxer: str | None, expected: tuple, tmp_path: Path
) -> None:
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write_video(tmp_path / name, codec, 5, fps=25, muxer=muxer, pix_fmt=pix_fmt)
    signature = sniff(path.read_bytes()[:4096])
    assert (signature.family, signature.container) == expected


@pytest.mark.parametrize(
    ("head", "family"),
    [
        (b"", "empty"),
        (b"#EXTM3U\n", "playlist"),
        (b"\xef\xbb\xbf#EXTM3U\n", "playlist"),
        (b"ffconcat version 1.0\nfile a.mp4\n", "playlist"),
        (b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\n", "playlist"),
        (b'<?xml version="1.0"?>\n<!-- x -->\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011">', "playlist"),
        (b"[playlist]\nFile1=http://x\n", "playlist"),
        (b"WEBVTT\n\n", "subtitles"),
        ("Größe".encode(), "text"),
        (b"a" * 4095 + "ü".encode()[:1], "text"),
        ("text".encode("utf-16"), "text"),
        (b"\xff\xfb\x90\x00" + bytes(range(200, 240)), "audio"),
        (b"OggS" + bytes(24) + b"\x01vorbis", "audio"),
        (b"\0\0\0\x18ftypM4A ", "audio"),
        (b"\0\0\0\x18ftypavif", "image"),
        (b"II+\0\x08\0\0\0", "image"),
        (b"MM\0+\0\x08\0\0", "image"),
        (b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: 9\r\n\r\n\xff\xd8\xff\xe0", "video"),
        (b"\r\n--frame\r\nX-Time: 1\r\nContent-type: image/jpeg\r\n\r\n\xff\xd8\xff\xe0", "video"),
        (b"--frame\r\nContent-Type: text/plain\r\n\r\nhello", "text"),
        (b"RIFF\0\0\0\0WAVEfmt ", "audio"),
        (b"BM" + b"\x01\x02" * 20, "unknown"),
        (bytes(4096), "other"),
        (bytes(range(128, 256)) * 4, "unknown"),
    ],
)
def test_signatures(head: bytes, family: str) -> None:
    assert sniff(head).family == family


@pytest.mark.parametrize(
    ("major", "compatible", "container"),
    [
        (b"avif", b"avifmif1miaf", "avif"),
        (b"avis", b"avifavismsf1", "avif"),
        (b"mif1", b"mif1avif", "avif"),
        (b"mif1", b"mif1heic", "heif"),
        (b"heic", b"mif1heic", "heif"),
    ],
)
def test_avif_and_heic(major: bytes, compatible: bytes, container: str) -> None:
    head = (16 + len(compatible)).to_bytes(4) + b"ftyp" + major + bytes(4) + compatible + b"\0\0\0\x08avif"
    assert sniff(head).container == container
