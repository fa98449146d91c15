"""`vidqa ask`: stdout has the answers and nothing else."""

from __future__ import annotations

import json

import pytest

from vidqa.tables.formats import read_table


def test_one_clip_one_question_is_plain_text(vidqa, clips):
    done = vidqa("ask", clips / "a.mp4", "What happens?")
    assert (done.code, done.out) == (0, "red\n"), done.err
    assert "the tiny model" in done.err


def test_one_clip_several_questions_are_lines(vidqa, clips):
    assert vidqa("ask", clips / "a.mp4", "What?", "Why?").out == "red\nred\n"


def test_a_repeated_question_is_answered_again_and_computed_once(vidqa, clips, tmp_path, monkeypatch):
    from vidqa.pipeline import ask, chat

    computed: list[str] = []
    answer_items, generate = ask.answer_items, chat.generate

    def counted(*arguments):
        for answered in answer_items(*arguments):
            computed.extend(row.question for row in answered.rows)
            yield answered

    def counted_together(llava, requests, *arguments, **more):
        computed.extend(request.turns[-1][0] for request in requests)
        return generate(llava, requests, *arguments, **more)

    monkeypatch.setattr(ask, "answer_items", counted)
    monkeypatch.setattr(chat, "generate", counted_together)
    asked = ["What?", "Why?", "What?"]
    assert vidqa("ask", clips / "a.mp4", *asked).out == "red\n" * 3
    assert vidqa("ask", clips, *asked).out.count("red") == 9
    (tmp_path / "text.mp4").write_text("not a video")
    assert vidqa("ask", tmp_path / "text.mp4", *asked).out == "\n" * 3, "a failure has a line as well"
    for media in ([clips / "a.mp4"], [clips / "a.mp4", "--with", clips / "b.mp4"]):
        computed.clear()
        lines = vidqa("ask", *media, *asked, "--json").out.splitlines()
        assert [json.loads(line)["question"] for line in lines] == asked
        assert computed == ["What?", "Why?"]
    rows = [json.loads(line) for line in vidqa("ask", clips, *asked, "--json", "--segment", "0.5").out.splitlines()]
    of_a = [(row["question"], row["start_s"]) for row in rows if row["path"] == "a.mp4"]
    times = sorted({start for _, start in of_a})
    assert len(times) > 1 and of_a == [(text, start) for text in asked for start in times]
    vidqa("ask", clips, *asked, "--out", tmp_path / "t.csv")
    assert read_table(tmp_path / "t.csv").height == 6, "one row for each clip and question"


def test_several_clips_are_a_table(vidqa, clips):
    done = vidqa("ask", clips, "What?")
    assert done.code == 0
    assert [line.split() for line in done.out.splitlines()] == [
        ["a.mp4", "red"],
        ["b.mp4", "red"],
        ["deeper/c.mp4", "red"],
    ]


def test_json_lines(vidqa, clips):
    rows = [json.loads(line) for line in vidqa("ask", clips, "What?", "Why?", "--json").out.splitlines()]
    assert len(rows) == 6
    assert {(row["question"], row["answer"], row["status"]) for row in rows} == {
        ("What?", "red", "ok"),
        ("Why?", "red", "ok"),
    }


def test_out_writes_a_table(vidqa, clips, tmp_path):
    done = vidqa("ask", clips, "What?", "--out", tmp_path / "t.csv")
    assert (done.code, done.out) == (0, "")
    assert read_table(tmp_path / "t.csv")["question"].to_list() == ["What?"] * 3


def test_failures_are_not_printed_as_answers(vidqa, clips):
    (clips / "text.mp4").write_text("not a video")
    done = vidqa("ask", clips / "text.mp4", "What?")
    assert done.code == 3
    assert done.out.strip() == ""
    assert "vidqa: text.mp4: not_media: not an image or video but text (utf-8)" in done.err.splitlines()
    (clips / "no\x1bcvideo.mp4").touch()
    done = vidqa("ask", clips / "no\x1bcvideo.mp4", "What?")  # printed as it is, this name would clear the screen
    assert done.code == 3 and "vidqa: no\\x1bcvideo.mp4: empty_file: the file is empty" in done.err.splitlines()
    done = vidqa("ask", clips, "What?")
    assert done.code == 3
    assert "[not_media]" in done.out


def test_truncated_and_empty_answers_are_reported(vidqa, clips):
    cut = vidqa("ask", clips / "a.mp4", "What?", "Why?", "--max-new-tokens", 2)
    assert cut.code == 0 and "(2 of 2 answers truncated at the maximum number of tokens)" in cut.err
    assert "(1 of 1 answer empty)" in vidqa("ask", clips / "a.mp4", "What?", "--max-new-tokens", 1).err
    assert "answer" not in vidqa("ask", clips / "a.mp4", "What?").err
    chat = vidqa("ask", clips / "a.mp4", "--with", clips / "b.mp4", "What?", "--max-new-tokens", 2)
    assert "(1 of 1 answer truncated" in chat.err
    as_json = vidqa("ask", clips / "a.mp4", "What?", "--max-new-tokens", 2, "--json")
    assert json.loads(as_json.out)["status"] == "truncated" and "maximum number" not in as_json.err


def test_swapped_arguments_are_recognized(vidqa, clips):
    for question in ("What happens?", "What happens"):
        done = vidqa("ask", question, clips / "a.mp4")
        assert done.code == 2 and "MEDIA comes first" in done.err and "a.mp4" in done.err


def test_image(vidqa, tmp_path):
    import numpy as np
    from PIL import Image

    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "p.png")
    done = vidqa("ask", tmp_path / "p.png", "What is it?", "--json")
    row = json.loads(done.out)
    assert (row["answer"], row["n_visual_tokens"], row["duration_s"]) == ("red", 4, None)


@pytest.mark.parametrize("command", ["ask", "search"])
def test_text_that_is_not_utf8_is_a_usage_error(command, vidqa, clips):
    """Python passes on such bytes as lone surrogates."""
    for text in ("Is it \udcff?", " ", ""):
        arguments = [clips / "a.mp4", text] if command == "ask" else [text, clips / "a.mp4", "--model", "demo"]
        done = vidqa(command, *arguments)
        assert done.code == 2 and not done.out and "Traceback" not in done.err, done.err
        assert "not valid Unicode" in done.err if text.strip() else "empty" in done.err


@pytest.mark.parametrize("command", ["ask", "search", "describe", "encode"])
@pytest.mark.parametrize("value", ["1e-9", "0.001", "1e300", "nan", "inf", "-5", "0", "soon"])
def test_a_segment_length_that_makes_no_sense_is_a_usage_error(command, value, vidqa, clips, tmp_path):
    arguments = {
        "ask": ["ask", clips / "a.mp4", "What?"],
        "search": ["search", "a dog", clips],
        "describe": ["describe", clips, "--out", tmp_path / "t.csv"],
        "encode": ["encode", clips],
    }[command]
    done = vidqa(*arguments, "--segment", value)
    assert done.code == 2 and "seconds" in done.err and "Traceback" not in done.err
    assert not (tmp_path / "t.csv").exists()
