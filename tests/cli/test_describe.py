"""`vidqa describe`: the table, its columns, and what a second run computes again."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from vidqa.tables.formats import read_table

pytestmark = pytest.mark.smoke


def rows_of(table: Path) -> list[dict[str, object]]:
    return sorted(
        read_table(table).to_dicts(), key=lambda row: (row["path"], row["question_id"], row["start_s"] or 0.0)
    )


def test_every_clip_gets_its_row(vidqa, clips, tmp_path):
    table = tmp_path / "t.parquet"
    done = vidqa("describe", clips, "--out", table)
    assert done.code == 0, done.err
    assert done.out == ""
    rows = rows_of(table)
    assert [row["path"] for row in rows] == ["a.mp4", "b.mp4", str(Path("deeper", "c.mp4"))]
    for row in rows:
        assert (row["answer"], row["status"], row["finish_reason"]) == ("red", "ok", "eos")
        assert row["error_kind"] is None and row["error"] is None
        assert row["root"] == str(clips)
        assert row["question_id"] == "caption"
        assert row["model"] == "tiny"
        assert (row["width"], row["height"], row["codec"]) == (32, 32, "h264")
        assert row["duration_s"] == pytest.approx(1.2, abs=0.15)
        assert len(row["frame_times_s"]) == 8
        assert row["n_visual_tokens"] == 8 * 5
        assert row["created_at"].tzinfo is not None
    assert len({row["media_id"] for row in rows}) == 3


@pytest.mark.slow
def test_messages_are_printed_once_and_on_stderr(vidqa, clips, tmp_path):
    done = vidqa("describe", clips, "--out", tmp_path / "t.parquet")
    assert done.err.count("the tiny model says the same to everything") == 1
    assert done.err.count("ExecutionProvider") == 1
    assert "3 files processed" in done.err and "3 ok" in done.err and "bottleneck: " in done.err


def test_quiet_is_quiet(vidqa, clips, tmp_path):
    done = vidqa("describe", clips, "--out", tmp_path / "t.parquet", "-q")
    assert (done.code, done.out, done.err) == (0, "", "")


def test_json_summary_is_one_object_on_stdout(vidqa, clips, tmp_path):
    (clips / "notes.txt").write_text("not media")
    done = vidqa("describe", clips, "--out", tmp_path / "t.parquet", "--json")
    summary = json.loads(done.out)
    assert done.out.count("\n") == 1
    assert summary["files"] == 3
    assert summary["clips"]["done"] == 3
    assert summary["rows"] == {"ok": 3}
    assert sum(summary["ignored"].values()) == 1
    assert set(summary["seconds"]) == {"load", "read", "decode", "encode", "generate", "write"}
    assert summary["bottleneck"] in summary["seconds"]
    assert summary["hours_of_video"] == pytest.approx(3 * 1.2 / 3600, rel=0.2)


def test_second_run_does_nothing(vidqa, clips, tmp_path):
    table = tmp_path / "t.parquet"
    vidqa("describe", clips, "--out", table)
    before = (table.read_bytes(), table.stat().st_mtime_ns)
    done = vidqa("describe", clips, "--out", table)
    assert done.code == 0
    assert "nothing to do" in done.err
    assert "ExecutionProvider" not in done.err and "language model" not in done.err
    assert (table.read_bytes(), table.stat().st_mtime_ns) == before


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl", "arrow"])
def test_every_format_and_again(vidqa, clips, tmp_path, suffix):
    table = tmp_path / f"t.{suffix}"
    assert vidqa("describe", clips, "--out", table).code == 0
    assert len(rows_of(table)) == 3
    assert "nothing to do" in vidqa("describe", clips, "--out", table).err


@pytest.mark.slow
def test_a_new_file_only_adds_its_row(vidqa, clips, tmp_path, make_clip):
    table = tmp_path / "t.parquet"
    vidqa("describe", clips, "--out", table)
    old = rows_of(table)
    make_clip(clips / "new.mp4", seed=9)
    done = json.loads(vidqa("describe", clips, "--out", table, "--json").out)
    assert done["clips"]["done"] == 1 and done["existing"] == {"ok": 3}
    rows = rows_of(table)
    assert [row for row in rows if row["path"] != "new.mp4"] == old
    assert len(rows) == 4


def test_new_question_uses_the_cache(vidqa, clips, tmp_path):
    table, questions = tmp_path / "t.parquet", tmp_path / "q.toml"
    vidqa("describe", clips, "--out", table)
    questions.write_text('[[question]]\nid = "who"\ntext = "Who is there?"\n')
    done = json.loads(vidqa("describe", clips, "--out", table, "--questions", questions, "--json").out)
    assert done["clips"] == {"done": 3, "cached": 3, "failed": 0}
    assert Counter(row["question_id"] for row in rows_of(table)) == {"caption": 3, "who": 3}


@pytest.mark.slow
def test_repeated_frames_are_counted_for_new_and_for_cached_features(vidqa, tmp_path, make_clip):
    folder, table, questions = tmp_path / "short", tmp_path / "t.parquet", tmp_path / "q.toml"
    make_clip(folder / "five.mp4", n_frames=5)
    make_clip(folder / "one.mp4", seed=1, n_frames=1)
    make_clip(folder / "whole.mp4", seed=2, n_frames=12)
    (folder / "text.mp4").write_text("not a video")
    expected = {"five.mp4": 3, "one.mp4": 7, "whole.mp4": 0, "text.mp4": None}
    assert vidqa("describe", folder, "--out", table).code == 3
    assert {row["path"]: row["n_repeated_frames"] for row in rows_of(table)} == expected
    questions.write_text('[[question]]\nid = "who"\ntext = "Who is there?"\n')
    done = vidqa("describe", folder, "--out", table, "--questions", questions, "--json")
    assert json.loads(done.out)["clips"]["cached"] == 3
    new_rows = [row for row in rows_of(table) if row["question_id"] == "who"]
    assert {row["path"]: row["n_repeated_frames"] for row in new_rows} == expected


def test_renamed_file_keeps_its_row(vidqa, clips, tmp_path):
    table = tmp_path / "t.parquet"
    vidqa("describe", clips, "--out", table)
    (clips / "a.mp4").rename(clips / "z.mp4")
    done = json.loads(vidqa("describe", clips, "--out", table, "--json").out)
    assert done["clips"]["done"] == 0 and done["renamed"] == 1
    assert [row["path"] for row in rows_of(table)] == ["b.mp4", str(Path("deeper", "c.mp4")), "z.mp4"]


def test_duplicates_are_processed_once_and_both_have_rows(vidqa, clips, tmp_path):
    shutil.copy(clips / "a.mp4", clips / "copy of a.mp4")
    table = tmp_path / "t.parquet"
    done = json.loads(vidqa("describe", clips, "--out", table, "--json").out)
    rows = rows_of(table)
    assert done["clips"]["done"] == 3 and done["rows"] == {"ok": 4}
    assert len(rows) == 4 and len({row["media_id"] for row in rows}) == 3
    shutil.copy(clips / "b.mp4", clips / "later.mp4")
    done = json.loads(vidqa("describe", clips, "--out", table, "--json").out)
    assert done["clips"]["done"] == 0 and done["copied"] == 1 and done["existing"] == {"ok": 5}
    assert len(rows_of(table)) == 5
    assert "nothing to do" in vidqa("describe", clips, "--out", table).err


@pytest.mark.slow
def test_segments_of_fixed_length(vidqa, clips, tmp_path):
    table = tmp_path / "t.parquet"
    done = vidqa("describe", clips, "--out", table, "--segment", "0.5")
    assert done.code == 0, done.err
    rows = [row for row in rows_of(table) if row["path"] == "a.mp4"]
    assert [row["start_s"] for row in rows] == pytest.approx([0.0, 0.5, 1.0])
    assert all(row["start_s"] <= t <= row["end_s"] + 1e-6 for row in rows for t in row["frame_times_s"])
    assert "nothing to do" in vidqa("describe", clips, "--out", table, "--segment", "0.5").err
    assert json.loads(vidqa("describe", clips, "--out", table, "--json").out)["rows"] == {
        "ok": 3
    }  # unsegmented: new rows


def test_max_new_tokens_truncates_and_is_a_setting(vidqa, clips, tmp_path):
    table = tmp_path / "t.parquet"
    assert vidqa("describe", clips, "--out", table, "--max-new-tokens", "2").code == 0
    assert {(row["answer"], row["status"], row["finish_reason"]) for row in rows_of(table)} == {
        ("r", "truncated", "length")
    }
    assert vidqa("describe", clips, "--out", table).code == 0
    assert Counter(row["status"] for row in rows_of(table)) == {"truncated": 3, "ok": 3}


def test_typed_questions_are_asked_as_text_with_a_note(vidqa, clips, tmp_path):
    asked = '[[question]]\nid = "c"\ntext = "Colour?"\ntype = "choice"\nchoices = ["red", "blue"]\n'
    (tmp_path / "typed.toml").write_text(asked)
    done = vidqa("describe", clips / "a.mp4", "--out", tmp_path / "t.csv", "--questions", tmp_path / "typed.toml")
    assert done.code == 0 and done.err.count("questions of type choice are asked as free text") == 1
    (row,) = rows_of(tmp_path / "t.csv")
    assert (row["answer"], row["value"], row["confidence"]) == ("red", None, None)
    assert "free text" not in vidqa("describe", clips / "a.mp4", "--out", tmp_path / "u.csv").err


@pytest.mark.slow
def test_broken_files_cost_their_row_and_exit_3(vidqa, clips, tmp_path):
    whole = (clips / "a.mp4").read_bytes()
    (clips / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    (clips / "empty.mp4").write_bytes(b"")
    (clips / "text.mp4").write_text("this is not a video")
    (clips / "notes.txt").write_text("plain text is ignored")
    table = tmp_path / "t.parquet"
    done = vidqa("describe", clips, "--out", table)
    assert done.code == 3, done.err
    rows = rows_of(table)
    assert Counter(row["status"] for row in rows) == {"ok": 3, "failed": 3}
    kinds = {row["path"]: row["error_kind"] for row in rows if row["status"] == "failed"}
    assert kinds["empty.mp4"] == "empty_file"
    assert kinds["text.mp4"] == "not_media"
    assert kinds["cut.mp4"] in ("unreadable", "no_video")
    assert all(row["answer"] is None and row["error"] for row in rows if row["status"] == "failed")
    again = vidqa("describe", clips, "--out", table)
    assert again.code == 3, "the table still has failed rows for these files"
    assert "nothing to do" in again.err and "--retry failed" in again.err
    retried = json.loads(vidqa("describe", clips, "--out", table, "--retry", "failed", "--json").out)
    assert retried["rows"] == {"failed": 3} and retried["existing"] == {"ok": 3}
    assert len(rows_of(table)) == 6


def test_a_question_that_gets_another_id_keeps_its_rows(vidqa, clips, tmp_path, make_clip):
    table, questions = tmp_path / "t.parquet", tmp_path / "q.toml"
    ids = {"What?": "a", "Why?": "b"}
    for new_ids in (ids, ids, {"What?": "c", "Why?": "b"}, {"What?": "b", "Why?": "c"}):
        questions.write_text("".join(f'[[question]]\nid = "{i}"\ntext = "{text}"\n' for text, i in new_ids.items()))
        before = table.read_bytes() if table.exists() else b""
        summary = json.loads(vidqa("describe", clips, "--out", table, "--questions", questions, "--json").out)
        assert {(row["question"], row["question_id"]) for row in rows_of(table)} == set(new_ids.items())
        assert len(rows_of(table)) == 6 and summary["rows"] == ({"ok": 6} if not before else {})
        changed = sum(ids[text] != new_ids[text] for text in ids)
        assert summary["renamed_questions"] == changed
        assert bool(before) == (changed > 0) or table.read_bytes() == before
        ids = new_ids


def test_prompt_that_does_not_fit_is_a_row(vidqa, clips, tmp_path):
    questions = tmp_path / "q.toml"
    questions.write_text(f'[[question]]\nid = "long"\ntext = "{"why " * 800}"\n')
    done = vidqa("describe", clips, "--out", tmp_path / "t.parquet", "--questions", questions, "-v")
    assert done.code == 3
    rows = rows_of(tmp_path / "t.parquet")
    assert {row["error_kind"] for row in rows} == {"prompt_too_long"}
    assert done.err.count("failed: a.mp4: prompt_too_long: ") == 1
    assert all("more than the context of 2048" in row["error"] for row in rows)
    assert all(row["duration_s"] is not None for row in rows)


@pytest.mark.slow
def test_dry_run_prints_the_plan_and_does_nothing(vidqa, clips, tmp_path):
    table = tmp_path / "t.parquet"
    done = vidqa("describe", clips, "--out", table, "--dry-run", "--json")
    plan = json.loads(done.out)
    assert done.code == 0
    assert (plan["files"], plan["new_rows"], plan["existing_rows"]) == (3, 3, 0)
    assert plan["hours_of_video"] == pytest.approx(3 * 1.2 / 3600, rel=0.2)
    assert not table.exists()
    vidqa("describe", clips, "--out", table)
    plan = json.loads(vidqa("describe", clips, "--out", table, "--dry-run", "--json").out)
    assert (plan["new_rows"], plan["existing_rows"]) == (0, 3)
    assert "3 files" in vidqa("describe", clips, "--out", table, "--dry-run").out


@pytest.mark.slow
def test_odd_names(vidqa, clips, tmp_path, make_clip):
    odd = ["-dash.mp4", "with space 'and quotes\".mp4", "new\nline.mp4", "наука.mp4", "[brackets].mp4"]
    for i, name in enumerate(odd):
        make_clip(tmp_path / "made.mp4", seed=20 + i).rename(clips / name)
    table = tmp_path / "t.parquet"
    assert vidqa("describe", clips, "--out", table).code == 0
    assert {row["path"] for row in rows_of(table)} >= set(odd)
    assert "nothing to do" in vidqa("describe", clips, "--out", table).err


@pytest.mark.slow
def test_undecodable_name(vidqa, clips, tmp_path, make_clip):
    import os

    made = make_clip(tmp_path / "made.mp4", seed=30)
    try:
        os.rename(made, os.path.join(os.fsencode(clips), b"caf\xe9.mp4"))
    except OSError:
        pytest.skip("this file system takes no such names")
    for suffix in ("parquet", "csv"):
        table = tmp_path / f"t.{suffix}"
        assert vidqa("describe", clips, "--out", table).code == 0
        assert len(rows_of(table)) == 4
        assert "nothing to do" in vidqa("describe", clips, "--out", table).err


@pytest.mark.slow
def test_csv_for_spreadsheets_is_continued_without_the_option(vidqa, clips, tmp_path, make_clip):
    make_clip(clips / "=1+1.mp4", seed=40)
    table = tmp_path / "t.csv"
    assert vidqa("describe", clips, "--out", table, "--spreadsheet").code == 0
    before = table.read_bytes()
    assert b',"\'=1+1.mp4",' in before and b',"=1+1.mp4",' not in before
    assert "nothing to do" in vidqa("describe", clips, "--out", table).err
    assert table.read_bytes() == before
    make_clip(clips / "-2.mp4", seed=41)
    assert vidqa("describe", clips, "--out", table).code == 0
    assert b',"\'-2.mp4",' in table.read_bytes()
    assert {row["path"] for row in rows_of(table)} >= {"=1+1.mp4", "-2.mp4"}
