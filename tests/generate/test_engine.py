"""Answers do not depend on the batch; stopping criteria; errors belong to their request; memory; sampling."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken

from vidqa.errors import ItemError, PromptTooLongError, UsageError
from vidqa.generate import engine as engine_module
from vidqa.generate import scheduler
from vidqa.generate.chat_session import ChatSession
from vidqa.generate.engine import Engine, GenerationSettings, Request, generate
from vidqa.generate.kv_cache import capacity
from vidqa.generate.kv_cache.buffers import CacheCapacity
from vidqa.generate.kv_cache.capacity import max_slots, plan_capacity, unshared_batch_size
from vidqa.generate.requests import PlannedRequest, plan_request
from vidqa.model.video_llava import VideoLlava
from vidqa.records import Answer, Features

SHORT = GenerationSettings(max_new_tokens=12)


def ask(question: str, *features: Features, n: int | None = None) -> Request:
    return Request(features, ((question, None),), n)


@pytest.fixture
def mixed(clips: dict[str, Features]) -> list[Request]:
    """Images, videos, both and none; several questions about one video; short and long; one with earlier turns."""
    video, other, long, image, small = (clips[k] for k in ("video", "other", "long", "image", "small"))
    return [
        ask("What happens?", video),
        ask("Name one river.", n=5),
        ask("What colour is the ball? And what is behind it, near the door?", image),
        ask("How many dogs?", video, n=3),
        ask("Compare.", video, image),
        ask("Compare.", image, video),
        ask("Why?", long, n=9),
        ask("Where does the boat wait?", video),
        ask("Is it small?", small),
        Request((other,), (("What happens?", "The man lights a candle."), ("And then?", None))),
        ask("What happens?", other),
        ask("A", small, small, n=1),
    ]


def comparable(answers: Sequence[Answer | ItemError]) -> list[Any]:
    return [a if isinstance(a, Answer) else (a.kind, a.what) for a in answers]


def tokens_of(model: VideoLlava, request: Request) -> list[int]:
    """Twelve greedy tokens, no end token."""
    planned = plan_request(model, 0, request, SHORT)
    assert isinstance(planned, PlannedRequest)
    embeds = model.embed_prompt(planned.prompt, model.visual_tokens(request.features))[None]
    ids = model.llm.generate(
        inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2]), max_new_tokens=12, eos_token_id=-1
    )
    return [int(i) for i in ids[0]]


@pytest.mark.parametrize("batch_size", [2, 3, 5, 100, None])
def test_batch_equals_one_by_one(batch_size: int | None, model: VideoLlava, mixed: list[Request]) -> None:
    alone = [generate(model, [r], SHORT, batch_size=1)[0] for r in mixed]
    assert len({a.text for a in alone}) >= len(mixed) - 1, "the model must distinguish the requests"
    assert comparable(generate(model, mixed, SHORT, batch_size)) == alone


def test_order_of_the_requests_does_not_matter(model: VideoLlava, mixed: list[Request]) -> None:
    wanted = generate(model, mixed, SHORT)
    order = list(range(len(mixed)))
    random.Random(0).shuffle(order)
    got = generate(model, [mixed[i] for i in order], SHORT, batch_size=4)
    assert got == [wanted[i] for i in order]


def test_counts(model: VideoLlava, mixed: list[Request]) -> None:
    for request, answer in zip(mixed, generate(model, mixed, SHORT), strict=True):
        assert answer.n_visual_tokens == sum(f.tokens.shape[0] * f.tokens.shape[1] for f in request.features)
        assert answer.n_prompt_tokens > answer.n_visual_tokens
        assert answer.n_answer_tokens == (request.max_new_tokens or 12)
        assert (answer.status, answer.finish_reason) == ("truncated", "length")


def test_questions_about_one_video_share_its_prefill(model: VideoLlava, clips: dict[str, Features]) -> None:
    """The LLM processes the visual tokens of a video once, however many questions there are."""
    sizes: list[tuple[int, ...]] = []
    model.llm.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(tuple(kwargs.get("inputs_embeds", torch.empty(0)).shape)), with_kwargs=True
    )
    requests = [ask(q, clips[c]) for c in ("video", "long") for q in ("What happens?", "Why?", "Is it small?")]
    generate(model, requests, SHORT, batch_size=6)
    assert sizes[0][0] == 2, "two prefixes"
    assert sizes[0][1] > 8 * 9, "as long as the longer one"
    assert sizes[1][0] == 6, "six questions"
    assert sizes[1][1] < 40, "the questions only"
    assert not any(size[1] for size in sizes[2:] if len(size) > 1), "and then single tokens"


def test_suffixes_admitted_together_are_embedded_together(
    model: VideoLlava, clips: dict[str, Features], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each lookup synchronizes with a GPU: for hundreds of questions that would take as long as many decode steps."""
    embedded: list[int] = []
    embed = model.embed_prompt
    monkeypatch.setattr(model, "embed_prompt", lambda p, *rest: embedded.append(len(p.ids)) or embed(p, *rest))
    generate(model, [ask(f"What happens {'then ' * i}?", clips["video"]) for i in range(6)], SHORT)
    assert len(embedded) == 2, "the prefix, and all suffixes"


