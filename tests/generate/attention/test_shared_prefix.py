"""Shared-prefix attention equals standard attention; its tokens equal those of transformers' generate."""

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
from vidqa.generate.attention.shared_prefix import PrefixSpan, prefix_attention, suffix_attention
from vidqa.generate.chat_session import ChatSession
from vidqa.generate.engine import Engine, GenerationSettings, Request, generate
from vidqa.generate.kv_cache.pool import packed
from vidqa.generate.llm_adapter import supports_shared_prefix
from vidqa.generate.requests import PlannedRequest, plan_request
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
        got |= dict(engine.step())
    return [got[i].text for i in range(len(requests))]


def reference(model: VideoLlava, request: Request) -> str:
    """The answer of transformers' generate to one request on its own."""
    planned = plan_request(model, 0, request, SHORT)
    assert isinstance(planned, PlannedRequest)
    embeds = model.embed_prompt(planned.prompt, model.visual_tokens(request.features))[None]
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


def with_other_llm(model: VideoLlava, kind: str) -> VideoLlava:
    config_class, llm_class, more = KINDS[kind]
    torch.manual_seed(5)
    llm = llm_class(config_class(vocab_size=len(model.tokenizer), **SIZES | more)).eval()
    llm.generation_config.eos_token_id = None
    built = VideoLlava(build_connector("mlp2x_gelu", 24, 32), llm, model.tokenizer, model.chat, 256)
    return built.eval().requires_grad_(False)


def as_own(llm: LlamaForCausalLM) -> Llama:
    """The same weights in vidqa's own Llama."""
    c = llm.config
    sizes = LlamaConfig(
        *(c.vocab_size, c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads),
        *(c.num_key_value_heads, c.head_dim, c.rms_norm_eps, c.rope_parameters["rope_theta"], False),
    )
    own = Llama(sizes)
    assert load_published(own, llm.state_dict())
    return own.eval().requires_grad_(False)


@pytest.mark.slow
@pytest.mark.parametrize("static", [False, True])
def test_own_llama_equals_transformers(model: VideoLlava, requests: list[Request], static: bool) -> None:
    """One by one with transformers' generate, and all together with our engine; a chat, too."""
    truth = [reference(model, request) for request in requests]
    own = VideoLlava(model.connector, as_own(model.llm), model.tokenizer, model.chat, model.context)
    assert answers_of(own, requests, static_shapes=static) == truth
    assert answers_of(own, requests, batch_size=3, static_shapes=static) == truth
    first = requests[0]
    chats = [
        [session.ask(text).text for text in (first.turns[0][0], "And then?")]
        for session in (ChatSession(m, first.features, SHORT) for m in (model, own))
    ]
    assert chats[0] == chats[1] and chats[0][0] == truth[0]


