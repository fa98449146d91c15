"""Items and ignored paths of a scan."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from vidqa.errors import UsageError
from vidqa.media.scan import scan

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)
MP4 = b"\0\0\0\x20ftypisom" + bytes(40)


def names(folder: Path) -> list[str]:
    return [item.rel for item in scan([str(folder)]).items]


def test_content_decides_not_the_suffix(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "video.txt").write_bytes(clip.read_bytes())
    (tmp_path / "no suffix").write_bytes(PNG)
    (tmp_path / "text.mp4").write_text("not a video at all")  # claims to be a video: gets a failed row
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


def test_files_with_an_audio_suffix_are_probed(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "video.m4a").write_bytes(clip.read_bytes())
    audio = Path(__file__).parent / "clips" / "video_without_video_stream.mp4"
    (tmp_path / "audio.m4a").write_bytes(audio.read_bytes())
    found = scan([str(tmp_path)])
    assert [i.rel for i in found.items] == ["video.m4a"]
    assert [o.reason for o in found.ignored] == ["audio"]


def test_named_files_always_become_items(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    found = scan([str(tmp_path / "notes.txt"), str(tmp_path / "gone.mp4")])
    assert [(i.rel, i.named, i.size) for i in found.items] == [("gone.mp4", True, 0), ("notes.txt", True, 5)]
    assert {(i.root, os.path.join(i.root, i.rel) == i.path) for i in found.items} == {(str(tmp_path), True)}
    assert found.ignored == ()


@pytest.mark.parametrize("paths", [[], [""], ["clip.mp4", ""]])
def test_empty_paths_are_rejected(paths: list[str]) -> None:
    with pytest.raises(UsageError, match=r"a path is missing|one of the paths is empty"):
        scan(paths)


def test_hidden_and_system_files_are_ignored(tmp_path: Path) -> None:
    for name in (".git", "__MACOSX", "$RECYCLE.BIN", "@eaDir", "plain"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(PNG)
    (tmp_path / "._resource.mp4").write_bytes(MP4)
    (tmp_path / "Thumbs.db").write_bytes(PNG)
    found = scan([str(tmp_path)])
    assert [i.rel for i in found.items] == [os.path.join("plain", "a.png")]
    assert found.counts() == {"hidden or system": 6}
    assert names(tmp_path / ".git") == ["a.png"]  # unless the folder is named explicitly


def test_links_loops_and_duplicates(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "real.png").write_bytes(PNG)
    (tmp_path / "a_link.png").symlink_to(tmp_path / "b" / "real.png")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "broken.mp4").symlink_to(tmp_path / "nowhere")
    os.link(tmp_path / "b" / "real.png", tmp_path / "b" / "second_name.png")
    found = scan([str(tmp_path)])
    assert [i.rel for i in found.items] == [os.path.join("b", "real.png")]
    assert found.counts() == {"file already scanned": 2, "folder already scanned": 1, "broken link": 1}
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
    named = scan(
        [os.path.join(str(tmp_path), os.fsdecode(name)) for name in STRANGE]
    )  # an existing name is not a pattern
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
def unprivileged(tmp_path: Path) -> Iterator[None]:
    """Run the test as a user without special permissions, because root may read everything."""
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


def test_unreadable_files_and_folders(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / "a.png").write_bytes(PNG)
    (tmp_path / "closed.mp4").write_bytes(MP4)
    (tmp_path / "closed").write_bytes(MP4)
    for name in ("locked", "closed.mp4", "closed"):
        (tmp_path / name).chmod(0)
    request.getfixturevalue("unprivileged")
    found = scan([str(tmp_path)])
    assert [i.rel for i in found.items] == ["closed.mp4"]  # claims to be a video: gets a failed row
    assert found.counts() == {"folder cannot be read": 1, "cannot be read": 1}


def test_many_files_scan_in_seconds(tmp_path: Path) -> None:
    for i in range(2000):
        (tmp_path / f"{i}.dat").write_bytes(PNG if i % 2 else b"text")
    started = time.perf_counter()
    found = scan([str(tmp_path)])
    assert (len(found.items), found.counts()) == (1000, {"text": 1000})
    assert time.perf_counter() - started < 10  # 0.1 s on an idle core, so 100,000 files take seconds