def test_finished_sequences_are_evicted(model: VideoLlava, clips: dict[str, Features]) -> None:
    sizes: list[int] = []
    model.llm.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(len(kwargs["input_ids"])) if "input_ids" in kwargs else None,
        with_kwargs=True,
    )
    generate(model, [ask("Why?", clips["video"], n=n) for n in (1, 2, 3, 20)], SHORT, batch_size=4)
    assert sizes[0] == 3
    assert sizes[-1] == 1
    assert len(sizes) == 19


def test_waiting_requests_are_admitted_into_free_slots(model: VideoLlava, clips: dict[str, Features]) -> None:
    """Continuous batching: eight answers in two slots take half the steps of their sum, not those of the longest."""
    n_sequences: list[int] = []
    model.llm.register_forward_pre_hook(
        lambda _, args, kwargs: n_sequences.append(len(kwargs["input_ids"])) if "input_ids" in kwargs else None,
        with_kwargs=True,
    )
    requests = [ask("Why?", clips[c], n=n) for c in ("video", "other") for n in (2, 12, 2, 12)]
    generate(model, requests, SHORT, batch_size=2)
    assert sum(n_sequences) == sum(n - 1 for n in (2, 12) * 4)
    assert len(n_sequences) <= 30, "slots were empty"


@pytest.mark.slow
def test_static_shapes_run_one_step_ahead_of_the_tokens(
    model: VideoLlava, mixed: list[Request], clips: dict[str, Features]
) -> None:
    """As on a GPU: the next step runs while the host processes tokens; answers and counts are the same."""
    requests = [*mixed, *(ask("Why?", clips["video"], n=n) for n in (1, 2, 7))]
    alone = [generate(model, [r], SHORT, batch_size=1)[0] for r in requests]
    engine, got = Engine(model, SHORT, batch_size=5, static_shapes=True), {}
    for i, request in enumerate(requests):
        engine.submit(i, request)
    while engine.busy:
        got |= dict(engine.step())
    assert [got[i] for i in range(len(requests))] == alone
    plain = Engine(model, SHORT, batch_size=5)
    for i, request in enumerate(requests):
        plain.submit(i, request)
    while plain.busy:
        plain.step()
    counts = ("decode_tokens", "decode_steps", "decode_kv_bytes", "prefill_tokens", "answers")
    assert [getattr(engine.stats, name) for name in counts] == [getattr(plain.stats, name) for name in counts]
    assert engine.stats.decode_s > 0


