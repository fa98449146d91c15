"""`vidqa table`: first rows, counts, one row and how to reproduce it, prune, merge and convert."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime

import polars as pl
import pytest

from vidqa.common.file_lock import FileLock
from vidqa.records import AnswerRow
from vidqa.tables.formats import read_table
from vidqa.tables.provenance import METADATA_KEY
from vidqa.tables.table import new_table

TEXT = "Describe the video."


def row(**changes: object) -> AnswerRow:
    values: dict[str, object] = dict.fromkeys(AnswerRow.__dataclass_fields__) | {
        "media_id": "a" * 32, "path": "a.mp4", "root": "/videos", "start_s": 0.0, "end_s": 2.0, "answer": "red",
        "question_id": "caption", "question": TEXT, "status": "ok", "model": "tiny", "model_id": "m1",
        "encoder_id": "e1", "settings_id": "s1", "vidqa_version": "0.1.0",
        "created_at": datetime(2026, 1, 2, tzinfo=UTC),
    }  # fmt: skip
    values.update(changes)
    return AnswerRow(**values)  # type: ignore[arg-type]


@pytest.fixture
def table(vidqa, clips, tmp_path):
    """A table about three clips."""
    assert vidqa("describe", clips, "--out", tmp_path / "t.parquet", "-q").code == 0
    return tmp_path / "t.parquet"


def test_head_prints_numbered_rows(vidqa, table):
    done = vidqa("table", "head", table, "-n", "2")
    lines = done.out.splitlines()
    assert (done.code, done.err, len(lines)) == (0, "", 3)
    assert lines[0].split() == ["row", "path", "status", "answer"] and lines[1].split()[-2:] == ["ok", "red"]
    rows = [json.loads(line) for line in vidqa("table", "head", table, "--json").out.splitlines()]
    assert [one["row"] for one in rows] == [1, 2, 3] and rows[0]["answer"] == "red"
    done = vidqa("table", "head", table, "--columns", "row,path", "--columns", "current", "--json")
    assert [list(json.loads(line)) for line in done.out.splitlines()] == [["row", "path", "current"]] * 3
    done = vidqa("table", "head", table, "--columns", "pth")
    assert done.code == 2 and "did you mean" in done.err and "settings_id" in done.err


@pytest.mark.parametrize("width", ["40", "70"])
def test_hostile_rows_do_not_disturb_the_terminal(vidqa, tmp_path, monkeypatch, width):
    answer = "\x1b[31m[bold]red[/bold]\x1b[0m\r\n\x07\u202eevil\u2066 " + "שלום " * 99 + "緑の円" * 99
    new_table([row(path="a\n\x1b]0;x\x07.mp4", answer=answer, question_id="q\u202e")], tmp_path / "t.csv")
    monkeypatch.setenv("COLUMNS", width)
    for arguments in (["head"], ["show", "1"], ["info"]):
        done = vidqa("table", arguments[0], tmp_path / "t.csv", *arguments[1:])
        assert done.code == 0
        assert all(c.isprintable() or c == "\n" for c in done.out)
    shown = vidqa("table", "show", tmp_path / "t.csv", "1").out
    assert "[bold]red[/bold]" in "".join(shown.split()), "markup is text"
    shown = json.loads(vidqa("table", "show", tmp_path / "t.csv", "1", "--json").out)
    assert shown["answer"] == answer, "programs get the text as it is"


def test_info_counts_rows(vidqa, table):
    done = vidqa("table", "info", table)
    assert "3 rows about 3 files" in done.out and "(whole videos)" in done.out and "less than a day" in done.out
    found = json.loads(vidqa("table", "info", table, "--json").out)
    assert (found["rows"], found["files"], found["status"], found["superseded"]) == (3, 3, {"ok": 3}, {})
    assert found["questions"] == [{"question_id": "caption", "question": TEXT, "rows": 3}]
    assert found["bytes"] == table.stat().st_size and found["age"] == {"less than a day": 3}
    assert found["models"][0]["record"]["name"] == "tiny" and found["settings"][0]["record"] == {"segment_s": None}


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.jsonl", "t.arrow", "dataset/"])
def test_a_row_can_be_made_again_with_the_printed_command(vidqa, clips, tmp_path, name):
    questions = tmp_path / "my.toml"
    questions.write_text(
        '[[question]]\nid = "color"\ntext = "Which color?"\ntype = "choice"\nchoices = ["red", "it\'s blue"]\n'
        '[[question]]\nid = "free"\ntext = "-h?"\nmax_new_tokens = 3\n'
        f'[[question]]\nid = "caption"\ntext = "{TEXT}"\n'
    )
    folder = clips.rename(tmp_path / "it's a folder")
    done = vidqa("describe", folder, "--out", f"{tmp_path}/{name}", "--questions", questions, "--segment", "0.5", "-q")
    assert done.code == 0, done.err
    for question_id in ("color", "free", "caption"):
        done = vidqa("table", "show", f"{tmp_path}/{name}", "deeper/c.mp4@0.5", question_id, "--json")
        assert done.code == 0, done.err
        shown = json.loads(done.out)
        assert not shown["unknown"] and shown["provenance"]["question"]["id"] == question_id
        assert shown["command"] in vidqa("table", "show", f"{tmp_path}/{name}", str(shown["row"])).out
        prepare, _, command = shown["command"].rpartition(" && ")
        if prepare:
            subprocess.run(["bash", "-c", prepare], check=True)
        again = tmp_path / "again.parquet"
        again.unlink(missing_ok=True)
        done = vidqa(*shlex.split(command)[1:])
        assert done.code == 0, done.err
        keys = ["media_id", "start_s", "end_s", "question", "answer", "status", "model", "model_id", "settings_id"]
        made = json.loads(vidqa("table", "show", again, f"{folder}/deeper/c.mp4@0.5", "--json").out)
        assert {key: made[key] for key in keys} == {key: shown[key] for key in keys}


def test_rows_of_earlier_versions_say_what_is_unknown(vidqa, tmp_path):
    new_table([row()], tmp_path / "old.parquet")
    assert METADATA_KEY not in pl.read_parquet_metadata(tmp_path / "old.parquet")
    done = vidqa("table", "show", tmp_path / "old.parquet", "a.mp4")
    assert done.code == 0
    assert "does not record what settings_id s1" in done.out and "does not record which model" in done.out
    assert "reproduces this row is unknown" in done.out
    assert "unknown" in vidqa("table", "info", tmp_path / "old.parquet").out


def test_rows_are_addressed_by_number_or_path(vidqa, tmp_path):
    rows = [row(path=path, start_s=start, end_s=start + 2, question_id=question, question=question)
            for path in ("7", "b@3.mp4") for start in (0.0, 2.0) for question in ("who", "where")]  # fmt: skip
    new_table(rows, tmp_path / "t.csv")

    def found(*address: str) -> tuple[str, float, str]:
        done = vidqa("table", "show", tmp_path / "t.csv", *address, "--json")
        assert done.code == 0, done.err
        shown = json.loads(done.out)
        return shown["path"], shown["start_s"], shown["question_id"]

    assert found("7") == ("b@3.mp4", 2.0, "who")
    assert found("/videos/7@2", "who") == ("7", 2.0, "who")
    assert found("b@3.mp4@2-4", "where") == ("b@3.mp4", 2.0, "where")
    for address, message in (
        (["0"], "no row 0"), (["9"], "no row 9"), (["c.mp4"], "no row about c.mp4"), (["b@3.mp4@1"], "no such row"),
        (["b@3.mp4"], "4 rows"), (["b@3.mp4@2"], "7 (b@3.mp4@2-4 who), 8 (b@3.mp4@2-4 where)"),
        (["1", "where"], "answers 'who'"),
    ):  # fmt: skip
        done = vidqa("table", "show", tmp_path / "t.csv", *address)
        assert done.code == 2 and message in done.err, done.err


def test_prune_changes_nothing_without_yes(vidqa, table, clips):
    before = table.read_bytes()
    (clips / "a.mp4").unlink()
    done = vidqa("table", "prune", table, "--gone")
    assert done.code == 0 and "would drop 1 row of 1 file (1 of removed files)" in done.out and "--yes" in done.out
    assert table.read_bytes() == before
    report = json.loads(vidqa("table", "prune", table, "--gone", "--yes", "--json").out)
    assert report["n_rows"] == 1 and report["n_left"] == 2 and report["reasons"] == {"gone": 1}
    assert sorted(read_table(table)["path"]) == ["b.mp4", os.path.join("deeper", "c.mp4")]
    assert vidqa("describe", clips, "--out", table, "--json").code == 0
    assert read_table(table).height == 2


def test_an_unmounted_archive_is_not_gone(vidqa, table, clips):
    shutil.move(clips, clips.with_name("elsewhere"))
    done = vidqa("table", "prune", table, "--gone", "--yes")
    assert (done.code, read_table(table).height) == (0, 3)
    assert f"{clips} is missing or empty" in done.err
    clips.mkdir()
    vidqa("table", "prune", table, "--gone", "--yes")
    assert read_table(table).height == 3


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "dataset/"])
def test_prune_superseded_and_selected_rows(vidqa, tmp_path, name):
    newer = datetime(2026, 2, 2, tzinfo=UTC)
    rows = [row(), row(media_id="b" * 32, created_at=newer), row(path="b.mp4"),
            row(path="b.mp4", model="big", model_id="m2", created_at=newer),
            row(path="b.mp4", question_id="who", question="Who?"), row(path="c.mp4", settings_id="s2")]  # fmt: skip
    new_table(rows, tmp_path / "source.parquet")
    path = f"{tmp_path}/{name}"
    vidqa("table", "convert", tmp_path / "source.parquet", path)
    assert json.loads(vidqa("table", "info", path, "--json").out)["superseded"] == {"content": 1, "model": 1}
    head = [
        json.loads(line)["current"]
        for line in vidqa("table", "head", path, "--columns", "current", "--json").out.splitlines()
    ]
    assert head == [False, True, False, True, True, True]
    assert vidqa("table", "convert", path, "--out", tmp_path / "current.csv", "--current").code == 0
    assert read_table(tmp_path / "current.csv").height == 4
    narrowed = ["--superseded", "--model", "m1", "--settings", "s1", "--question", TEXT]
    assert "would drop 2 rows of 2 files" in vidqa("table", "prune", path, *narrowed).out
    assert "would drop 0 rows" in vidqa("table", "prune", path, "--superseded", "--question", "who").out
    assert vidqa("table", "prune", path, "--superseded", "--yes").code == 0
    assert read_table(path).height == 4
    for options, n_left in (("--question", "who"), 3), (("--settings", "s2"), 2), (("--model", "m2"), 1):
        assert vidqa("table", "prune", path, *options, "--yes").code == 0
        assert read_table(path).height == n_left
    done = vidqa("table", "prune", path, "--model", "m2")
    assert done.code == 2 and "no rows with the model 'm2'" in done.err and "tiny" in done.err
    assert vidqa("table", "prune", path).code == 2


def test_prune_takes_the_lock_of_the_table(vidqa, table):
    with FileLock(table):
        assert vidqa("table", "prune", table, "--question", "caption", "--yes").code == 4
        assert vidqa("table", "prune", table, "--question", "caption").code == 0, "a dry run needs no lock"
        assert vidqa("table", "merge", table, "--out", table).code == 4
    assert read_table(table).height == 3


def test_merge_and_convert(vidqa, table, clips, tmp_path):
    done = vidqa("table", "convert", table, tmp_path / "t.csv", "--spreadsheet")
    assert (done.code, done.out) == (0, "") and (tmp_path / "t.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    assert read_table(tmp_path / "t.csv").equals(read_table(table))
    assert vidqa("table", "convert", table, tmp_path / "t.csv").code == 2
    assert vidqa("table", "convert", table, tmp_path / "t.csv", "--replace").code == 0
    assert vidqa("table", "convert", table).code == 2
    vidqa("ask", clips / "a.mp4", "Which color?", "--out", tmp_path / "more.jsonl", "-q")
    done = vidqa(
        "table", "merge", table, tmp_path / "t.csv", tmp_path / "more.jsonl", "--out", tmp_path / "all.arrow", "--json"
    )
    assert json.loads(done.out) == {"n_read": 7, "n_written": 4}
    (question_id,) = read_table(tmp_path / "more.jsonl")["question_id"]
    shown = json.loads(vidqa("table", "show", tmp_path / "all.arrow", clips / "a.mp4", question_id, "--json").out)
    assert not shown["unknown"], "the provenance is merged, too"
    before = read_table(tmp_path / "all.arrow")
    done = vidqa("describe", clips, "--out", tmp_path / "all.arrow", "--json", "-q")
    assert json.loads(done.out)["rows"].get("ok", 0) == 0 and read_table(tmp_path / "all.arrow").equals(before)


def test_a_table_that_cannot_be_read(vidqa, tmp_path):
    for command in (["head"], ["info"], ["show"], ["prune", "--gone"], ["convert"]):
        rest = ["1"] if command == ["show"] else ["out.csv"] if command == ["convert"] else []
        done = vidqa("table", command[0], tmp_path / "no.parquet", *command[1:], *rest)
        assert done.code == 1 and "no such table" in done.err and not (tmp_path / "out.csv").exists()


def test_describe_at_a_terminal_ends_with_the_first_rows(vidqa, clips, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    done = vidqa("describe", clips, "--out", tmp_path / "t.parquet")
    assert "red" in done.out and done.out.endswith(f"more rows: vidqa table head {tmp_path / 't.parquet'}\n")
    for option in ("-q", "--json"):
        assert "more rows" not in vidqa("describe", clips, "--out", tmp_path / "t.parquet", option).out


def test_table_commands_do_not_import_torch(tmp_path):
    new_table([row()], tmp_path / "t.parquet")
    script = (
        "import sys; from vidqa.cli.main import run; run(sys.argv[1:]); print(*sorted(sys.modules), file=sys.stderr)"
    )
    for arguments in (["head"], ["info"], ["show", "1"], ["prune", "--gone"]):
        command = [sys.executable, "-c", script, "table", arguments[0], str(tmp_path / "t.parquet"), *arguments[1:]]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        modules = done.stderr.split()
        assert "polars" in modules and not {"torch", "transformers", "onnxruntime", "av"} & set(modules)
