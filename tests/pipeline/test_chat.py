"""Several files in one prompt, and dialogues: the demo model, compared with prompts that are built by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import vidqa
from vidqa.errors import ItemError, UsageError
from vidqa.generate.engine import Request, generate
from vidqa.model.bundle.bundle import Bundle
from vidqa.pipeline.chat import ask_together, features_of
from vidqa.pipeline.monitor.reporter import QUIET
from vidqa.pipeline.run.answer_stage import generation_settings
from vidqa.pipeline.run.loaded_model import LoadedModel, load_model
from vidqa.pipeline.run.run_context import RunContext
from vidqa.pipeline.run.run_options import RunOptions

CLIPS = Path(__file__).resolve().parents[2] / "examples" / "clips"
CLIP, IMAGE = str(CLIPS / "clip06.mp4"), str(CLIPS / "image11.png")


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load_model("demo", "cpu")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> RunOptions:
    return RunOptions(cache_dir=tmp_path_factory.mktemp("cache"))


def test_dialogue_equals_the_full_prompts(demo: LoadedModel, options: RunOptions) -> None:
    session = vidqa.chat(CLIP, model=demo, options=options)
    features = features_of(RunContext.create(demo, options, QUIET), [CLIP])
    for question in ("What happens?", "What colour is it?", "Is there a blue star?", "What happens?"):
        request = Request(features, (*session.turns, (question, None)))
        pieces = list(session.stream(question))
        (whole,) = generate(demo.llava, [request], generation_settings(demo, options))
        turn = session.last
        assert turn is not None
        assert (turn.text, turn.n_prompt_tokens) == (whole.text, whole.n_prompt_tokens)
        assert "".join(pieces) == turn.text
        assert turn.n_computed_tokens <= turn.n_prompt_tokens - 136, "the KV cache of the video is reused"
    assert session.turns[0][1] == vidqa.ask(CLIP, "What happens?", model=demo, options=options)[0].answer


@pytest.mark.parametrize("media", [(CLIP, IMAGE), (IMAGE, CLIP), (IMAGE, IMAGE)])
def test_media_are_in_the_order_given(media: tuple[str, ...], demo: LoadedModel, options: RunOptions) -> None:
    run = RunContext.create(demo, options, QUIET)
    features = features_of(run, media)
    assert [f.kind for f in features] == ["video" if m == CLIP else "image" for m in media]
    alone = [features_of(run, [m])[0] for m in media]
    assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(features, alone, strict=True))
    replies = ask_together(media, "What is it?", "What colour is it?", model=demo, options=options)
    (expected,) = generate(
        demo.llava, [Request(tuple(alone), (("What is it?", None),))], generation_settings(demo, options)
    )
    assert (replies[0].answer, replies[0].n_prompt_tokens) == (expected.text or None, expected.n_prompt_tokens)
    assert replies[0].n_visual_tokens == sum(136 if m == CLIP else 16 for m in media)
    assert [r.question for r in replies] == ["What is it?", "What colour is it?"]
    assert vidqa.chat(media, model=demo, options=options).ask("What is it?").text == expected.text


def test_an_unreadable_file_is_named(demo: LoadedModel, options: RunOptions, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(ItemError, match=r"text\.mp4: ") as e:
        ask_together([IMAGE, str(tmp_path / "text.mp4")], "What?", model=demo, options=options)
    assert e.value.kind == "not_media"
    with pytest.raises(ItemError, match=r"none\.mp4: no such file") as e:
        vidqa.chat(str(tmp_path / "none.mp4"), model=demo, options=options)
    assert e.value.kind == "missing"


def test_invalid_media_of_a_prompt(demo: LoadedModel, options: RunOptions) -> None:
    for media in ([str(CLIPS)], [IMAGE, str(CLIPS / "*.mp4")]):
        with pytest.raises(UsageError, match="name each file"):
            vidqa.chat(media, model=demo, options=options)
    with pytest.raises(UsageError, match="no image or video was given"):
        vidqa.chat([], model=demo, options=options)
    with pytest.raises(UsageError, match="cannot be split into segments"):
        vidqa.chat(CLIP, model=demo, options=replace(options, segment_s=1.0))
    with pytest.raises(UsageError, match="question is missing"):
        ask_together([CLIP, IMAGE], model=demo, options=options)


@pytest.mark.parametrize(("architecture", "media"), [("valley", [IMAGE, CLIP]), ("video_chatgpt", [CLIP, CLIP])])
def test_more_media_than_a_model_supports(
    architecture: str, media: list[str], demo: LoadedModel, options: RunOptions
) -> None:
    spec = replace(demo.bundle.spec, architecture=architecture)
    other = LoadedModel(Bundle(demo.bundle.folder, spec), "cpu")
    other.__dict__["encoder"] = demo.encoder
    with pytest.raises(UsageError, match="one image or video per prompt, not 2"):
        vidqa.chat(media, model=other, options=options)
    assert len(features_of(RunContext.create(other, options, QUIET), media[:1])) == 1


def test_too_long_is_a_failed_reply(demo: LoadedModel, options: RunOptions) -> None:
    (reply,) = ask_together([CLIP, IMAGE], "Is it red? " * 200, model=demo, options=options)
    assert (reply.status, reply.error_kind, reply.answer) == ("failed", "prompt_too_long", None)
