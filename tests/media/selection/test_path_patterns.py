"""Which paths patterns exclude: the syntax of .gitignore, and the precedence of its sources."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from vidqa.errors import UsageError
from vidqa.media.scan import ScanResult, scan
from vidqa.media.selection.path_patterns import PathPatterns

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)
FILES = ["a.mp4", "b.mp4", "drafts/a.mp4", "drafts/final.mp4", "2019/raw/c.mp4", "2019/raw/deep/d.mp4", "2020/raw.mp4"]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PNG)
    return folder


def found(path: Path | str, exclude: list[str] = [], include: list[str] = []) -> list[str]:  # noqa: B006 - not changed
    return [item.rel for item in scan([str(path)], PathPatterns(exclude, include)).items]


def without(*names: str) -> list[str]:
    return sorted(set(FILES) - set(names))


RAW = ["2019/raw/c.mp4", "2019/raw/deep/d.mp4"]
DRAFTS = ["drafts/a.mp4", "drafts/final.mp4"]


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        (["a.mp4"], without("a.mp4", "drafts/a.mp4")),
        (["/a.mp4"], without("a.mp4")),
        (["drafts/"], without(*DRAFTS)),
        (["drafts"], without(*DRAFTS)),
        (["drafts/*"], without(*DRAFTS)),
        (["raw"], without(*RAW)),
        (["raw*"], without(*RAW, "2020/raw.mp4")),
        (["raw.mp4/"], FILES),
        (["2019/raw"], without(*RAW)),
        (["raw/c.mp4"], FILES),
        (["**/raw/c.mp4"], without("2019/raw/c.mp4")),
        (["2019/**/d.mp4"], without("2019/raw/deep/d.mp4")),
        (["[ab].mp4"], without("a.mp4", "b.mp4", "drafts/a.mp4")),
        (["[!a].mp4"], without("b.mp4", *RAW)),
        (["?.mp4", "!b.mp4"], without("a.mp4", "drafts/a.mp4", *RAW)),
        (["*", "!*.mp4"], ["a.mp4", "b.mp4"]),
        (["drafts/", "!drafts/final.mp4"], without(*DRAFTS)),
        (["A.MP4", "# a.mp4"], FILES),
        (["*"], []),
    ],
)
def test_exclude(archive: Path, exclude: list[str], left: list[str]) -> None:
    assert found(archive, exclude) == sorted(left)
    assert found(f"{archive}/**/*", exclude) == sorted(left), "globs follow the same rules"


@pytest.mark.parametrize(
    ("exclude", "include", "left"),
    [
        ([], ["a.mp4"], ["a.mp4", "drafts/a.mp4"]),
        ([], ["/a.mp4", "raw"], ["a.mp4", *RAW]),
        ([], ["2019/"], RAW),
        ([], ["2019/**/d.mp4"], ["2019/raw/deep/d.mp4"]),
        (["*"], ["a.mp4"], ["a.mp4", "drafts/a.mp4"]),
        (["?.mp4"], ["b.mp4"], without("a.mp4", "drafts/a.mp4", *RAW)),
        (["drafts/"], ["drafts/final.mp4"], without("drafts/a.mp4")),
        (["drafts/"], ["/drafts/f*.mp4"], without("drafts/a.mp4")),
        (["drafts/"], ["drafts/"], FILES),
        (["drafts/"], ["*.mp4"], without(*DRAFTS)),
        (["/2019"], ["2019/**/d.mp4"], without("2019/raw/c.mp4")),
        (["raw/"], ["2019/raw/deep"], without("2019/raw/c.mp4")),
    ],
)
def test_include_has_precedence(archive: Path, exclude: list[str], include: list[str], left: list[str]) -> None:
    assert found(archive, exclude, include) == sorted(left)


def test_ignore_files_in_any_folder(archive: Path) -> None:
    (archive / ".vidqaignore").write_bytes(b"\xef\xbb\xbf# comment\r\n\r\n/b.mp4\r\nraw.mp4\r\n*.mp4 \r\n!a.mp4\r\n")
    assert found(archive) == ["a.mp4", "drafts/a.mp4"]
    (archive / "drafts" / ".vidqaignore").write_text("!final.mp4\n/a.mp4\n")
    assert found(archive) == ["a.mp4", "drafts/final.mp4"], "the file of a folder has precedence over those above"
    assert found(archive, ["final.mp4"]) == ["a.mp4"], "the command line has precedence over files"
    assert found(archive, ["!b.mp4"]) == ["a.mp4", "b.mp4", "drafts/final.mp4"]
    assert found(archive, [], ["raw.mp4", "b.mp4"]) == ["2020/raw.mp4", "b.mp4"]
    assert found(f"{archive}/*/*.mp4") == ["drafts/final.mp4"]
    assert found(archive / "2020") == ["raw.mp4"], "only the folders from the root down count"
    (archive / ".vidqaignore").write_text("drafts/\n")
    assert not set(DRAFTS) & set(found(archive)), "nothing in an excluded folder can be taken back"


def test_what_is_excluded_is_listed_with_its_rule(archive: Path) -> None:
    (archive / ".vidqaignore").write_text("\ndrafts/\n")
    (archive / "a.txt").write_text("text")
    result = scan([str(archive)], PathPatterns(["2019/raw/c.mp4"], []))
    assert [(os.path.relpath(one.path, archive), one.why.by, one.why.rule) for one in result.excluded] == [
        ("2019/raw/c.mp4", "--exclude", "--exclude 2019/raw/c.mp4"),
        ("drafts", ".vidqaignore", f"{archive}/.vidqaignore:2: drafts/"),
    ]
    assert result.excluded[1].path.endswith("/") and result.counts() == {"text": 1, "hidden or system": 1}
    (only,) = {one.why.by for one in scan([str(archive)], PathPatterns([], ["b.*"])).excluded} - {".vidqaignore"}
    assert only == "--include"


def test_excluded_folders_are_not_entered(
    archive: Path, unprivileged: Callable[[], AbstractContextManager[None]]
) -> None:
    for name in ("locked", "2019/locked"):
        (archive / name).mkdir(mode=0)
    for path in (str(archive), f"{archive}/**/*.mp4", f"{archive}/*"):
        with unprivileged():
            assert scan([path]).problems and not scan([path], PathPatterns(["locked/"])).problems


def test_named_files_and_roots_are_never_excluded(archive: Path) -> None:
    everything = PathPatterns(["*", "drafts/"])
    named = [str(archive / name) for name in ("a.mp4", "drafts/a.mp4")]
    (archive / "drafts" / ".vidqaignore").write_text("*\n")
    assert [item.path for item in scan(named, everything).items] == named
    both: ScanResult = scan([str(archive), *named], everything)
    assert [item.path for item in both.items] == named
    assert str(archive / "a.mp4") not in [one.path for one in both.excluded], "every file is counted once"
    (archive / "drafts" / ".vidqaignore").unlink()
    assert found(archive / "drafts", ["drafts/"]) == ["a.mp4", "final.mp4"], "patterns are relative to the root"


def test_a_path_whose_files_are_all_excluded_is_no_problem(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = scan([str(archive), str(tmp_path / "empty"), f"{archive}/*.mp4"], PathPatterns(["*"]))
    assert not result.items and [one.path for one in result.problems] == [str(tmp_path / "empty")]
    assert [one.path for one in result.all_excluded] == [str(archive), f"{archive}/*.mp4"]


def test_names_that_are_not_unicode(archive: Path) -> None:
    for name in (b"bad\xff.mp4", b"line\nbreak.mp4"):
        with open(os.path.join(os.fsencode(archive), name), "wb") as file:
            file.write(PNG)
    (archive / ".vidqaignore").write_bytes(b"bad\xff.*\n")
    assert found(archive, ["line*"]) == FILES_SORTED
    os.mkdir(os.path.join(os.fsencode(archive), b"new\nline"))
    (archive / "new\nline" / "z.mp4").write_bytes(PNG)
    assert found(archive, ["line*", "z.mp4"]) == FILES_SORTED


FILES_SORTED = sorted(FILES)


@pytest.mark.parametrize(
    "pattern", ["", " ", "/", "!", "[a", "a[", "x\\", "[z-a]", "./drafts", "../drafts", "a/../b", "[[:digit:]]", "a\0b"]
)
def test_invalid_patterns(archive: Path, pattern: str) -> None:
    for exclude, include in (([pattern, "ok"], []), ([], ["ok", pattern])):
        with pytest.raises(UsageError, match=r"--(exclude|include) "):
            PathPatterns(exclude, include)
    if pattern.strip() and "\0" not in pattern:
        (archive / "drafts" / ".vidqaignore").write_text(f"ok\n# comment\n{pattern}\nok\n[b")
        with pytest.raises(UsageError) as caught:
            scan([str(archive)])
        lines = caught.value.what.splitlines()
        assert [line.partition(": ")[0] for line in lines] == [
            f"{archive}/drafts/.vidqaignore:{number}" for number in (3, 5)
        ], "all problems of a file are reported together"


def test_all_invalid_patterns_are_reported_together() -> None:
    with pytest.raises(UsageError) as caught:
        PathPatterns(["[a", "ok"], ["b[", "!c"])
    assert len(caught.value.what.splitlines()) == 3


def test_ignore_files_that_cannot_be_read(
    archive: Path, unprivileged: Callable[[], AbstractContextManager[None]]
) -> None:
    (archive / "2020" / ".vidqaignore").mkdir()
    (archive / ".vidqaignore").write_bytes("drafts/\n".encode("utf-16"))
    with pytest.raises(UsageError, match="not a text file in UTF-8"):
        scan([str(archive)])
    (archive / ".vidqaignore").write_text("drafts/\n")
    (archive / ".vidqaignore").chmod(0)
    with unprivileged(), pytest.raises(UsageError, match=r"\.vidqaignore: Permission denied"):
        scan([str(archive)])


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@pytest.mark.parametrize(
    "lines",
    [
        ["*", "!a.mp4"],
        ["raw", "!2019/raw"],
        ["2019/*", "!2019/raw"],
        ["**/deep/"],
        ["/*", "!/drafts"],
        ["*.mp4", "!drafts/*.mp4"],
    ],
)
def test_ignore_files_mean_what_they_mean_to_git(archive: Path, lines: list[str]) -> None:
    for name in (".vidqaignore", ".gitignore"):
        (archive / name).write_text("\n".join(lines) + "\n")
    subprocess.run(["git", "init", "-q"], cwd=archive, check=True)
    listed = subprocess.run(
        ["git", "ls-files", "--others", "--exclude-standard", "*.mp4"],
        cwd=archive,
        check=True,
        capture_output=True,
        text=True,
    )
    assert found(archive) == sorted(listed.stdout.splitlines())
