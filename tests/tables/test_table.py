"""The table of a run: existing answers, retries, renamed and copied files, and changes by other processes."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from vidqa.errors import TableError
from vidqa.records import AnswerRow, MediaItem
from vidqa.tables.formats import read_table
from vidqa.tables.schema import frame_to_rows
from vidqa.tables.table import PathChanges, Table, new_table

Make = Callable[..., AnswerRow]
A, B = "a" * 32, "b" * 32
ASKED = ("Describe the video.", "m1", "s1")


def item(path: str, root: str = "/videos") -> MediaItem:
    return MediaItem(os.path.join(root, path), root, path, 1, 1)


def rows_of(path: Path) -> list[AnswerRow]:
    return frame_to_rows(read_table(path))


@pytest.fixture(params=[".parquet", ".csv", ".jsonl", ".arrow"])
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return tmp_path / ("t" + request.param)


def test_a_new_table_grows(path: Path, row: Make) -> None:
    table = Table(path).load()
    assert table.status(A, *ASKED) is None and len(table) == 0
    table.add([row()])
    assert table.status(A, *ASKED) == "ok" and not path.exists()
    assert table.commit()
    assert rows_of(path) == [row()]
    again = Table(path).load()
    assert again.status(A, *ASKED) == "ok" and again.rows_for(A) == [row()]
    again.add([row(media_id=B, path="b.mp4", status="failed")])
    again.commit()
    assert [r.media_id for r in rows_of(path)] == [A, B]
    assert again.counts() == {"ok": 1, "failed": 1}


def test_a_run_without_changes_does_not_touch_the_file(path: Path, row: Make) -> None:
    new_table([row()], path)
    before = path.stat()
    table = Table(path).load()
    table.update_paths([(A, item("a.mp4"))])
    assert not table.commit()
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_question_ids_are_updated(path: Path, row: Make) -> None:
    """Two questions swap their ids; rows of another model keep theirs, and so do rows of another question."""
    other, b = "Why?", (B, "b.mp4")
    old = [
        row(question_id="one"),
        row(question=other, question_id="two"),
        row(question_id="one", model_id="m2"),
        row(question="How?", question_id="three"),
        row(media_id=b[0], path=b[1], question_id="one"),
    ]
    new_table(old, path)
    table = Table(path).load()
    table.add([row(media_id="c" * 32, path="c.mp4", question_id="two")])
    assert table.update_question_ids({ASKED: "two", (other, "m1", "s1"): "one", ("New?", "m1", "s1"): "four"}) == 2
    assert [r.question_id for r in table.rows_for(A)] == ["two", "one", "one", "three"]
    table.checkpoint()
    killed = Table(path).load()  # without a commit
    assert killed.recover() == 1
    assert [(r.question, r.model_id, r.question_id) for r in rows_of(path)] == [
        ("Describe the video.", "m1", "two"),
        ("Why?", "m1", "one"),
        ("Describe the video.", "m2", "one"),
        ("How?", "m1", "three"),
        ("Describe the video.", "m1", "two"),
        ("Describe the video.", "m1", "two"),
    ]
    content = path.read_bytes()
    again = Table(path).load()
    assert again.update_question_ids({ASKED: "two", (other, "m1", "s1"): "one"}) == 0
    assert not again.commit() and path.read_bytes() == content


def test_a_dataset_rewrites_only_the_files_with_renamed_questions(tmp_path: Path, row: Make) -> None:
    out = f"{tmp_path}/set/"
    for number, question in enumerate(("Who?", "Describe the video.", "Why?")):
        table = Table(out).load()
        table.add([row(media_id=str(number) * 32, path=f"{number}.mp4", question=question)])
        table.commit()
    before = {p.name: p.read_bytes() for p in (tmp_path / "set").iterdir()}
    table = Table(out).load()
    assert table.update_question_ids({ASKED: "new"}) == 1
    table.commit()
    after = {p.name: p.read_bytes() for p in (tmp_path / "set").iterdir()}
    assert [name for name in sorted(before) if before[name] != after[name]] == ["part-000002.parquet"]
    assert [r.question_id for r in rows_of(tmp_path / "set")] == ["caption", "new", "caption"]


def test_adding_a_row_does_not_copy_earlier_ones(tmp_path: Path, row: Make) -> None:
    """The set of added keys is extended in place; copying it for every file would make a first run quadratic."""
    table = Table(tmp_path / "t.parquet").load()
    added = table._added
    for k in range(3):
        table.add([row(media_id=f"{k:032x}", path=f"{k}.mp4")])
    assert table._added is added and len(added) == 3
    with pytest.raises(ValueError, match="added twice"):
        table.add([row(media_id=f"{1:032x}", path="1.mp4")])


def test_a_run_without_rows_leaves_a_table(path: Path) -> None:
    assert Table(path).load().commit()
    assert rows_of(path) == []


@pytest.mark.parametrize("change", [{"question": "Why?"}, {"model_id": "m2"}, {"settings_id": "s2"}, {"media_id": B}])
def test_another_question_model_setting_or_content_is_not_answered(
    tmp_path: Path, row: Make, change: dict[str, str]
) -> None:
    new_table([row()], tmp_path / "t.parquet")
    table = Table(tmp_path / "t.parquet").load()
    asked = {"media_id": A, "question": ASKED[0], "model_id": "m1", "settings_id": "s1"}
    assert table.status(**asked) == "ok"
    assert table.status(**(asked | change)) is None


def test_another_id_for_the_same_question_is_answered(tmp_path: Path, row: Make) -> None:
    table = Table(tmp_path / "t.parquet").load()
    table.add([row(question_id="old")])
    assert table.status(A, *ASKED) == "ok"


def test_the_most_severe_status_of_the_segments_counts(tmp_path: Path, row: Make) -> None:
    table = Table(tmp_path / "t.parquet").load()
    table.add([row(), row(start_s=1.0, status="truncated"), row(start_s=2.0)])
    assert table.status(A, *ASKED) == "truncated"
    table.add([row(question="Why?"), row(question="Why?", start_s=1.0, status="failed", error_kind="prompt_too_long")])
    assert table.status(A, "Why?", "m1", "s1") == "failed"
    assert len(table.rows_for(A)) == 5


def test_a_retry_replaces_the_failed_rows_and_no_others(path: Path, row: Make) -> None:
    failed = row(status="failed", error_kind="timeout")
    others = [
        row(question="Why?"),
        row(media_id=B, path="b.mp4", status="failed"),
        row(path="copy.mp4", status="failed"),
    ]
    new_table([failed, *others], path)
    table = Table(path).load()
    retried = [row(), row(start_s=1 / 3, end_s=0.5)]
    table.add(retried)
    table.commit()
    assert rows_of(path) == [*others, *retried]
    assert table.status(B, *ASKED) == "failed"
    assert len(table) == 5 and table.counts() == {"ok": 3, "failed": 2}


def test_adding_the_same_question_twice_is_an_error(tmp_path: Path, row: Make) -> None:
    table = Table(tmp_path / "t.parquet").load()
    table.add([row()])
    with pytest.raises(ValueError, match="added twice"):
        table.add([row(start_s=1.0)])
    table.commit()
    with pytest.raises(ValueError, match="added twice"):
        table.add([row(start_s=1.0)])
    assert len(table) == 1


def test_an_unreadable_file_is_retried_but_has_one_row(path: Path, row: Make) -> None:
    unread = row(media_id=None, status="failed", error_kind="permission")
    for _ in range(3):  # three runs
        table = Table(path).load()
        assert table.status(None, *ASKED) is None
        table.add([unread, row(media_id=None, path="other.mp4", status="failed", error_kind="missing")])
        table.commit()
    assert len(rows_of(path)) == 2
    assert [r.path for r in Table(path).load().rows_for(None)] == ["a.mp4", "other.mp4"]
    table = Table(path).load()
    table.add([row()])  # the permissions were fixed
    table.commit()
    assert [(r.path, r.status) for r in rows_of(path)] == [("other.mp4", "failed"), ("a.mp4", "ok")]


def test_a_renamed_file_keeps_its_rows(path: Path, row: Make) -> None:
    new_table([row(), row(question="Why?"), row(media_id=B, path="b.mp4")], path)
    table = Table(path).load()
    found = [(A, item("sub/new name.mp4")), (B, item("b.mp4"))]
    assert table.update_paths(found, exists=lambda p: p == "/videos/b.mp4") == PathChanges(1, 0)
    assert table.commit()
    assert [(r.path, r.root, r.question) for r in rows_of(path)] == [
        ("sub/new name.mp4", "/videos", "Describe the video."),
        ("sub/new name.mp4", "/videos", "Why?"),
        ("b.mp4", "/videos", "Describe the video."),
    ]
    assert rows_of(path)[0].answer == row().answer and rows_of(path)[0].created_at == row().created_at


def test_a_renamed_file_with_an_undecodable_name(tmp_path: Path, row: Make) -> None:
    old, new = os.fsdecode(b"old\xff.mp4"), os.fsdecode(b"new\xfe.mp4")
    root = str(tmp_path)
    table = Table(tmp_path / "t.parquet").load()
    table.add([row(path=old, root=root)])
    table.commit()
    with open(os.path.join(root, old), "w"):
        pass
    os.rename(os.path.join(root, old), os.path.join(root, new))
    table = Table(tmp_path / "t.parquet").load()
    assert table.update_paths([(A, item(new, root))]) == PathChanges(1, 0)
    table.commit()
    assert rows_of(tmp_path / "t.parquet")[0].path == new


def test_a_copied_file_gets_its_own_rows(path: Path, row: Make) -> None:
    new_table([row(), row(start_s=1 / 3, end_s=0.5), row(settings_id="old")], path)
    table = Table(path).load()
    found = [(A, item("a.mp4")), (A, item("copy.mp4"))]
    assert table.update_paths(found, questions={ASKED}, exists=lambda p: True) == PathChanges(0, 1)
    assert table.update_paths(found, questions={ASKED}, exists=lambda p: True) == PathChanges(0, 0)
    table.commit()
    assert [(r.path, r.start_s) for r in rows_of(path) if r.settings_id == "s1"] == [
        ("a.mp4", 0.0), ("a.mp4", 1 / 3), ("copy.mp4", 0.0), ("copy.mp4", 1 / 3),
    ]  # fmt: skip
    assert len(rows_of(path)) == 5
    assert Table(path).load().update_paths(found, questions={ASKED}, exists=lambda p: True) == PathChanges(0, 0)


def test_a_renamed_and_a_copied_file(tmp_path: Path, row: Make) -> None:
    new_table([row()], tmp_path / "t.parquet")
    table = Table(tmp_path / "t.parquet").load()
    found = [(A, item("x.mp4")), (A, item("y.mp4"))]
    assert table.update_paths(found, exists=lambda p: False) == PathChanges(1, 1)
    assert sorted(r.path for r in table.rows_for(A)) == ["x.mp4", "y.mp4"]
    table.commit()
    assert sorted(r.path for r in rows_of(tmp_path / "t.parquet")) == ["x.mp4", "y.mp4"]


def test_the_same_file_below_another_root_is_the_same_file(tmp_path: Path, row: Make) -> None:
    new_table([row(path="sub/a.mp4"), row(media_id=B, path="sub/b.mp4")], tmp_path / "t.parquet")
    table = Table(tmp_path / "t.parquet").load()
    found = [(A, item("a.mp4", "/videos/sub")), (B, item("videos/sub/b.mp4", "/"))]
    assert table.update_paths(found, exists=lambda p: False) == PathChanges(0, 0)
    assert not table.commit()


def test_a_folder_named_like_the_file_in_it_is_not_the_file(tmp_path: Path, row: Make) -> None:
    new_table([row(path="movie.mp4", root="/videos/movie.mp4")], tmp_path / "t.parquet")
    table = Table(tmp_path / "t.parquet").load()
    assert table.update_paths([(A, item("movie.mp4", "/videos"))], exists=lambda p: False) == PathChanges(1, 0)


def test_a_renamed_row_can_be_retried(tmp_path: Path, row: Make) -> None:
    new_table([row(status="failed")], tmp_path / "t.parquet")
    table = Table(tmp_path / "t.parquet").load()
    table.update_paths([(A, item("new.mp4")), (A, item("copy.mp4"))], exists=lambda p: False)
    table.add([row(path="new.mp4"), row(path="copy.mp4")])
    table.commit()
    assert [(r.path, r.status) for r in rows_of(tmp_path / "t.parquet")] == [("new.mp4", "ok"), ("copy.mp4", "ok")]


def test_rows_of_deleted_files_stay(path: Path, row: Make) -> None:
    new_table([row(), row(media_id=B, path="b.mp4")], path)
    table = Table(path).load()
    table.update_paths([(A, item("a.mp4"))], exists=lambda p: False)
    table.add([row(media_id="c" * 32, path="c.mp4")])
    table.commit()
    assert [r.path for r in rows_of(path)] == ["a.mp4", "b.mp4", "c.mp4"]


def test_a_table_changed_by_another_process_is_not_overwritten(path: Path, row: Make) -> None:
    new_table([row()], path)
    table = Table(path).load()
    table.add([row(media_id=B)])
    new_table([row(), row(question="by another run")], path)
    with pytest.raises(TableError, match="changed by another process"):
        table.commit()
    assert len(rows_of(path)) == 2


def test_a_table_that_was_not_loaded_is_not_overwritten(path: Path, row: Make) -> None:
    new_table([row()], path)
    table = Table(path)
    table.add([row(media_id=B)])
    with pytest.raises(TableError):
        table.commit()
    assert rows_of(path) == [row()]


def test_a_path_that_cannot_be_a_table_is_an_error_when_loading(tmp_path: Path) -> None:
    (tmp_path / "d.parquet").mkdir()
    (tmp_path / "d.parquet" / "movie.mp4").touch()
    with pytest.raises(TableError, match="a folder of its own"):
        Table(tmp_path / "d.parquet").load()
    with pytest.raises(TableError, match="does not exist") as caught:
        Table(tmp_path / "none" / "t.parquet").load()
    assert "mkdir -p" in (caught.value.hint or "")


def test_a_symbolic_link_and_permissions_are_kept(tmp_path: Path, row: Make) -> None:
    real, link = tmp_path / "real.parquet", tmp_path / "link.parquet"
    new_table([row()], real)
    real.chmod(0o640)
    link.symlink_to(real)
    table = Table(link).load()
    table.add([row(media_id=B, path="b.mp4")])
    table.commit()
    assert link.is_symlink() and len(rows_of(real)) == 2
    assert real.stat().st_mode & 0o777 == 0o640


def change(disk: dict[str, str], chance: random.Random, name: str) -> None:
    """Change the files between two runs: add, copy or rename one. Names are never reused."""
    act = chance.choice(["new", "copy", "rename", "rename"]) if disk else "new"
    if act == "new":
        disk[name] = f"{len(name):08x}{name}"
        return
    old = chance.choice(sorted(disk))
    disk[name] = disk[old]
    if act == "rename":
        del disk[old]


@pytest.mark.parametrize("seed", range(4))
def test_random_runs(tmp_path: Path, row: Make, seed: int) -> None:
    """Added, retried, renamed and copied files in any order: no group of rows is lost, duplicated or mixed up."""
    chance, table = random.Random(seed), Table(tmp_path / "t.parquet").load()
    disk: dict[str, str] = {}  # path -> content
    ever: dict[tuple[str, str], set[tuple[str, ...]]] = {}  # content, question -> all groups that were added
    last: dict[tuple[str, str], tuple[str, ...]] = {}  # path, question -> the last group added for this path
    for run in range(10):
        for k in range(chance.randrange(4)):
            change(disk, chance, f"f{run}-{k}.mp4")
        table.update_paths([(c, item(p)) for p, c in sorted(disk.items())], exists=lambda p: p[8:] in disk)
        for p, content in sorted(disk.items()):
            question = chance.choice("QR")
            answers = tuple(f"run {run} {p} segment {s}" for s in range(chance.randrange(1, 3)))
            if table.status(content, question, "m1", "s1") is None or chance.random() < 0.2:
                table.add(
                    row(media_id=content, path=p, question=question, answer=a, start_s=float(s))
                    for s, a in enumerate(answers)
                )
                ever.setdefault((content, question), set()).add(answers)
                last[(p, question)] = answers
        table.commit() if chance.random() < 0.5 else table.checkpoint()  # killed before the merge
        table = Table(tmp_path / "t.parquet").load()
        n = len(table)
        table.recover()
        assert len(table) == n
        table.update_paths([(c, item(p)) for p, c in sorted(disk.items())], exists=lambda p: p[8:] in disk)
        groups: dict[tuple[str, str, str], list[str]] = {}
        for content in {c for c, _ in ever}:
            for r in table.rows_for(content):
                groups.setdefault((r.path, content, r.question), []).append(str(r.answer))
        for (p, content, question), answers_found in groups.items():
            assert tuple(answers_found) in ever[(content, question)]
            if p in disk and (p, question) in last:
                assert tuple(answers_found) == last[(p, question)]
        assert {(c, q) for _, c, q in groups} == set(ever)
        assert {(p, c, q) for p, c, q in groups if p in disk} == {
            (p, c, q) for p, c in disk.items() for d, q in ever if d == c
        }
        assert len(table) == sum(map(len, groups.values()))
