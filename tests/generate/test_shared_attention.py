"""The shared beginning: the same numbers as ordinary attention, the same tokens as transformers' own generate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from vidqa.generate.attention import shared_prefix
from vidqa.generate.attention.shared_prefix import PrefixSpan, over_beginnings, over_own
from vidqa.generate.chat_session import ChatSession
from vidqa.generate.engine import Engine, GenerationSettings, Request, generate
from vidqa.generate.kv_cache.pool import packed
from vidqa.generate.llm_adapter import can_share
from vidqa.generate.requests import PlannedRequest, plan_job
from vidqa.model.connector import build_connector
from vidqa.model.llama.model import Llama, LlamaConfig
from vidqa.model.llama.weights import load_published
from vidqa.model.video_llava import VideoLlava
from vidqa.records import Features

SHORT = GenerationSettings(max_new_tokens=10)
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "eos_token_id": None,
    "pad_token_id": 0,
}
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "mistral": (MistralConfig, MistralForCausalLM, {}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}),
    "phi3": (Phi3Config, Phi3ForCausalLM, {"sliding_window": None}),
}


def answers_of(model: VideoLlava, requests: list[Request], **how: Any) -> list[Any]:
    engine = Engine(model, SHORT, **how)
    for i, request in enumerate(requests):
        engine.submit(i, request)
    got: dict[object, Any] = {}
    while engine.busy:
        got |= dict(engine.advance())
    return [got[i].text for i in range(len(requests))]


def reference(model: VideoLlava, request: Request) -> str:
    """One by one, by transformers' own generate."""
    job = plan_job(model, 0, request, SHORT)
    assert isinstance(job, PlannedRequest)
    embeds = model.embed_prompt(job.prompt, model.visual_tokens(request.features))[None]
    (ids,) = model.llm.generate(
        inputs_embeds=embeds,
        attention_mask=torch.ones(embeds.shape[:2]),
        max_new_tokens=request.max_new_tokens or SHORT.max_new_tokens,
        do_sample=False,
        eos_token_id=model.tokenizer.eos_token_id,
    )
    text: str = model.tokenizer.decode(ids, skip_special_tokens=True)
    return text.strip()


@pytest.fixture
def requests(clips: dict[str, Features]) -> list[Request]:
    questions = ("What happens?", "Why?", "What colour is the ball? And what is behind it?")
    asked = [Request((clips[c],), ((q, None),)) for c in ("video", "long", "image") for q in questions]
    return [*asked, Request((clips["small"],), (("Is it small?", None),), 3), Request((), (("Name a river.", None),))]


def other_llm(model: VideoLlava, kind: str) -> VideoLlava:
    config_class, llm_class, more = KINDS[kind]
    torch.manual_seed(5)
    llm = llm_class(config_class(vocab_size=len(model.tokenizer), **SIZES | more)).eval()
    llm.generation_config.eos_token_id = None
    built = VideoLlava(build_connector("mlp2x_gelu", 24, 32), llm, model.tokenizer, model.chat, 256)
    return built.eval().requires_grad_(False)


def as_own(llm: LlamaForCausalLM) -> Llama:
    """The same weights in our own Llama."""
    c = llm.config
    sizes = LlamaConfig(
        *(c.vocab_size, c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads),
        *(c.num_key_value_heads, c.head_dim, c.rms_norm_eps, c.rope_parameters["rope_theta"], False),
    )
    own = Llama(sizes)
    assert load_published(own, llm.state_dict())
    return own.eval().requires_grad_(False)


@pytest.mark.parametrize("static", [False, True])
def test_our_own_llama_gives_the_tokens_of_transformers(
    model: VideoLlava, requests: list[Request], static: bool
) -> None:
    """One by one by transformers' own generate, and all together by ours; a dialogue, too."""
    truth = [reference(model, request) for request in requests]
    own = VideoLlava(model.connector, as_own(model.llm), model.tokenizer, model.chat, model.context)
    assert answers_of(own, requests, static=static) == truth
    assert answers_of(own, requests, batch_size=3, static=static) == truth
    first = requests[0]
    said = [
        [session.ask(text).text for text in (first.turns[0][0], "And then?")]
        for session in (ChatSession(m, first.features, SHORT) for m in (model, own))
    ]
    assert said[0] == said[1] and said[0][0] == truth[0]


