"""A chat equals the full prompts, token for token, and prefills the media once."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
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
    """The tiny model with another chat format and its special tokens."""

    def change(name: str) -> VideoLlava:
        model.chat = get_format(name, "A short header." if name not in ("plain", "hf") else None)
        model.tokenizer = copy.deepcopy(model.tokenizer)
        # The tiny connector yields one run of tokens per video.
        model.chat = replace(model.chat, special_tokens=model.chat.special_tokens[:1])
        marks = [word for mark in model.chat.special_tokens for word in mark]
        tokens = ["<image>", "<video>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", *marks]
        model.tokenizer.add_tokens(tokens, special_tokens=True)
        model.tokenizer.chat_template = TEMPLATE
        torch.manual_seed(5)
        model.llm.resize_token_embeddings(len(model.tokenizer), mean_resizing=False)
        return model

    return change


def assert_equals_full_prompt(session: ChatSession, turn: ChatTurn, before: list[tuple[str, str]]) -> None:
    """The same answer as the full prompt, computed from scratch."""
    request = Request(session._features, (*before, (turn.question, None)))
    (full,) = generate(session.model, [request], session.settings)
    assert isinstance(full, Answer)
    assert (turn.text, turn.finish_reason, turn.status) == (full.text, full.finish_reason, full.status)
    counts = (full.n_visual_tokens, full.n_prompt_tokens, full.n_answer_tokens)
    assert (turn.n_visual_tokens, turn.n_prompt_tokens, turn.n_answer_tokens) == counts


def ask_all(session: ChatSession, *questions: str) -> list[ChatTurn]:
    """Ask the questions and compare each turn with the full prompt."""
    out = []
    for question in questions:
        before = list(session.turns)
        out.append(session.ask(question))
        assert_equals_full_prompt(session, out[-1], before)
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
    turns = ask_all(session, *QUESTIONS)
    assert len({turn.text for turn in turns}) == len(QUESTIONS), "the model must distinguish the turns"
    assert session.turns == [(turn.question, turn.text) for turn in turns]
    later = turns[1:] if model.chat.question_first else turns  # in these formats the first question precedes the video
    assert all(turn.n_computed_tokens < turn.n_prompt_tokens - 20 for turn in later), "the video was in the KV cache"


def test_media_are_prefilled_once(model: VideoLlava, clips: dict[str, Features]) -> None:
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
    turn = session.ask("Something else?")
    assert turn.n_visual_tokens == n_visual
    assert max(sizes[1:]) < 60, "later turns prefill their own text only"


def test_the_result_does_not_depend_on_warm(model: VideoLlava, clips: dict[str, Features]) -> None:
    """Without `warm` the first question prefills the media."""
    first = ChatSession(model, [clips["video"]], SHORT)
    (turn,) = ask_all(first, "What happens?")
    assert turn.n_computed_tokens == turn.n_prompt_tokens


@pytest.mark.parametrize("media", [(), ("image",), ("video", "image"), ("image", "video"), ("small", "small", "other")])
def test_any_combination_of_media(media: tuple[str, ...], model: VideoLlava, clips: dict[str, Features]) -> None:
    session = ChatSession(model, [clips[name] for name in media], SHORT)
    session.warm()
    ask_all(session, *QUESTIONS[:2])


def test_sampled_answers(model: VideoLlava, clips: dict[str, Features]) -> None:
    settings = GenerationSettings(max_new_tokens=8, temperature=1.0, top_p=0.9, seed=7)
    session = ChatSession(model, [clips["video"]], settings)
    ask_all(session, *QUESTIONS)


def test_reset_drops_the_turns_only(model: VideoLlava, clips: dict[str, Features]) -> None:
    session = ChatSession(model, [clips["video"]], SHORT)
    first, other = ask_all(session, "What happens?", "And then?")
    session.reset()
    assert session.turns == []
    (again,) = ask_all(session, "And then?")
    assert again.text != other.text, "earlier turns make a difference"
    session.reset()
    assert session.ask("What happens?").text == first.text


class TestStream:
    def test_pieces_join_to_the_text(self, model: VideoLlava, clips: dict[str, Features]) -> None:
        session = ChatSession(model, [clips["video"]], SHORT)
        for question in QUESTIONS:
            pieces = list(session.stream(question))
            assert session.last is not None
            assert len(pieces) > 1
            # A random model generates broken characters, which later tokens may change.
            assert "".join(pieces) == session.last.text or "\ufffd" in session.last.text

    def test_no_part_of_a_stop_string_is_yielded(self, model: VideoLlava, clips: dict[str, Features]) -> None:
        text = ChatSession(model, [clips["video"]], SHORT).ask("What happens?").text
        stop = text[4:9]
        session = ChatSession(model, [clips["video"]], GenerationSettings(max_new_tokens=8, stop=(stop,)))
        pieces = list(session.stream("What happens?"))
        assert "".join(pieces) == text[:4].strip()
        assert session.last is not None and session.last.finish_reason == "stop"

    def test_closed_early(self, model: VideoLlava, clips: dict[str, Features]) -> None:
        session = ChatSession(model, [clips["video"]], SHORT)
        stream = session.stream("What happens?")
        yielded = next(stream) + next(stream)
        stream.close()
        assert session.last is not None
        assert (session.last.finish_reason, session.last.status) == ("interrupted", "truncated")
        assert session.turns == [("What happens?", yielded)]
        ask_all(session, "And then?")

    @pytest.mark.parametrize("step", [0, 1, 4])
    def test_interrupted_in_the_middle_of_a_step(
        self, step: int, model: VideoLlava, clips: dict[str, Features]
    ) -> None:
        """Ctrl-C may arrive between two layers, when only some of them have stored the new token."""
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
        assert len(session.turns) == (1 if step else 0), "a question without an answer is not added"
        ask_all(session, "And then?")


class TestThreads:
    def test_each_thread_waits_for_the_answer_of_another(self, model: VideoLlava, clips: dict[str, Features]) -> None:
        """The turns are in some order, and each answer is that of the chat until then."""
        session = ChatSession(model, [clips["video"]], SHORT)
        session.warm()
        with ThreadPoolExecutor(4) as pool:
            turns = {turn.question: turn for turn in pool.map(session.ask, ("Q1?", "Q2?", "Q3?", "Q4?"))}
        assert len(session.turns) == 4
        for i, (question, _) in enumerate(session.turns):
            assert_equals_full_prompt(session, turns[question], session.turns[:i])

    def test_chats_and_engines_may_share_a_model(self, model: VideoLlava, clips: dict[str, Features]) -> None:
        names = ("video", "other", "image", "long")
        expected = {name: ChatSession(model, [clips[name]], SHORT).ask("Why?").text for name in names}
        got: dict[tuple[str, str], str] = {}

        def chat(name: str) -> None:
            got["chat", name] = ChatSession(model, [clips[name]], SHORT).ask("Why?").text

        def ask(name: str) -> None:
            (answer,) = generate(model, [Request((clips[name],), (("Why?", None),))], SHORT)
            got["ask", name] = answer.text if isinstance(answer, Answer) else answer.what

        run_threads(*(partial(way, name) for name in names for way in (chat, ask)))
        assert got == {(way, name): text for name, text in expected.items() for way in ("chat", "ask")}

    def test_another_thread_waits_for_the_end_of_a_stream(self, model: VideoLlava, clips: dict[str, Features]) -> None:
        session = ChatSession(model, [clips["video"]], SHORT)
        stream = session.stream("What happens?")
        first = next(stream)
        turns: list[ChatTurn] = []
        other = threading.Thread(target=lambda: turns.append(session.ask("And then?")))
        other.start()
        rest = list(stream)
        other.join(60)
        assert [question for question, _ in session.turns] == ["What happens?", "And then?"]
        assert first + "".join(rest) == session.turns[0][1]
        assert_equals_full_prompt(session, turns[0], session.turns[:1])

    def test_the_same_thread_cannot_wait_for_itself(self, model: VideoLlava, clips: dict[str, Features]) -> None:
        session = ChatSession(model, [clips["video"]], SHORT)
        never_started = session.stream("And then?")
        stream = session.stream("What happens?")
        next(stream)
        for call in (lambda: session.ask("Why?"), lambda: session.stream("Why?"), session.reset, session.warm):
            with pytest.raises(UsageError, match="still being streamed"):
                call()
        stream.close()
        session.reset()
        del never_started
        ask_all(session, "Why?")

    def test_a_stream_may_move_between_threads(self, model: VideoLlava, clips: dict[str, Features]) -> None:
        """As web servers read them."""
        expected = ChatSession(model, [clips["video"]], SHORT).ask("What happens?").text
        session = ChatSession(model, [clips["video"]], SHORT)
        stream, pieces = session.stream("What happens?"), [""]
        while pieces[-1] is not None:
            run_threads(lambda: pieces.append(next(stream, None)))
        assert "".join(pieces[:-1]) == expected
        ask_all(session, "And then?")


def run_threads(*calls: Callable[[], object]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)


class TestErrors:
    def test_full_context(self, model: VideoLlava, clips: dict[str, Features]) -> None:
        session = ChatSession(model, [clips["long"]], SHORT)
        n = 0
        with pytest.raises(PromptTooLongError, match=r"the chat is full: .* \d+ more than the context of 256") as e:
            while n < 50:
                session.ask("What happens?")
                n += 1
        assert 2 <= n < 50 and e.value.hint is not None and "/reset" in e.value.hint
        assert len(session.turns) == n, "no turn is dropped"
        session.reset()
        ask_all(session, "What happens?")

    def test_exactly_the_context_length_still_fits(self, model: VideoLlava, clips: dict[str, Features]) -> None:
        n = ChatSession(model, [clips["video"]], SHORT).ask("Why?").n_prompt_tokens
        model.context = n + 8
        ask_all(ChatSession(model, [clips["video"]], SHORT), "Why?")
        model.context -= 1
        with pytest.raises(PromptTooLongError, match=" 1 more than"):
            ChatSession(model, [clips["video"]], SHORT).ask("Why?")

    @pytest.mark.parametrize("question", ["", "  \n", "a\0b"])
    def test_invalid_question(self, question: str, model: VideoLlava, clips: dict[str, Features]) -> None:
        session = ChatSession(model, [clips["video"]], SHORT)
        with pytest.raises(UsageError):
            session.ask(question)
        ask_all(session, "Why?")

    def test_a_chat_continues_after_running_out_of_memory(self, model: VideoLlava, clips: dict[str, Features]) -> None:
        session = ChatSession(model, [clips["video"]], SHORT)

        def full(*_: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        handle = model.llm.model.layers[2].register_forward_hook(full)
        with pytest.raises(ItemError, match="not enough memory for a chat"):
            session.ask("Why?")
        handle.remove()
        assert session.turns == [] and session.last is None
        ask_all(session, "Why?")

    def test_captioning_models_have_no_chat(self, as_format: Callable[[str], VideoLlava]) -> None:
        with pytest.raises(UsageError, match="only writes captions"):
            ChatSession(as_format("plain"), [], SHORT)


def test_empty_answers_are_not_added(model: VideoLlava, clips: dict[str, Features]) -> None:
    session = ChatSession(model, [clips["video"]], SHORT)
    (turn,) = ask_all(session, "What happens?")
    model.llm.generation_config.eos_token_id = int(session._kv_cache._tokens.ids[turn.n_prompt_tokens])
    empty = ChatSession(model, [clips["video"]], SHORT)
    (turn,) = ask_all(empty, "What happens?")
    assert (turn.text, turn.status, turn.finish_reason, empty.turns) == ("", "empty", "eos", [])