def test_requests_may_be_submitted_while_others_run(model: VideoLlava, mixed: list[Request]) -> None:
    alone = [generate(model, [r], SHORT, batch_size=1)[0] for r in mixed]
    engine, got = Engine(model, SHORT, batch_size=3), {}
    rest = list(enumerate(mixed))
    while rest or engine.busy:
        if rest:
            engine.submit(*rest.pop(0))
        for _ in range(2):
            got |= dict(engine.step())
    assert [got[i] for i in range(len(mixed))] == alone
    assert engine.stats.answers == len(mixed)
    assert engine.stats.decode_tokens == sum(a.n_answer_tokens - 1 for a in alone)


class TestStoppingCriteria:
    def test_eos_token(self, model: VideoLlava, clips: dict[str, Features]) -> None:
        request = ask("What happens?", clips["video"])
        tokens = tokens_of(model, request)
        model.llm.generation_config.eos_token_id = [tokens[4]]
        at = tokens.index(tokens[4])
        (answer,) = generate(model, [request], SHORT)
        assert (answer.finish_reason, answer.status, answer.n_answer_tokens) == ("eos", "ok", at)
        assert answer.text == model.tokenizer.decode(tokens[:at], skip_special_tokens=True).strip()

    def test_empty(self, model: VideoLlava, clips: dict[str, Features]) -> None:
        request = ask("What happens?", clips["video"])
        model.llm.generation_config.eos_token_id = tokens_of(model, request)[0]
        (answer,) = generate(model, [request], SHORT)
        assert (answer.text, answer.status, answer.finish_reason, answer.n_answer_tokens) == ("", "empty", "eos", 0)

    def test_a_finished_sequence_does_not_stop_the_others(self, model: VideoLlava, mixed: list[Request]) -> None:
        before = generate(model, mixed, SHORT)
        model.llm.generation_config.eos_token_id = tokens_of(model, mixed[0])[2]
        alone = [generate(model, [r], SHORT)[0] for r in mixed]
        assert generate(model, mixed, SHORT, batch_size=6) == alone
        assert alone[0] != before[0]

    def test_stop_string(self, model: VideoLlava, clips: dict[str, Features]) -> None:
        request = ask("What happens?", clips["video"])
        text = generate(model, [request], SHORT)[0].text
        stop = text[5:8]
        settings = GenerationSettings(max_new_tokens=12, stop=("not generated", stop, ""))
        (answer,) = generate(model, [request], settings)
        assert answer.text == text[: text.index(stop)].strip()
        assert (answer.finish_reason, answer.status) == ("stop", "ok")
        assert answer.n_answer_tokens < 12

    def test_stop_string_that_is_a_special_token(self, model: VideoLlava, clips: dict[str, Features]) -> None:
        request = ask("What happens?", clips["video"])
        third = tokens_of(model, request)[2]
        name = model.tokenizer.convert_ids_to_tokens(third)
        model.tokenizer.add_special_tokens({"extra_special_tokens": [name]})
        assert model.tokenizer.convert_tokens_to_ids(name) == third
        (answer,) = generate(model, [request], GenerationSettings(max_new_tokens=12, stop=(name,)))
        assert (answer.finish_reason, answer.n_answer_tokens) == ("eos", 2)

    @pytest.mark.parametrize("special", [True, False])
    @pytest.mark.parametrize("around", [("", ""), ("{}", ""), ("", "{}"), ("{}", "{}")])
    def test_stop_string_with_an_added_token(
        self, around: tuple[str, str], special: bool, model: VideoLlava, clips: dict[str, Features]
    ) -> None:
        """The decoder removes tokens that are flagged in its file, also if the tokenizer does not list them."""
        request = ask("What happens?", clips["video"])
        ids = tokens_of(model, request)
        before, name, after = (model.tokenizer.decode(i) for i in ids[2:5])
        whole = model.tokenizer.decode(ids)
        model.tokenizer.backend_tokenizer.add_tokens([AddedToken(name, special=special, normalized=False)])
        assert name not in model.tokenizer.all_special_tokens and ids[3] in model.tokenizer.added_tokens_decoder
        stop = around[0].format(before) + name + around[1].format(after)
        (answer,) = generate(model, [request], GenerationSettings(max_new_tokens=12, stop=(stop,)))
        n = 3 if around == ("", "") else 4 + bool(around[1])
        reason = "eos" if around == ("", "") else "stop"
        assert (answer.finish_reason, answer.n_answer_tokens) == (reason, n)
        assert answer.text == whole[: whole.index(stop)].strip()
        session = ChatSession(model, [clips["video"]], GenerationSettings(max_new_tokens=12, stop=(stop,)))
        assert session.ask("What happens?").text == answer.text


