"""Items and ignored paths of a scan."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from PIL import Image

from vidqa.errors import UsageError
from vidqa.media.scan import scan

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)
MP4 = b"\0\0\0\x20ftypisom" + bytes(40)


def names(folder: Path) -> list[str]:
    return [item.rel for item in scan([str(folder)]).items]


def problems(paths: Sequence[str | Path]) -> dict[str, str]:
    return {problem.path: problem.reason for problem in scan([str(path) for path in paths]).problems}


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


def test_named_files_become_items_if_they_exist(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    found = scan([str(tmp_path / "notes.txt"), str(tmp_path / "gone.mp4")])
    assert [(i.root, i.rel, i.named, i.size) for i in found.items] == [(str(tmp_path), "notes.txt", True, 5)]
    assert found.items[0].path == str(tmp_path / "notes.txt") and found.ignored == ()
    assert problems([tmp_path / "gone.mp4"]) == {str(tmp_path / "gone.mp4"): "no such file or folder"}


def test_paths_that_lead_to_no_media_are_problems(tmp_path: Path) -> None:
    for name in ("media", "empty", "texts", "nested/empty"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "media" / "a.png").write_bytes(PNG)
    (tmp_path / "texts" / "a.txt").write_text("hello")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "dangling").symlink_to("gone")
    os.mkfifo(tmp_path / "pipe.mp4")
    paths = ["media", "empty", "texts", "nested", "*.mkv", "texts/*", "self", "dangling", "pipe.mp4", "a.png/b.png"]
    too_long = str(tmp_path / ("x" * 300))
    assert problems([*(tmp_path / name for name in paths), too_long, "/dev/null", "nul\0byte"]) == {
        str(tmp_path / "empty"): "contains no media",
        str(tmp_path / "texts"): "contains no media",
        str(tmp_path / "nested"): "contains no media",
        str(tmp_path / "*.mkv"): "no file matches",
        str(tmp_path / "texts/*"): "contains no media",
        str(tmp_path / "self"): "Too many levels of symbolic links",
        str(tmp_path / "dangling"): "a symbolic link to a file that does not exist",
        str(tmp_path / "pipe.mp4"): "not a regular file",
        str(tmp_path / "a.png/b.png"): "no such file or folder",
        too_long: "File name too long",
        "/dev/null": "not a regular file",
        "nul\0byte": "the name contains a NUL character",
    }


def test_media_that_an_earlier_path_has_found_is_no_problem(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c.png").write_bytes(PNG)
    (tmp_path / "a" / "empty").mkdir()
    (tmp_path / "link").symlink_to("a")
    every = [str(tmp_path / name) for name in ("a", "a/b", "a/b/c.png", "link", "a/b/*.png", "a/*", "a")]
    for paths in (every, every[::-1]):
        found = scan(paths)
        assert len(found.items) == 1 and found.problems == ()
    assert problems([*every, tmp_path / "a" / "empty"]) == {str(tmp_path / "a" / "empty"): "contains no media"}


def test_a_loop_of_links_and_names_that_are_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    loop = "Too many levels of symbolic links"
    assert problems([tmp_path]) == {str(tmp_path / name): loop for name in ("one", "two")}
    monkeypatch.chdir(tmp_path)
    for _ in range(17):  # deeper than any path may be long
        os.mkdir("d" * 250)
        os.chdir("d" * 250)
    assert list(problems([tmp_path]).values()).count("File name too long") == 1
    assert names(tmp_path) == ["a.png"]


def test_dots_after_a_link_mean_what_they_mean_to_the_system(tmp_path: Path) -> None:
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "real" / "a.png").write_bytes(PNG)
    (tmp_path / "link").symlink_to("real/inner")
    for path in (f"{tmp_path}/link/..", f"{tmp_path}/link/../a.png", f"{tmp_path}/link/../*.png"):
        (item,) = scan([path]).items
        assert (item.root, item.rel) == (str(tmp_path / "real"), "a.png")
    (item,) = scan([f"{tmp_path}/real/inner/../a.png"]).items
    assert item.path == str(tmp_path / "real" / "a.png")


UNFINISHED = [
    *("x.mp4.part", "x.part", "x.mp4.crdownload", "x.mp4.download", "x.mp4.partial", "x.mp4.!qB", "x.mp4.!ut"),
    *("x.mp4.filepart", "x.mp4.opdownload", "x.mp4.part-Frag12", "x.f137.mp4.ytdl", "x.mp4.aria2", "x.mp4.bc!"),
    "x.mp4.nextcloud",
]
TEMPORARY = ["x.mp4~", "x.mp4.~1~", "x.mp4.tmp", "X.TMP", "~syncthing~x.mp4.tmp", "x.swp", "~$x.mp4", "#x.mp4#"]
HIDDEN = [".x.mp4.Ab3dEf", "._x.mp4", ".~lock.x.mp4#", ".syncthing.x.tmp", ".nfs000000012", ".x.mp4.icloud", ".x.mp4"]
MEDIA = ["part.mp4", "x.part.mp4", "part", "tmp", "download", "x~.mp4", "a.parts", "x.mp4.bak", "#1.mp4", "~x.mp4"]


def test_unfinished_temporary_and_hidden_files_are_ignored_unless_they_are_named(tmp_path: Path) -> None:
    for name in (*UNFINISHED, *TEMPORARY, *HIDDEN, *MEDIA):
        (tmp_path / name).write_bytes(MP4)
    (tmp_path / "safari.mp4.download").mkdir()
    (tmp_path / "safari.mp4.download" / "safari.mp4").write_bytes(MP4)
    found = scan([str(tmp_path)])
    assert [item.rel for item in found.items] == sorted(MEDIA)
    assert found.counts() == {
        "incomplete download": len(UNFINISHED) + 1,
        "temporary or backup file": len(TEMPORARY),
        "hidden or system": len(HIDDEN),
    }
    assert [item.rel for item in scan([f"{tmp_path}/*"]).items] == sorted(MEDIA)
    named = [str(tmp_path / name) for name in (*UNFINISHED, *TEMPORARY, *HIDDEN)]
    assert [item.path for item in scan(named).items] == sorted(named)


def test_a_file_that_is_being_downloaded_under_its_final_name(tmp_path: Path) -> None:
    for name in ("x.mp4", "x.mp4.aria2", "y.mp4", "y.mp4.st", "z.mp4"):
        (tmp_path / name).write_bytes(MP4 if name.endswith(".mp4") else b"\0\1\2")
    for path in (str(tmp_path), f"{tmp_path}/*.mp4"):
        found = scan([path])
        assert [item.rel for item in found.items] == ["z.mp4"]
        ignored = {os.path.basename(one.path) for one in found.ignored if one.reason == "incomplete download"}
        assert ignored >= {"x.mp4", "y.mp4"}
    assert [item.rel for item in scan([str(tmp_path / "x.mp4")]).items] == ["x.mp4"]


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


def test_names_with_wildcard_characters(tmp_path: Path) -> None:
    """A folder that exists is meant, also as the start of a glob; otherwise `[1]` matches `1`."""
    for name in ("Show [1]/a.png", "Show 1/b.png", "st*r/[x]/c.png", "star/x/d.png", "deep/Show [1]/e.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG)

    def found(pattern: str) -> list[tuple[str, str]]:
        return [(os.path.relpath(i.root, tmp_path), i.rel) for i in scan([f"{tmp_path}/{pattern}"]).items]

    assert found("Show [1]/*.png") == [("Show [1]", "a.png")]
    assert found("Show [1]/**/[a].png") == [("Show [1]", "a.png")]
    assert found("st*r/[x]/*") == [("st*r/[x]", "c.png")]
    assert found("Show [12]/*.png") == [(".", os.path.join("Show 1", "b.png"))]
    assert found("*/Show [1]/*.png") == []
    gone = f"{tmp_path}/Show [1]/gone.png"
    assert problems([gone]) == {gone: "no such file or folder"}
    no_match = f"{tmp_path}/Show [1]/*.mp4"
    assert problems([no_match]) == {no_match: "no file matches"}


def test_pipes_are_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    assert scan([str(tmp_path)]).counts() == {"not a regular file": 1}


def test_unreadable_files_and_folders(tmp_path: Path, unprivileged: Callable[[], AbstractContextManager[None]]) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / "a.png").write_bytes(PNG)
    (tmp_path / "closed.mp4").write_bytes(MP4)
    (tmp_path / "closed").write_bytes(MP4)
    (tmp_path / "link").symlink_to("locked/a.png")
    (tmp_path / "lost+found").mkdir()
    for name in ("locked", "closed.mp4", "closed", "lost+found"):
        (tmp_path / name).chmod(0)
    with unprivileged():
        found = scan([str(tmp_path)])
        assert [i.rel for i in found.items] == ["closed.mp4"]  # claims to be a video: gets a failed row
        assert found.counts() == {"hidden or system": 1}
        denied = {str(tmp_path / name): "Permission denied" for name in ("locked", "closed", "link")}
        assert problems([tmp_path]) == denied
        for pattern in ("**/*", "*/*.png", "**/*.png"):  # `glob.glob` itself skips such folders silently
            assert problems([f"{tmp_path}/{pattern}"])[str(tmp_path / "locked")] == "Permission denied"
        assert problems([tmp_path / "locked" / "a.png"]) == {str(tmp_path / "locked" / "a.png"): "Permission denied"}
        assert problems([tmp_path / "locked"]) == {str(tmp_path / "locked"): "Permission denied"}


def test_many_files_scan_in_seconds(tmp_path: Path) -> None:
    for i in range(2000):
        (tmp_path / f"{i}.dat").write_bytes(PNG if i % 2 else b"text")
    started = time.perf_counter()
    found = scan([str(tmp_path)])
    assert (len(found.items), found.counts()) == (1000, {"text": 1000})
    assert time.perf_counter() - started < 10  # 0.1 s on an idle core, so 100,000 files take seconds