@pytest.mark.parametrize("ratio", [1, 3])
@pytest.mark.parametrize("n_new", [1, 5])
@pytest.mark.parametrize("fused", [True, False])
def test_the_two_parts_join_to_ordinary_attention(
    ratio: int, n_new: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three clips of different lengths with 2, 1 and 0 lines, keys of several query heads shared."""
    torch.manual_seed(0)
    assert shared_prefix._fuses("cpu", torch.float32), "torch's fused attention changed: its log-sum-exp is not had"
    if not fused:
        monkeypatch.setattr(shared_prefix, "_fuses", lambda device, dtype: False)
    n, groups, d, n_own, lengths = 3, 2, 8, 7, (11, 6, 4)
    keys, values = (torch.randn(len(lengths) * groups, 11, d) for _ in range(2))
    query = torch.randn(n, groups * ratio, n_new, d)
    own_keys, own_values = (torch.randn(n, groups, n_own, d) for _ in range(2))
    hidden = torch.arange(11)[None, None] >= torch.tensor(lengths)[:, None, None]
    mask = torch.rand(n, 1, n_new, n_own) > 0.3
    mask[..., 0] = True
    part = PrefixSpan(
        0, 3, 2, 11, torch.tensor([0, 2, 1]), hidden
    )  # lines 0 and 2 are about clip 0, line 1 about clip 1
    scale = d**-0.5
    begun, l_begun = over_beginnings(query, keys, values, part, scale)
    own, l_own = over_own(query, own_keys, own_values, mask, scale)
    total = torch.logaddexp(l_begun, l_own)
    out = begun * (l_begun - total).exp()[..., None] + own * (l_own - total).exp()[..., None]
    for line, clip in enumerate((0, 1, 0)):
        mine = slice(clip * groups, (clip + 1) * groups)
        k = torch.cat([keys[mine, : lengths[clip]], own_keys[line]], 1).repeat_interleave(ratio, 0)
        v = torch.cat([values[mine, : lengths[clip]], own_values[line]], 1).repeat_interleave(ratio, 0)
        seen = torch.cat([torch.ones(n_new, lengths[clip], dtype=torch.bool), mask[line, 0]], 1)
        want = torch.nn.functional.scaled_dot_product_attention(query[line], k, v, attn_mask=seen)
        torch.testing.assert_close(out[line], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, None])
def test_tokens_are_those_of_transformers(
    static: bool, batch_size: int | None, model: VideoLlava, requests: list[Request]
) -> None:
    """In float32, clips of different lengths together; also with the fixed shapes that CUDA graphs need."""
    assert isinstance(model.llm, LlamaForCausalLM)
    want = [reference(model, r) for r in requests]
    assert len(set(want)) >= len(want) - 1, "the model must tell the requests apart"
    assert answers_of(model, requests, static=static, batch_size=batch_size) == want


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_other_models_of_the_type(kind: str, model: VideoLlava, requests: list[Request]) -> None:
    other = other_llm(model, kind)
    assert can_share(other.llm, 256)
    assert answers_of(other, requests) == [reference(other, r) for r in requests]


def test_models_with_another_attention_are_answered_all_the_same(model: VideoLlava, requests: list[Request]) -> None:
    KINDS["gemma2"] = (Gemma2Config, Gemma2ForCausalLM, {"sliding_window": 16})
    other = other_llm(model, "gemma2")
    del KINDS["gemma2"]
    assert not can_share(other.llm, 256)
    assert answers_of(other, requests, batch_size=4) == [reference(other, r) for r in requests]


def test_a_window_counts_only_where_it_is_reached(model: VideoLlava) -> None:
    model.llm.config.sliding_window = 256
    assert can_share(model.llm, 256)
    assert not can_share(model.llm, 257)


def test_the_model_is_left_as_it_was(model: VideoLlava, requests: list[Request]) -> None:
    before = model.llm.config._attn_implementation
    generate(model, requests[:2], SHORT)
    assert model.llm.config._attn_implementation == before


def test_half_precision_gives_mostly_the_same_answers(model: VideoLlava, requests: list[Request]) -> None:
    """In bfloat16 the order of sums matters; the first token of nearly all answers does not."""
    model.to(torch.bfloat16)
    want = [reference(model, r) for r in requests]
    got = answers_of(model, requests)
    assert sum(a[:3] == b[:3] for a, b in zip(got, want, strict=True)) >= len(want) // 2


def test_a_fused_attention_of_another_kind_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **rest: Any) -> tuple[torch.Tensor, ...]:
        return query, query[..., 0]

    for other in (None, wrong, lambda query: query):
        monkeypatch.setattr(shared_prefix, "_FUSED", other)
        shared_prefix._fuses.cache_clear()
        assert not shared_prefix._fuses("cpu", torch.float32)
    shared_prefix._fuses.cache_clear()


def test_packing_moves_the_last_into_the_gaps() -> None:
    assert packed([True, False, True, True]) == [0, 3, 2]
    assert packed([False, False, True]) == [2]
    assert packed([False]) == []
    assert packed([True, True]) == [0, 1]