def test_a_prompt_that_does_not_fit_fails_alone(model: VideoLlava, clips: dict[str, Features]) -> None:
    fits = ask("Why?", clips["video"])
    n = generate(model, [fits], SHORT)[0].n_prompt_tokens
    settings = GenerationSettings(max_new_tokens=model.context - n)
    long = ask("Why?", clips["video"], n=model.context - n + 7)
    first, error, last = generate(model, [fits, long, ask("Why?", clips["small"], n=2)], settings)
    assert isinstance(first, Answer)
    assert first.n_answer_tokens == model.context - n, "exactly the context length still fits"
    assert isinstance(last, Answer)
    assert isinstance(error, PromptTooLongError)
    assert error.kind == "prompt_too_long"
    assert ": 7 more than" in error.what


class TestMemory:
    def test_a_batch_that_does_not_fit_is_halved(self, model: VideoLlava, mixed: list[Request]) -> None:
        wanted = generate(model, mixed, SHORT, batch_size=1)
        seen = []

        def full(_: Any, args: Any, kwargs: Any) -> None:
            seen.append(len(kwargs["position_ids"]))
            if seen[-1] > 3 and "input_ids" in kwargs:  # after the prefill
                raise torch.OutOfMemoryError("CUDA out of memory")

        model.llm.register_forward_pre_hook(full, with_kwargs=True)
        assert generate(model, mixed, SHORT, batch_size=12) == wanted
        assert max(seen) > 3

    def test_a_batch_grows_again_after_running_out_of_memory(
        self, model: VideoLlava, clips: dict[str, Features], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A moment of another process must not slow down the rest of the run."""
        monkeypatch.setattr(scheduler, "_GROW_AFTER", 2)
        requests = [ask(f"What happens {'then ' * (i % 7)}?", clips["video"], n=3 + i % 5) for i in range(60)]
        wanted = generate(model, requests, SHORT, batch_size=8)
        seen: list[int] = []

        def full(_: Any, args: Any, kwargs: Any) -> None:
            seen.append(len(kwargs["position_ids"]))
            if len(seen) in (3, 4, 5):  # with 8 slots, then 4, then 2
                raise torch.OutOfMemoryError("CUDA out of memory")

        model.llm.register_forward_pre_hook(full, with_kwargs=True)
        assert generate(model, requests, SHORT, batch_size=8) == wanted
        assert max(seen[6:12]) < 8, "at first it is smaller"
        assert max(seen[12:]) == 8

    def test_a_single_request_is_retried_with_smaller_buffers(
        self, model: VideoLlava, clips: dict[str, Features]
    ) -> None:
        """Buffers for many slots may be what filled the device."""
        n_runs: list[int] = []

        def full(_: Any, args: Any, kwargs: Any) -> None:
            n_runs.append(1)
            if len(n_runs) == 1:
                raise torch.OutOfMemoryError("CUDA out of memory")

        request = ask("Why?", clips["video"])
        (wanted,) = generate(model, [request], SHORT)
        engine, answers = Engine(model, SHORT), []
        engine.submit(0, request)
        model.llm.register_forward_pre_hook(full, with_kwargs=True)
        while engine.busy:
            answers += engine.step()
        assert answers == [(0, wanted)]

    @pytest.mark.parametrize(
        "message",
        [
            "[enforce fail] DefaultCPUAllocator: can't allocate memory",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "CUDA error: out of memory",
            "CUDA driver error: out of memory",
            "Triton Error [CUDA]: out of memory",
        ],
    )
    def test_a_request_that_does_not_fit_alone_is_an_error(
        self, message: str, model: VideoLlava, clips: dict[str, Features]
    ) -> None:
        def full(_: Any, args: Any, kwargs: Any) -> None:
            if int(kwargs["position_ids"].max()) > 70:
                raise RuntimeError(message)

        model.llm.register_forward_pre_hook(full, with_kwargs=True)
        error, answer = generate(model, [ask("Why?", clips["long"]), ask("Why?", clips["small"])], SHORT)
        assert isinstance(error, ItemError)
        assert error.kind == "out_of_memory"
        assert isinstance(answer, Answer)

    def test_other_errors_are_not_hidden(self, model: VideoLlava, clips: dict[str, Features]) -> None:
        def broken(_: Any, args: Any, kwargs: Any) -> None:
            raise RuntimeError("a bug")

        model.llm.register_forward_pre_hook(broken, with_kwargs=True)
        with pytest.raises(RuntimeError, match="a bug"):
            generate(model, [ask("Why?", clips["video"])], SHORT)

    def test_longer_prompts_make_smaller_batches(self, model: VideoLlava) -> None:
        assert unshared_batch_size(model, 10) == max_slots(model)
        assert unshared_batch_size(model, 10**9) == 1

    def test_memory_cached_by_torch_is_free(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The allocator keeps the buffers of an earlier batch: the next batch must not be smaller because of that."""
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9000))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5000)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2000)
        assert capacity.free_bytes(torch.device("cuda")) == 2800

    def test_capacity_depends_on_memory(self, model: VideoLlava, monkeypatch: pytest.MonkeyPatch) -> None:
        position = 2 * 3 * 2 * 8 * 4  # K and V, layers, KV heads, head_dim, bytes
        monkeypatch.setattr(capacity, "free_bytes", lambda device: position * 3000)
        assert plan_capacity(model, 500, 60, 8) == CacheCapacity(16, 2, 512, 64), (
            "two prefixes with eight sequences each"
        )
        assert plan_capacity(model, 500, 60, 8, n_slots=3) == CacheCapacity(3, 3, 512, 64)
        assert plan_capacity(model, 1300, 60, 8) == CacheCapacity(8, 1, 1344, 64), "one prefix with eight sequences"
        assert plan_capacity(model, 1300, 60, 32) == CacheCapacity(25, 1, 1344, 64), (
            "one prefix, and as many sequences as fit"
        )
        assert plan_capacity(model, 9000, 60, 8) == CacheCapacity(1, 1, 9024, 64), (
            "the minimum, although it does not fit"
        )


