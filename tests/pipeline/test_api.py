"""The Python API does the same as the commands."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import pairwise
from types import FunctionType

import av
import numpy as np
import pytest

import vidqa
from vidqa.errors import ItemError
from vidqa.pipeline.encode import encode
from vidqa.pipeline.run.run_options import RunOptions, settings_of


def test_three_calls(tiny_bundle, clips, tmp_path, monkeypatch):
    monkeypatch.setenv("VIDQA_CACHE", str(tmp_path / "cache"))
    model = vidqa.load_model(str(tiny_bundle))
    summary = vidqa.describe(str(clips), tmp_path / "t.parquet", model=model)
    assert summary.rows == {"ok": 3} and summary.n_failed == 0
    assert vidqa.read_table(tmp_path / "t.parquet")["answer"].to_list() == ["red"] * 3
    rows = vidqa.ask(str(clips / "a.mp4"), "What?", "Why?", model=model)
    assert [(row.question, row.answer) for row in rows] == [("What?", "red"), ("Why?", "red")]
    assert isinstance(rows[0], vidqa.AnswerRow)
    assert threading.active_count() < 20, "no decode threads are left"


@pytest.mark.slow
def test_custom_questions_and_errors(tiny_bundle, clips, tmp_path):
    options = RunOptions(cache_dir=tmp_path / "cache")
    asked = [vidqa.Question("q", "Is it red?")]
    summary = vidqa.describe([str(clips)], tmp_path / "t.csv", questions=asked, model=str(tiny_bundle), options=options)
    assert summary.rows["ok"] == 3
    with pytest.raises(vidqa.VidqaError, match="no media found"):
        vidqa.describe([str(tmp_path / "cache")], tmp_path / "u.csv", model=str(tiny_bundle), options=options)
    with pytest.raises(vidqa.VidqaError, match="question is missing"):
        vidqa.ask(str(clips), model=str(tiny_bundle), options=options)


def test_questions_in_every_form(tiny_bundle, clips, tmp_path):
    (tmp_path / "mine.toml").write_text('[[question]]\nid = "a"\ntext = "What?"\n')
    how = {"model": vidqa.load_model(str(tiny_bundle)), "options": vidqa.RunOptions(tmp_path / "cache")}
    for number, given in enumerate([
        "caption", str(tmp_path / "mine.toml"), tmp_path / "mine.toml", vidqa.Question("q", "Why?"),
        ["caption", tmp_path / "mine.toml", vidqa.Question("q", "Why?")],
    ]):  # fmt: skip
        done = vidqa.describe(clips / "a.mp4", tmp_path / f"{number}.csv", questions=given, **how)
        assert done.rows["ok"] == (3 if isinstance(given, list) else 1)
    asked = vidqa.read_table(tmp_path / "4.csv")["question"].to_list()
    assert sorted(asked) == ["Describe the video.", "What?", "Why?"]
    for wrong, message in (
        ([], "no questions"),
        ("captoin", "no question set 'captoin'; did you mean `caption`?"),
        (["What happens?", ""], "a question is missing or empty"),
        ([vidqa.Question("q", "Why?"), vidqa.Question("q", "How?")], "question id `q`"),
    ):
        with pytest.raises(vidqa.VidqaError, match=re.escape(message)):
            vidqa.describe(clips / "a.mp4", tmp_path / "wrong.csv", questions=wrong, **how)


def test_questions_by_their_text(tiny_bundle, clips, tmp_path):
    how = {"model": vidqa.load_model(str(tiny_bundle)), "options": vidqa.RunOptions(tmp_path / "cache")}
    mixed = ["What happens?", vidqa.Question("who", "Who is there?"), " What happens? ", "Who is there?"]
    assert vidqa.describe(clips / "a.mp4", tmp_path / "t.csv", questions=mixed, **how).rows["ok"] == 2
    table = vidqa.read_table(tmp_path / "t.csv")
    ids = dict(zip(table["question"], table["question_id"], strict=True))
    assert ids["Who is there?"] == "who" and ids["What happens?"].startswith("what-happens-")
    assert vidqa.describe(clips / "a.mp4", tmp_path / "t.csv", questions="What happens?", **how).nothing_done
    (row,) = vidqa.ask(clips / "a.mp4", "What happens?", **how)
    assert row.question_id == ids["What happens?"]  # however it was asked


def test_options_use_the_cache_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDQA_CACHE", str(tmp_path / "mine"))
    assert vidqa.RunOptions(segment_s=30).cache_dir == tmp_path / "mine"


def test_public_names_and_docstring():
    assert set(vidqa.__all__) <= set(dir(vidqa))
    assert "paths -> media -> FrameBatch -> encoders -> Features -> cache" in vidqa.__doc__
    with pytest.raises(AttributeError, match="no attribute 'describ'"):
        _ = vidqa.describ


def test_functions_are_not_replaced_by_modules():
    """An import of `vidqa.x.y` sets the attribute `x` of the package."""
    import vidqa.conversion.convert
    import vidqa.pipeline.convert_model
    import vidqa.pipeline.train
    import vidqa.training.api

    for name in ("train", "convert", "chat", "search", "encode", "describe"):
        assert isinstance(getattr(vidqa, name), FunctionType)


def test_representations_show_what_a_person_looks_for(tiny_bundle, clips, tmp_path):
    how = {"model": vidqa.load_model(str(tiny_bundle)), "options": RunOptions(tmp_path / "cache")}
    assert re.fullmatch(r"<LoadedModel tiny on \S+, model_id \S+, loaded: nothing>", repr(how["model"]))
    (row,) = vidqa.ask(clips / "a.mp4", "What?", **how)
    assert re.fullmatch(
        r"AnswerRow\(path='a.mp4', start_s=0.0, end_s=\d.\d+, question='What\?', answer='red', status='ok'\)", repr(row)
    )
    assert repr(how["model"]).endswith("loaded: encoder, llava>")
    summary = vidqa.describe(clips, tmp_path / "t.csv", **how)
    assert re.fullmatch(r"<Summary: t.csv: 3 new rows, 0 failed; 3 files in .+>", repr(summary))
    session = vidqa.chat(clips / "a.mp4", **how)
    session.ask("What?")
    assert repr(session) == "<ChatSession: 1 media item, 1 turn>"


def test_settings_id_depends_only_on_what_changes_answers(tmp_path):
    question = vidqa.Question("a", "What?")
    base = settings_of(RunOptions(tmp_path), question)
    assert base == settings_of(
        RunOptions(tmp_path / "x", batch_size=3, timeout_s=5, n_workers=1, retry="failed"), question
    )
    assert base == settings_of(RunOptions(tmp_path), vidqa.Question("b", "Why?"))
    others = {
        settings_of(RunOptions(tmp_path, segment_s=2.0), question),
        settings_of(RunOptions(tmp_path, max_new_tokens=5), question),
        settings_of(RunOptions(tmp_path), vidqa.Question("a", "What?", max_new_tokens=7)),
    }
    assert len(others | {base}) == 4


def test_options_report_all_problems_at_once(tmp_path):
    with pytest.raises(vidqa.VidqaError) as caught:
        RunOptions(tmp_path, segment_s=0, batch_size=0, timeout_s=-1)
    assert len(str(caught.value).splitlines()) == 3
    wrong = {
        "cache_dir": None, "segment_s": "30", "timeout_s": None, "max_new_tokens": 5.0, "batch_size": "2",
        "n_workers": 1.5, "memory_bytes": "4GB", "retry": True,
    }  # fmt: skip
    for name in ("segment_s", "timeout_s", "max_new_tokens", "batch_size", "n_workers", "memory_bytes"):
        with pytest.raises(vidqa.VidqaError, match="got True"):
            RunOptions(**{name: True})
    for value in (1e-9, 1e300, float("nan"), float("inf"), -1, 0, 10**400):
        with pytest.raises(vidqa.VidqaError, match=r"segment length must be 0.01 to 1,000,000 seconds, got"):
            RunOptions(segment_s=value)
    for value in (float("nan"), float("inf"), -1, 0, 10**400):
        with pytest.raises(vidqa.VidqaError, match=r"timeout must be a positive number of seconds, got"):
            RunOptions(timeout_s=value)
    with pytest.raises(vidqa.VidqaError) as caught:
        RunOptions(**wrong)
    for line, (name, value) in zip(sorted(str(caught.value).splitlines()), sorted(wrong.items()), strict=True):
        assert line.split()[0] in name and line.endswith(repr(value))


def test_options_are_normalized(tiny_bundle, clips, tmp_path, monkeypatch):
    for home in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(home, str(tmp_path))
    monkeypatch.setenv("VIDQA_CACHE", "~/there")
    assert RunOptions().cache_dir == tmp_path / "there"  # as on the command line
    same = RunOptions(str(tmp_path / "c"), segment_s=np.float32(1.5), max_new_tokens=np.int64(4), timeout_s=9)
    plain = RunOptions(tmp_path / "c", segment_s=1.5, max_new_tokens=4, timeout_s=9.0)
    assert same == plain
    assert RunOptions(tmp_path, timeout_s=1e300).timeout_s <= threading.TIMEOUT_MAX
    assert RunOptions(tmp_path, batch_size=10**30).batch_size < 2**63
    question = vidqa.Question("a", "What?")
    assert settings_of(same, question) == settings_of(plain, question)
    summary = vidqa.describe(clips, tmp_path / "t.csv", model=str(tiny_bundle), options=same)
    assert sum(summary.rows.values()) == 3
    assert (tmp_path / "c" / "rates.json").exists()


@pytest.mark.slow
def test_paths_in_every_form(tiny_bundle, clips, tmp_path):
    how = {"model": vidqa.load_model(str(tiny_bundle)), "options": RunOptions(tmp_path / "cache", max_new_tokens=2)}
    one = clips / "a.mp4"
    for number, given in enumerate([one, str(one), [one], iter([one]), clips.glob("a.*"), {str(one)}]):
        assert vidqa.describe(given, tmp_path / f"{number}.csv", **how).files == 1
    for make in (lambda: one, lambda: [str(one)], lambda: clips.glob("a.*")):
        assert [row.path for row in vidqa.ask(make(), "What?", **how)] == ["a.mp4"]
        assert vidqa.chat(make(), **how).ask("What?").question == "What?"
    demo = {"options": how["options"], "model": "demo"}  # the only model here with a text encoder
    assert [hit.path for hit in vidqa.search("a red cross", clips.glob("a.*"), **demo).hits] == ["a.mp4"]


def test_question_values_are_validated_like_files(tiny_bundle, clips, tmp_path):
    how = {"model": vidqa.load_model(str(tiny_bundle)), "options": RunOptions(tmp_path / "cache")}
    (tmp_path / "mine.toml").write_text('[[question]]\nid = "a"\ntext = " What? "\n')
    vidqa.describe(clips, tmp_path / "t.csv", questions=tmp_path / "mine.toml", **how)
    again = vidqa.describe(clips, tmp_path / "t.csv", questions=vidqa.Question("a", " What? "), **how)
    assert again.nothing_done  # the same question in both forms
    with pytest.raises(vidqa.VidqaError, match="a question must be a str, not list"):
        vidqa.ask(clips, ["What?", "Why?"], **how)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda how: vidqa.ask(None, "What?", **how), "media"),
        (lambda how: vidqa.ask(3, "What?", **how), "media"),
        (lambda how: vidqa.ask(b"a.mp4", "What?", **how), "media"),
        (lambda how: vidqa.ask(["a.mp4", None], "What?", **how), "media"),
        (lambda how: vidqa.ask("a.mp4", "What?", **how | {"options": {}}), "options"),
        (lambda how: vidqa.ask("a.mp4", "What?", **how | {"model": 3}), "model"),
        (lambda how: vidqa.ask("a.mp4", "What?", **how | {"model": None}), "model"),
        (lambda how: vidqa.ask("a.mp4", "What?", reporter=print, **how), "reporter"),
        (lambda how: vidqa.chat(None, **how), "media"),
        (lambda how: vidqa.chat("a.mp4", **how | {"options": "x"}), "options"),
        (lambda how: vidqa.search(None, "a.mp4", **how), "text"),
        (lambda how: vidqa.search("a dog", None, **how | {"model": "demo"}), "paths"),
        (lambda how: vidqa.search("a dog", "a.mp4", top=1.5, **how), "top"),
        (lambda how: vidqa.search("a dog", "a.mp4", top=True, **how), "top"),
        (lambda how: vidqa.describe(None, "t.csv", **how), "paths"),
        (lambda how: vidqa.describe("a.mp4", None, **how), "out"),
        (lambda how: vidqa.describe("a.mp4", "t.csv", questions=5, **how), "questions"),
        (lambda how: vidqa.describe("a.mp4", "t.csv", questions=["caption", 5], **how), "questions"),
        (lambda how: vidqa.describe("a.mp4", "t.csv", **how | {"options": []}), "options"),
        (lambda how: encode(None, **how), "paths"),
        (lambda how: encode("a.mp4", **how | {"options": {}}), "options"),
    ],
)
def test_wrong_types_are_named(call, name, tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError, match=rf"^{name} must be "):
        call({"model": vidqa.load_model(str(tiny_bundle)), "options": RunOptions(tmp_path / "cache")})
    assert not (tmp_path / "t.csv").exists()


@pytest.mark.parametrize(
    ("text", "problem"), [("Is it \udcff?", "not valid Unicode at character 7"), ("a\0b", "NUL"), (" ", "empty")]
)
def test_text_that_cannot_be_in_a_prompt_is_an_error(text, problem, tiny_bundle, clips, tmp_path):
    how = {"model": vidqa.load_model(str(tiny_bundle)), "options": RunOptions(tmp_path / "cache")}
    session = vidqa.chat(clips / "a.mp4", **how)
    with pytest.raises(vidqa.VidqaError, match=problem):
        vidqa.ask(clips / "a.mp4", text, **how)
    with pytest.raises(vidqa.VidqaError, match=problem):
        session.ask(text)
    with pytest.raises(vidqa.VidqaError, match=problem):
        vidqa.search(text, clips / "a.mp4", **how | {"model": "demo"})
    with pytest.raises(TypeError, match="question must be a str, not NoneType"):
        session.ask(None)
    assert session.ask("Is it red?").text == "red"


@pytest.mark.slow
def test_threads_may_share_a_model(tiny_bundle, clips, tmp_path):
    model, options = vidqa.load_model(str(tiny_bundle)), RunOptions(tmp_path / "cache", n_workers=1)
    calls = [
        *(lambda q=q: [row.answer for row in vidqa.ask(clips, q, model=model, options=options)] for q in ("A?", "B?")),
        lambda: [vidqa.chat(clips / "a.mp4", model=model, options=options).ask("C?").text] * 3,
        lambda: vidqa.describe(clips, tmp_path / "t.csv", model=model, options=options).rows["ok"] * ["red"],
    ]
    with ThreadPoolExecutor(len(calls)) as pool:
        futures = [pool.submit(call) for call in calls]
        assert [future.result() for future in futures] == [["red"] * 3] * len(calls)


@pytest.mark.slow
def test_a_long_video_of_few_frames_has_few_segments(tiny_bundle, tmp_path):
    """Windows without a frame belong to the window before them; a wrong time in a file must not cost 250,000 rows."""
    with av.open(str(tmp_path / "long.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 32
        for seconds in (0, 1, 2500):
            frame = av.VideoFrame(32, 32, "yuv420p")
            frame.pts, frame.time_base = seconds * 10, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    model, whole = vidqa.load_model(str(tiny_bundle)), RunOptions(tmp_path / "cache")
    for prepare in (lambda: None, lambda: encode(tmp_path / "long.mp4", model=model, options=whole)):
        prepare()  # with and without facts in the cache
        rows = vidqa.ask(
            tmp_path / "long.mp4", "What?", model=model, options=RunOptions(tmp_path / "cache", segment_s=0.01)
        )
        bounds = [(row.start_s, row.end_s) for row in rows]
        assert bounds[0][0] == 0 and all(a[1] == b[0] for a, b in pairwise(bounds)) and bounds[-1][1] > 2500
        assert len(rows) < 150 and {row.status for row in rows} == {"ok"}


def test_out_of_memory_of_one_file_fails_only_its_row(tiny_bundle, clips, tmp_path, monkeypatch):
    """The encoder runs out of memory whenever one video is in the batch; the others are still answered."""
    from vidqa.encoders.encoder import Encoder

    encode, bad = Encoder.encode, []

    def fails(self, inputs):
        if not bad:
            bad.append(inputs[0].values.tobytes())
        if any(one.values.tobytes() == bad[0] for one in inputs):
            raise ItemError("out_of_memory", "the device is full")
        return encode(self, inputs)

    monkeypatch.setattr(Encoder, "encode", fails)
    summary = vidqa.describe(
        str(clips), tmp_path / "t.parquet", model=str(tiny_bundle), options=RunOptions(cache_dir=tmp_path / "cache")
    )
    assert summary.rows == {"ok": 2, "failed": 1} and summary.errors == {"out_of_memory": 1}


def test_a_bug_in_a_stage_is_raised_and_finished_rows_are_kept(tiny_bundle, clips, tmp_path, monkeypatch):
    """An error that is none of ours must end the run with its traceback, not hide in a row."""
    import vidqa.pipeline.run.prefetch as prefetch_module

    def broken(*arguments):
        raise ZeroDivisionError

    options = RunOptions(cache_dir=tmp_path / "cache")
    vidqa.describe(str(clips / "a.mp4"), tmp_path / "t.parquet", model=str(tiny_bundle), options=options)
    monkeypatch.setattr(prefetch_module, "plan_segments", broken)
    with pytest.raises(ZeroDivisionError):
        vidqa.describe(
            str(clips),
            tmp_path / "t.parquet",
            questions=[vidqa.Question("b", "B?")],
            model=str(tiny_bundle),
            options=options,
        )
    assert len(vidqa.read_table(tmp_path / "t.parquet")) == 1
