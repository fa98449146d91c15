"""A dialogue gives what the full prompts would give, token for token, and computes the media once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from vidqa.errors import ItemError, PromptTooLongError, UsageError
from vidqa.generate.chat_session import ChatSession, ChatTurn
from vidqa.generate.engine import GenerationSettings, Request, generate
from vidqa.model.video_llava import VideoLlava
from vidqa.prompts.chat_formats import get_format
from vidqa.records import Answer, Features

SHORT = GenerationSettings(max_new_tokens=8)
QUESTIONS = ("What happens?", "And then?", "Why is it so? Say it in one word.")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def as_format(model: VideoLlava) -> Callable[[str], VideoLlava]:
    """The tiny model with another chat format, and the tokens that this one needs."""

    def change(name: str) -> VideoLlava:
        model.chat = get_format(name, "A short header." if name not in ("plain", "hf") else None)
        model.tokenizer = copy.deepcopy(model.tokenizer)
        # The tiny connector makes one run of tokens of a clip.
        model.chat = replace(model.chat, special_tokens=model.chat.special_tokens[:1])
        marks = [word for mark in model.chat.special_tokens for word in mark]
        tokens = ["<image>", "<video>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", *marks]
        model.tokenizer.add_tokens(tokens, special_tokens=True)
        model.tokenizer.chat_template = TEMPLATE
        torch.manual_seed(5)
        model.llm.resize_token_embeddings(len(model.tokenizer), mean_resizing=False)
        return model

    return change


def as_asked_alone(session: ChatSession, said: ChatTurn, before: list[tuple[str, str]]) -> None:
    """The same answer as of the full prompt, computed anew."""
    request = Request(session._features, (*before, (said.question, None)))
    (whole,) = generate(session.model, [request], session.settings)
    assert isinstance(whole, Answer)
    assert (said.text, said.finish_reason, said.status) == (whole.text, whole.finish_reason, whole.status)
    counts = (whole.n_visual_tokens, whole.n_prompt_tokens, whole.n_answer_tokens)
    assert (said.n_visual_tokens, said.n_prompt_tokens, said.n_answer_tokens) == counts


def talk(session: ChatSession, *questions: str) -> list[ChatTurn]:
    """Ask and compare each turn with the full prompt."""
    out = []
    for question in questions:
        before = list(session.turns)
        out.append(session.ask(question))
        as_asked_alone(session, out[-1], before)
    return out


@pytest.mark.parametrize(
    "name", ["v1", "llava_v0", "hf", "chat_template", "video-chatgpt_v1", "vicuna_v1_1", "valley", "valley_tuned"]
)
def test_every_turn_equals_the_full_prompt(
    name: str, as_format: Callable[[str], VideoLlava], clips: dict[str, Features]
) -> None:
    model = as_format(name)
    session = ChatSession(model, [clips["video"]], SHORT)
    session.warm()
    said = talk(session, *QUESTIONS)
    assert len({one.text for one in said}) == len(QUESTIONS), "the model must tell the turns apart"
    assert session.turns == [(one.question, one.text) for one in said]
    later = said[1:] if model.chat.question_first else said  # then the first question stands before the clip
    assert all(one.n_computed_tokens < one.n_prompt_tokens - 20 for one in later), "the clip was there"


def test_media_go_through_the_model_once(model: VideoLlava, clips: dict[str, Features]) -> None:
    sizes: list[int] = []
    model.llm.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    session = ChatSession(model, [clips["long"], clips["image"]], SHORT)
    n_visual = 8 * 9 + 16
    session.warm()
    assert len(sizes) == 1 and sizes[0] > n_visual
    for question in QUESTIONS:
        session.ask(question)
    session.reset()
    said = session.ask("Something else?")
    assert said.n_visual_tokens == n_visual
    assert max(sizes[1:]) < 60, "later turns bring their own text only"


def test_cold_start_is_the_same(model: VideoLlava, clips: dict[str, Features]) -> None:
    """Without `warm` the first question takes the media in."""
    first = ChatSession(model, [clips["video"]], SHORT)
    (said,) = talk(first, "What happens?")
    assert said.n_computed_tokens == said.n_prompt_tokens


@pytest.mark.parametrize("media", [(), ("image",), ("video", "image"), ("image", "video"), ("small", "small", "other")])
def test_any_media(media: tuple[str, ...], model: VideoLlava, clips: dict[str, Features]) -> None:
    session = ChatSession(model, [clips[name] for name in media], SHORT)
    session.warm()
    talk(session, *QUESTIONS[:2])


def test_sampled_answers_too(model: VideoLlava, clips: dict[str, Features]) -> None:
    settings = GenerationSettings(max_new_tokens=8, temperature=1.0, top_p=0.9, seed=7)
    session = ChatSession(model, [clips["video"]], settings)
    talk(session, *QUESTIONS)


def test_reset_forgets_the_turns_and_nothing_else(model: VideoLlava, clips: dict[str, Features]) -> None:
    session = ChatSession(model, [clips["video"]], SHORT)
    first, other = talk(session, "What happens?", "And then?")
    session.reset()
    assert session.turns == []
    (again,) = talk(session, "And then?")
    assert again.text != other.text, "the turns count"
    session.reset()
    assert session.ask("What happens?").text == first.text


class TestStream:
    def test_pieces_are_the_text(self, model: VideoLlava, clips: dict[str, Features]) -> None:
        session = ChatSession(model, [clips["video"]], SHORT)
        for question in QUESTIONS:
            pieces = list(session.stream(question))
            assert session.last is not None
            assert len(pieces) > 1
            # A random model writes broken characters, and what follows one may change it.
            assert "".join(pieces) == session.last.text or "\ufffd" in session.last.text

    def test_no_part_of_a_stop_string_is_shown(self, model: VideoLlava, clips: dict[str, Features]) -> None:
        whole = ChatSession(model, [clips["video"]], SHORT).ask("What happens?").text
        stop = whole[4:9]
        session = ChatSession(model, [clips["video"]], GenerationSettings(max_new_tokens=8, stop=(stop,)))
        pieces = list(session.stream("What happens?"))
        assert "".join(pieces) == whole[:4].strip()
        assert session.last is not None and session.last.finish_reason == "stop"

    def test_left_early(self, model: VideoLlava, clips: dict[str, Features]) -> None:
        session = ChatSession(model, [clips["video"]], SHORT)
        stream = session.stream("What happens?")
        shown = next(stream) + next(stream)
        stream.close()
        assert session.last is not None
        assert (session.last.finish_reason, session.last.status) == ("interrupted", "truncated")
        assert session.turns == [("What happens?", shown)]
        talk(session, "And then?")

    @pytest.mark.parametrize("step", [0, 1, 4])
    def test_interrupted_in_the_middle_of_a_step(
        self, step: int, model: VideoLlava, clips: dict[str, Features]
    ) -> None:
        """Ctrl-C may come between two layers, when some have the new token and others do not."""
        session = ChatSession(model, [clips["video"]], SHORT)
        session.warm()
        calls = []

        def interrupt(*_: Any) -> None:
            calls.append(0)
            if len(calls) == step + 1:
                raise KeyboardInterrupt

        handle = model.llm.model.layers[1].register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            session.ask("What happens?")
        handle.remove()
        assert session.last is not None
        assert (session.last.finish_reason, session.last.n_answer_tokens) == ("interrupted", step)
        assert len(session.turns) == (1 if step else 0), "a question without an answer leaves no trace"
        talk(session, "And then?")


class TestErrors:
    def test_full(self, model: VideoLlava, clips: dict[str, Features]) -> None:
        session = ChatSession(model, [clips["long"]], SHORT)
        n = 0
        with pytest.raises(PromptTooLongError, match=r"the dialogue is full: .* \d+ more than the context of 256") as e:
            while n < 50:
                session.ask("What happens?")
                n += 1
        assert 2 <= n < 50 and e.value.hint is not None and "/reset" in e.value.hint
        assert len(session.turns) == n, "no turn is dropped"
        session.reset()
        talk(session, "What happens?")

    def test_exactly_full_still_fits(self, model: VideoLlava, clips: dict[str, Features]) -> None:
        n = ChatSession(model, [clips["video"]], SHORT).ask("Why?").n_prompt_tokens
        model.context = n + 8
        talk(ChatSession(model, [clips["video"]], SHORT), "Why?")
        model.context -= 1
        with pytest.raises(PromptTooLongError, match=" 1 more than"):
            ChatSession(model, [clips["video"]], SHORT).ask("Why?")

    @pytest.mark.parametrize("question", ["", "  \n", "a\0b"])
    def test_question_that_cannot_be(self, question: str, model: VideoLlava, clips: dict[str, Features]) -> None:
        session = ChatSession(model, [clips["video"]], SHORT)
        with pytest.raises(UsageError):
            session.ask(question)
        talk(session, "Why?")

    def test_out_of_memory_is_an_error_and_the_dialogue_goes_on(
        self, model: VideoLlava, clips: dict[str, Features]
    ) -> None:
        session = ChatSession(model, [clips["video"]], SHORT)

        def full(*_: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        handle = model.llm.model.layers[2].register_forward_hook(full)
        with pytest.raises(ItemError, match="no memory for a dialogue"):
            session.ask("Why?")
        handle.remove()
        assert session.turns == [] and session.last is None
        talk(session, "Why?")

    def test_captioning_model(self, as_format: Callable[[str], VideoLlava]) -> None:
        with pytest.raises(UsageError, match="only writes captions"):
            ChatSession(as_format("plain"), [], SHORT)


def test_empty_answer_leaves_no_trace(model: VideoLlava, clips: dict[str, Features]) -> None:
    session = ChatSession(model, [clips["video"]], SHORT)
    (said,) = talk(session, "What happens?")
    model.llm.generation_config.eos_token_id = int(session._line._known.ids[said.n_prompt_tokens])
    empty = ChatSession(model, [clips["video"]], SHORT)
    (said,) = talk(empty, "What happens?")
    assert (said.text, said.status, said.finish_reason, empty.turns) == ("", "empty", "eos", [])