class TestSampling:
    SETTINGS = GenerationSettings(max_new_tokens=12, temperature=1.0, top_p=0.95, seed=4)

    def test_samples_do_not_depend_on_the_batch(self, model: VideoLlava, mixed: list[Request]) -> None:
        alone = [generate(model, [r], self.SETTINGS)[0] for r in mixed]
        assert generate(model, mixed, self.SETTINGS, batch_size=5) == alone
        assert generate(model, mixed[::-1], self.SETTINGS, batch_size=100) == alone[::-1]

    def test_seeds_yield_different_answers(self, model: VideoLlava, clips: dict[str, Features]) -> None:
        request = ask("What happens?", clips["video"])
        settings = [GenerationSettings(max_new_tokens=12, temperature=2.0, seed=s) for s in (0, 1, -1, 2**40)]
        assert len({generate(model, [request], s)[0].text for s in settings}) == 4

    def test_low_temperature_or_small_nucleus_is_greedy(self, model: VideoLlava, mixed: list[Request]) -> None:
        greedy = generate(model, mixed, SHORT)
        assert generate(model, mixed, GenerationSettings(max_new_tokens=12, temperature=1e-4)) == greedy
        assert generate(model, mixed, GenerationSettings(max_new_tokens=12, temperature=1.0, top_p=1e-6)) == greedy


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_new_tokens", (0, -1, 1.5, True, "3", None, float("nan"))),
        ("temperature", (-1.0, float("nan"), float("inf"), True, "1", None, 10**400)),
        ("top_p", (0, 0.0, -0.1, 2, float("nan"), True, "1", None)),
        ("seed", (1 << 127, -(1 << 127) - 1, 1.0, True, "1", None)),
        ("stop", ("###", [1], None, 3)),
    ],
)
def test_invalid_settings_are_named(name: str, values: Sequence[Any]) -> None:
    for value in values:
        with pytest.raises(UsageError, match=f"^{name} must be"):
            GenerationSettings(**{name: value})


