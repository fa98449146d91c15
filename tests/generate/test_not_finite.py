"""A language model that overflows fails the requests that overflow, and no others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from vidqa.errors import ItemError
from vidqa.generate import engine as engine_module
from vidqa.generate.attention.cuda_graphs import StepGraphs
from vidqa.generate.chat_session import ChatSession
from vidqa.generate.engine import Engine, GenerationSettings, Request, generate
from vidqa.generate.sampling import NOT_FINITE, pick_greedy, pick_sampled
from vidqa.model.video_llava import VideoLlava
from vidqa.records import Features

GREEDY = GenerationSettings(max_new_tokens=12)
SAMPLED = GenerationSettings(max_new_tokens=12, temperature=1.0, top_p=0.9)
BAD = "Is it @?"  # no other question has this character


def poison(model: VideoLlava, token: int, value: float = float("inf")) -> None:
    """Make the model overflow after a token."""
    model.llm.get_input_embeddings().weight[token] = value


def with_inf(features: Features) -> Features:
    tokens = features.tokens.copy()
    tokens[0, 0, 0] = np.inf
    return replace(features, tokens=tokens)


def requests_about(clips: dict[str, Features]) -> list[Request]:
    """Good and bad requests: a bad question, a bad video with two questions, and many others in between."""
    bad = with_inf(clips["long"])
    asked: list[tuple[str, tuple[Features, ...]]] = [
        ("What happens?", (clips["video"],)),
        (BAD, (clips["video"],)),
        ("How many dogs are there, and where do they go?", (clips["video"],)),
        ("Why?", (bad,)),
        ("Name one river.", ()),
        ("Where?", (bad, clips["image"])),
        ("Is it small?", (clips["small"],)),
        ("What happens?", (clips["other"],)),
        ("And why?", (bad,)),
        ("Who is it?", (clips["other"],)),
        (BAD, ()),
        ("What colour is it?", (clips["image"],)),
    ]
    return [Request(features, ((question, None),), 3 + i) for i, (question, features) in enumerate(asked)]


FAILS = [1, 3, 5, 8, 10]


def answers_of(model: VideoLlava, requests: Sequence[Request], settings: GenerationSettings, **how: Any) -> list[Any]:
    engine, got = Engine(model, settings, **how), {}
    for i, request in enumerate(requests):
        engine.submit(i, request)
    while engine.busy:
        got |= dict(engine.step())
    return [got[i] for i in range(len(requests))]


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("how", ["shared", "static", "fallback"])
def test_only_the_requests_that_overflow_fail(
    how: str, settings: GenerationSettings, model: VideoLlava, clips: dict[str, Features], monkeypatch: Any
) -> None:
    if how == "fallback":
        monkeypatch.setattr(engine_module, "supports_shared_prefix", lambda *_: False)
    requests = requests_about(clips)
    expected = [generate(model, [request], settings)[0] for request in requests]
    poison(model, model.tokenizer.encode(BAD, add_special_tokens=False)[-2])
    for batch_size in (1, 2, 4, 12):
        got = answers_of(model, requests, settings, batch_size=batch_size, static_shapes=how == "static")
        for i, (answer, before) in enumerate(zip(got, expected, strict=True)):
            if i in FAILS:
                assert isinstance(answer, ItemError) and answer.kind == "not_finite", (batch_size, i)
                assert "NaN or infinity after 0 tokens" in answer.what
            else:
                assert answer == before, (batch_size, i)


def test_an_answer_that_overflows_after_some_tokens(model: VideoLlava, clips: dict[str, Features]) -> None:
    request = Request((clips["video"],), (("What happens?", None),))
    others = [Request((clips[name],), (("Why?", None),)) for name in ("image", "other", "small")]
    session = ChatSession(model, [clips["video"]], GREEDY)
    turn = session.ask("What happens?")
    generated = session._kv_cache._tokens.ids[turn.n_prompt_tokens :].tolist()
    third = generated[2]
    assert third not in generated[:2]
    poison(model, third, float("nan"))
    got = answers_of(model, [others[0], request, *others[1:]], GREEDY, batch_size=2)
    assert isinstance(got[1], ItemError) and "after 3 tokens" in got[1].what
    alone = [generate(model, [other], GREEDY)[0] for other in others]
    assert [got[0], *got[2:]] == alone


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_chat_stays_usable(settings: GenerationSettings, model: VideoLlava, clips: dict[str, Features]) -> None:
    session = ChatSession(model, [clips["video"]], settings)
    first = session.ask("What happens?")
    expected = session.ask("And then?").text
    session.reset()
    assert session.ask("What happens?").text == first.text
    poison(model, model.tokenizer.encode(BAD, add_special_tokens=False)[-2])
    for _ in range(2):
        with pytest.raises(ItemError, match="NaN or infinity") as caught:
            session.ask(BAD)
        assert caught.value.kind == "not_finite" and session.last is None
    assert session.turns == [("What happens?", first.text)]
    assert session.ask("And then?").text == expected
    broken = ChatSession(model, [with_inf(clips["video"])], settings)
    broken.warm()
    with pytest.raises(ItemError, match="NaN or infinity"):
        broken.ask("What happens?")


class TestPicking:
    LOGITS = torch.tensor(
        [
            [1.0, 3.0, 2.0],
            [1.0, float("nan"), 2.0],
            [float("inf"), 1.0, 2.0],
            [-float("inf"), 1.0, 2.0],
            [-float("inf")] * 3,
        ]
    )

    def test_a_token_is_excluded_by_minus_infinity(self) -> None:
        """Some models do that to tokens that do not exist."""
        assert pick_greedy(self.LOGITS).tolist() == [1, NOT_FINITE, NOT_FINITE, 2, NOT_FINITE]

    @pytest.mark.parametrize("temperature", [1e-308, 5e-324, 1e-200, 1e-3, 1.0, 1e308])
    def test_sampling_at_any_temperature(self, temperature: float) -> None:
        samples = torch.full((5,), 0.999, dtype=torch.float64)
        picked = pick_sampled(self.LOGITS * 1e30, temperature, 1.0, samples).tolist()
        assert [picked[i] for i in (1, 2, 4)] == [NOT_FINITE] * 3
        assert picked[3] == 2 and picked[0] == (2 if temperature == 1e308 else 1)


def test_an_overflow_does_not_disable_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph is compared with an eager step; a sequence that overflows says nothing about the graph."""
    graphs = StepGraphs()
    result = torch.tensor([[1.0, 2.0], [float("nan"), 1.0]])

    class Captured:
        def __init__(self) -> None:
            self.graph, self.ids, self.result = self, torch.zeros(2, dtype=torch.int64), result.clone()

        def replay(self) -> None: ...

    monkeypatch.setattr(graphs, "_capture", lambda step, ids: Captured())
    for name in ("synchronize", "set_stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    for _ in range(5):
        graphs.run("shape", lambda ids: result, torch.zeros(2, dtype=torch.int64))
    assert not graphs._disabled and "shape" in graphs._graphs
