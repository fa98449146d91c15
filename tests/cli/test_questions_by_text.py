"""`vidqa describe --ask`: questions without a file."""

from __future__ import annotations

import json

from vidqa.tables.formats import read_table


def asked(table):
    frame = read_table(table)
    return dict(zip(frame["question"], frame["question_id"], strict=True))


def test_questions_on_the_command_line(vidqa, clips, tmp_path):
    table, questions = tmp_path / "t.csv", ("--ask", "What happens?", "--ask", "Is anybody there?")
    done = vidqa("describe", clips / "a.mp4", "--out", table, *questions, "--ask", "What happens? ")
    assert done.code == 0, done.err
    ids = asked(table)
    assert set(ids) == {"What happens?", "Is anybody there?"}  # not the default question
    before = table.read_bytes()
    for order in (questions, (*questions[2:], *questions[:2])):
        again = vidqa("describe", clips / "a.mp4", "--out", table, *order)
        assert (again.code, table.read_bytes()) == (0, before) and "nothing to do" in again.err
    plan = vidqa("describe", clips / "a.mp4", "--out", table, *questions, "--ask", "Why?", "--dry-run", "--json")
    assert json.loads(plan.out)["new_rows"] == 1
    answer = vidqa("ask", clips / "a.mp4", "What happens?", "--json")
    assert json.loads(answer.out)["question_id"] == ids["What happens?"]


def test_together_with_a_set(vidqa, clips, tmp_path):
    table = tmp_path / "t.csv"
    options = ("--questions", "caption", "--ask", "Describe the video.", "--ask", "caption")
    assert vidqa("describe", clips / "a.mp4", "--out", table, *options).code == 0
    ids = asked(table)
    assert ids.pop("Describe the video.") == "caption" and set(ids) == {"caption"}


def test_the_command_line_replaces_the_questions_of_the_settings(vidqa, clips, tmp_path, monkeypatch):
    (tmp_path / "vidqa.toml").write_text('[describe]\nquestions = ["scene"]\nask = ["Who?"]\n')
    one, other = ("--ask", "Why?"), ("--questions", "caption")
    for number, (options, expected) in enumerate([((), 6), (one, 1), (other, 1), (one + other, 2)]):
        plan = vidqa("describe", clips / "a.mp4", "--out", tmp_path / f"{number}.csv", "--dry-run", "--json", *options)
        assert json.loads(plan.out)["new_rows"] == expected, options


def test_wrong_questions(vidqa, clips, tmp_path):
    for question in ("", " ", "Is it \udcff?"):
        done = vidqa("describe", clips, "--out", tmp_path / "t.csv", "--ask", question)
        assert done.code == 2 and "Traceback" not in done.err and ("question" in done.err or "Unicode" in done.err)
    done = vidqa("describe", clips, "--out", tmp_path / "t.csv", "--questions", "What happens?")
    assert done.code == 2 and '--ask "TEXT"' in done.err
    assert not (tmp_path / "t.csv").exists()
