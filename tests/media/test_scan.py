"""What a scan finds, and what it leaves out with which reason."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from numbered_clips import write_video
from PIL import Image

from vidqa.errors import UsageError
from vidqa.media.scan import scan
from vidqa.media.sniff import sniff

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)
MP4 = b"\0\0\0\x20ftypisom" + bytes(40)


def names(folder: Path) -> list[str]:
    return [item.rel for item in scan([str(folder)]).items]


def test_content_decides_not_the_name(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "video.txt").write_bytes(clip.read_bytes())
    (tmp_path / "no suffix").write_bytes(PNG)
    (tmp_path / "text.mp4").write_text("not a video at all")  # claims to be one: it gets a row that says so
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "subs.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nhi\n")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n/etc/passwd\n")
    (tmp_path / "song.mp3").write_bytes(b"ID3" + bytes(100))
    (tmp_path / "archive.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    (tmp_path / "model.bin").write_bytes(bytes(range(1, 256)) * 20)
    (tmp_path / "empty.log").touch()
    (tmp_path / "empty.webm").touch()
    found = scan([str(tmp_path)])
    assert [i.rel for i in found.items] == ["empty.webm", "no suffix", "text.mp4", "video.txt"]
    assert {os.path.basename(o.path): o.reason for o in found.ignored} == {
        "notes.txt": "text",
        "subs.srt": "subtitles",
        "list.m3u8": "playlist",
        "song.mp3": "audio",
        "archive.zip": "not media",
        "model.bin": "not media",
        "empty.log": "empty",
    }
    assert found.counts()["not media"] == 2 and sum(found.counts().values()) == 7


def test_a_sound_suffix_is_looked_into(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "film.m4a").write_bytes(clip.read_bytes())
    sound = Path(__file__).parent / "clips" / "video_without_video_stream.mp4"
    (tmp_path / "sound.m4a").write_bytes(sound.read_bytes())
    found = scan([str(tmp_path)])
    assert [i.rel for i in found.items] == ["film.m4a"]
    assert [o.reason for o in found.ignored] == ["audio"]


def test_named_files_always_get_an_item(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    found = scan([str(tmp_path / "notes.txt"), str(tmp_path / "gone.mp4")])
    assert [(i.rel, i.named, i.size) for i in found.items] == [("gone.mp4", True, 0), ("notes.txt", True, 5)]
    assert {(i.root, os.path.join(i.root, i.rel) == i.path) for i in found.items} == {(str(tmp_path), True)}
    assert found.ignored == ()


@pytest.mark.parametrize("paths", [[], [""], ["clip.mp4", ""]])
def test_an_empty_path_is_no_folder(paths: list[str]) -> None:
    with pytest.raises(UsageError, match=r"a path is missing|one of the paths is empty"):
        scan(paths)


def test_hidden_and_system_things_are_left_out(tmp_path: Path) -> None:
    for name in (".git", "__MACOSX", "$RECYCLE.BIN", "@eaDir", "plain"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(PNG)
    (tmp_path / "._resource.mp4").write_bytes(MP4)
    (tmp_path / "Thumbs.db").write_bytes(PNG)
    found = scan([str(tmp_path)])
    assert [i.rel for i in found.items] == [os.path.join("plain", "a.png")]
    assert found.counts() == {"hidden or system": 6}
    assert names(tmp_path / ".git") == ["a.png"]  # but a folder that is named is meant


def test_links_loops_and_the_same_file_twice(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "real.png").write_bytes(PNG)
    (tmp_path / "a_link.png").symlink_to(tmp_path / "b" / "real.png")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "broken.mp4").symlink_to(tmp_path / "nowhere")
    os.link(tmp_path / "b" / "real.png", tmp_path / "b" / "second_name.png")
    found = scan([str(tmp_path)])
    assert [i.rel for i in found.items] == [os.path.join("b", "real.png")]
    assert found.counts() == {"duplicate file": 2, "duplicate folder": 1, "broken link": 1}
    twice = scan([str(tmp_path / "b"), str(tmp_path), str(tmp_path / "b" / "real.png")])
    assert [(i.rel, i.named) for i in twice.items] == [("real.png", True)]


STRANGE = [
    b"-rf.png",
    b"a b 'c' \"d\".png",
    b"line\nbreak.png",
    "Grüße 世界.png".encode(),
    b"bad\xff\xfe.png",
    b"te[s]t*?.png",
    b"%03d.png",
    b"concat:x|y.png",
]


def test_strange_names(tmp_path: Path) -> None:
    for name in STRANGE:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as f:
            Image.new("RGB", (4, 4)).save(f, "PNG")
    found = scan([str(tmp_path)])
    assert [os.fsencode(i.rel) for i in found.items] == sorted(STRANGE)
    named = scan([os.path.join(str(tmp_path), os.fsdecode(name)) for name in STRANGE])  # a name wins over a pattern
    assert [i.path for i in named.items] == [i.path for i in found.items]


def test_globs_follow_the_rules_for_folders(tmp_path: Path) -> None:
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    for name in ("a.png", "b.txt", "sub/c.png", "sub/deep/d.png"):
        (tmp_path / name).write_bytes(PNG if name.endswith("png") else b"text")
    assert [i.rel for i in scan([f"{tmp_path}/*.png"]).items] == ["a.png"]
    everything = scan([f"{tmp_path}/**/*"])
    assert [i.rel for i in everything.items] == [
        "a.png",
        os.path.join("sub", "c.png"),
        os.path.join("sub", "deep", "d.png"),
    ]
    assert everything.counts()["text"] == 1
    assert {i.root for i in everything.items} == {str(tmp_path)} and not any(i.named for i in everything.items)
    assert scan([f"{tmp_path}/*.mkv"]).counts() == {"no file matches": 1}


def test_pipes_are_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    assert scan([str(tmp_path)]).counts() == {"not a regular file": 1}


@pytest.fixture
def nobody(tmp_path: Path) -> Iterator[None]:
    """Root may read everything; these tests need somebody who may not."""
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        if folder.owner() == "root" and folder != Path("/tmp"):
            folder.chmod(0o755)
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_what_may_not_be_read(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / "a.png").write_bytes(PNG)
    (tmp_path / "closed.mp4").write_bytes(MP4)
    (tmp_path / "closed").write_bytes(MP4)
    for name in ("locked", "closed.mp4", "closed"):
        (tmp_path / name).chmod(0)
    request.getfixturevalue("nobody")
    found = scan([str(tmp_path)])
    assert [i.rel for i in found.items] == ["closed.mp4"]  # it claims to be a video: a row will say why not
    assert found.counts() == {"folder cannot be read": 1, "cannot be read": 1}


def test_many_files_scan_in_seconds(tmp_path: Path) -> None:
    for i in range(2000):
        (tmp_path / f"{i}.dat").write_bytes(PNG if i % 2 else b"text")
    began = time.perf_counter()
    found = scan([str(tmp_path)])
    assert (len(found.items), found.counts()) == (1000, {"text": 1000})
    assert time.perf_counter() - began < 10  # 0.1 s on an idle core, so 100,000 files are a matter of seconds


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
        (b"RIFF\0\0\0\0WAVEfmt ", "audio"),
        (b"BM" + b"\x01\x02" * 20, "unknown"),
        (bytes(4096), "other"),
        (bytes(range(128, 256)) * 4, "unknown"),
    ],
)
def test_signatures(head: bytes, family: str) -> None:
    assert sniff(head).family == family