def test_extreme_settings(model: VideoLlava, clips: dict[str, Features]) -> None:
    request = ask("What happens?", clips["video"])
    greedy = generate(model, [request], SHORT)
    for temperature in (1e-308, np.float32(1e-30), 1e-9):
        cold = GenerationSettings(max_new_tokens=np.int64(12), temperature=temperature, seed=(1 << 127) - 1)
        assert generate(model, [request], cold) == greedy
    for settings in ({"temperature": 1e308}, {"temperature": 1, "top_p": 1e-308}, {"seed": -(1 << 127)}):
        (answer,) = generate(model, [request], GenerationSettings(max_new_tokens=2, **settings))
        assert isinstance(answer, Answer) and answer.n_answer_tokens == 2
    (error,) = generate(model, [request], GenerationSettings(max_new_tokens=10**30))
    assert isinstance(error, PromptTooLongError)


def test_no_requests(model: VideoLlava) -> None:
    assert generate(model, [], SHORT) == []


def test_features_of_another_width_are_refused(model: VideoLlava) -> None:
    wide = Features(np.zeros((1, 4, 7), np.float16), np.zeros(3, np.float32), False, "image")
    with pytest.raises(ValueError, match="width"):
        generate(model, [ask("Why?", wide)], SHORT)


def test_failed_requests_count_as_waiting(model: VideoLlava) -> None:
    """A loop that submits while the engine accepts more must terminate, even if all requests fail."""
    engine, n = Engine(model, SHORT, batch_size=3), 0
    while engine.accepts_more and n < 100:
        engine.submit(n, ask("What happens?", n=10**6))
        n += 1
    assert n == 3
    assert [(tag, error.kind) for tag, error in engine.step() if isinstance(error, ItemError)] == [
        (i, "prompt_too_long") for i in range(3)
    ]
    assert engine.accepts_more and not engine.busy


@pytest.mark.parametrize("shared", [True, False])
def test_dropping_the_queue_finishes_the_running_batch_only(
    shared: bool, model: VideoLlava, clips: dict[str, Features], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shared:
        monkeypatch.setattr(engine_module, "supports_shared_prefix", lambda *_: False)
    requests = [ask(f"Is it {i}?", clips["video" if i % 2 else "other"], n=4) for i in range(20)]
    alone, engine = generate(model, requests[:3], SHORT), Engine(model, SHORT, batch_size=3)
    for number, request in enumerate(requests):
        engine.submit(number, request)
    finished = dict(engine.step())
    engine.drop_waiting()
    while engine.busy:
        finished |= dict(engine.step())
    assert len(finished) == 3 and {finished[tag].text for tag in finished} <= {  # type: ignore[union-attr, index]
        one.text for one in generate(model, requests, SHORT) if isinstance(one, Answer)
    }
    for number, request in enumerate(requests[:3]):  # the engine can be used again
        engine.submit(number, request)
    again: dict[object, Answer | ItemError] = {}
    while engine.busy:
        again |= dict(engine.step())
    assert [again[number] for number in range(3)] == alone