@pytest.mark.parametrize("ratio", [1, 3])
@pytest.mark.parametrize("n_new", [1, 5])
@pytest.mark.parametrize("fused", [True, False])
def test_merged_attention_equals_standard_attention(
    ratio: int, n_new: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three prefixes of different lengths with 2, 1 and 0 sequences; with and without grouped-query attention."""
    torch.manual_seed(0)
    assert shared_prefix._has_cpu_flash_attention("cpu", torch.float32), "torch changed the operator: no log-sum-exp"
    if not fused:
        monkeypatch.setattr(shared_prefix, "_has_cpu_flash_attention", lambda device, dtype: False)
    n, n_kv_heads, d, n_suffix, lengths = 3, 2, 8, 7, (11, 6, 4)
    keys, values = (torch.randn(len(lengths) * n_kv_heads, 11, d) for _ in range(2))
    query = torch.randn(n, n_kv_heads * ratio, n_new, d)
    suffix_keys, suffix_values = (torch.randn(n, n_kv_heads, n_suffix, d) for _ in range(2))
    padding = torch.arange(11)[None, None] >= torch.tensor(lengths)[:, None, None]
    mask = torch.rand(n, 1, n_new, n_suffix) > 0.3
    mask[..., 0] = True
    span = PrefixSpan(0, 3, 2, 11, torch.tensor([0, 2, 1]), padding)  # sequences 0 and 2 have prefix 0, 1 has prefix 1
    scale = d**-0.5
    prefix_out, prefix_lse = prefix_attention(query, keys, values, span, scale)
    suffix_out, suffix_lse = suffix_attention(query, suffix_keys, suffix_values, mask, scale)
    lse = torch.logaddexp(prefix_lse, suffix_lse)
    out = prefix_out * (prefix_lse - lse).exp()[..., None] + suffix_out * (suffix_lse - lse).exp()[..., None]
    for i, prefix in enumerate((0, 1, 0)):
        rows = slice(prefix * n_kv_heads, (prefix + 1) * n_kv_heads)
        k = torch.cat([keys[rows, : lengths[prefix]], suffix_keys[i]], 1).repeat_interleave(ratio, 0)
        v = torch.cat([values[rows, : lengths[prefix]], suffix_values[i]], 1).repeat_interleave(ratio, 0)
        visible = torch.cat([torch.ones(n_new, lengths[prefix], dtype=torch.bool), mask[i, 0]], 1)
        expected = torch.nn.functional.scaled_dot_product_attention(query[i], k, v, attn_mask=visible)
        torch.testing.assert_close(out[i], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, None])
def test_tokens_equal_those_of_transformers(
    static: bool, batch_size: int | None, model: VideoLlava, requests: list[Request]
) -> None:
    """In float32, with prefixes of different lengths; also with the static shapes that CUDA graphs require."""
    assert isinstance(model.llm, LlamaForCausalLM)
    expected = [reference(model, r) for r in requests]
    assert len(set(expected)) >= len(expected) - 1, "the model must distinguish the requests"
    assert answers_of(model, requests, static_shapes=static, batch_size=batch_size) == expected


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_other_models_with_full_attention(kind: str, model: VideoLlava, requests: list[Request]) -> None:
    other = with_other_llm(model, kind)
    assert supports_shared_prefix(other.llm, 256)
    assert answers_of(other, requests) == [reference(other, r) for r in requests]


def test_models_with_another_attention_use_the_fallback(model: VideoLlava, requests: list[Request]) -> None:
    KINDS["gemma2"] = (Gemma2Config, Gemma2ForCausalLM, {"sliding_window": 16})
    other = with_other_llm(model, "gemma2")
    del KINDS["gemma2"]
    assert not supports_shared_prefix(other.llm, 256)
    assert answers_of(other, requests, batch_size=4) == [reference(other, r) for r in requests]


def test_a_sliding_window_matters_only_if_the_context_exceeds_it(model: VideoLlava) -> None:
    model.llm.config.sliding_window = 256
    assert supports_shared_prefix(model.llm, 256)
    assert not supports_shared_prefix(model.llm, 257)


def test_the_attention_implementation_is_restored(model: VideoLlava, requests: list[Request]) -> None:
    before = model.llm.config._attn_implementation
    generate(model, requests[:2], SHORT)
    assert model.llm.config._attn_implementation == before


def test_half_precision_yields_mostly_the_same_answers(model: VideoLlava, requests: list[Request]) -> None:
    """In bfloat16 the order of summation matters, but rarely for the first token of an answer."""
    model.to(torch.bfloat16)
    expected = [reference(model, r) for r in requests]
    got = answers_of(model, requests)
    assert sum(a[:3] == b[:3] for a, b in zip(got, expected, strict=True)) >= len(expected) // 2


def test_an_operator_with_other_results_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **rest: Any) -> tuple[torch.Tensor, ...]:
        return query, query[..., 0]

    for other in (None, wrong, lambda query: query):
        monkeypatch.setattr(shared_prefix, "_CPU_FLASH_ATTENTION", other)
        shared_prefix._has_cpu_flash_attention.cache_clear()
        assert not shared_prefix._has_cpu_flash_attention("cpu", torch.float32)
    shared_prefix._has_cpu_flash_attention.cache_clear()


def test_packed_moves_the_last_into_the_gaps() -> None:
    assert packed([True, False, True, True]) == [0, 3, 2]
    assert packed([False, False, True]) == [2]
    assert packed([False]) == []
    assert packed([True, True]) == [0, 1]
