"""The engine on a CUDA device: captured decode steps yield the tokens of the CPU.

Skipped without a CUDA device, unless VIDQA_REQUIRE_GPU=1 requires one.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig as LlamaConfigOfTransformers
from transformers import LlamaForCausalLM, LlamaTokenizer

from vidqa.generate.attention import shared_prefix
from vidqa.generate.attention.cuda_graphs import StepGraphs
from vidqa.generate.engine import Engine, GenerationSettings, Request
from vidqa.generate.kv_cache import pool
from vidqa.generate.kv_cache.buffers import CacheCapacity
from vidqa.generate.roofline import measure
from vidqa.generate.running_batch import RunningBatch
from vidqa.model.connector import build_connector
from vidqa.model.llama import model as llama_model
from vidqa.model.llama.kernel_check import checked_kernels
from vidqa.model.llama.model import Llama, LlamaConfig
from vidqa.model.llama.weights import load_published
from vidqa.model.video_llava import VideoLlava
from vidqa.prompts.chat_formats import get_format
from vidqa.records import Features

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif("not torch.cuda.is_available() and __import__('os').environ.get('VIDQA_REQUIRE_GPU') != '1'"),
]
SETTINGS = GenerationSettings(max_new_tokens=24)


def answers(model: VideoLlava, requests: list[Request], static: bool) -> list[str]:
    engine = Engine(model, SETTINGS, batch_size=8, static_shapes=static)
    for i, request in enumerate(requests):
        engine.submit(i, request)
    got: dict[object, str] = {}
    while engine.busy:
        got |= {tag: answer.text for tag, answer in engine.step()}  # type: ignore[union-attr]
    return [got[i] for i in range(len(requests))]


def as_own(llm: Any) -> Llama:
    """The same weights in vidqa's own Llama."""
    c = llm.config
    sizes = {name: getattr(c, name) for name in LlamaConfig.__dataclass_fields__ if hasattr(c, name)}
    own = Llama(LlamaConfig(**sizes | {"rope_theta": c.rope_parameters["rope_theta"]}))
    assert load_published(own, llm.state_dict())
    return own.eval().requires_grad_(False)


@pytest.fixture
def requests(clips: dict[str, Features]) -> list[Request]:
    questions = ("What happens?", "Why?", "What colour is the ball? And what is behind it?")
    return [Request((clips[c],), ((q, None),)) for c in ("video", "long", "image", "other") for q in questions]


def test_captured_steps_yield_the_tokens_of_the_cpu(
    model: VideoLlava, requests: list[Request], caplog: pytest.LogCaptureFixture
) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    expected = answers(model, requests, static_shapes=False)
    model.to("cuda")
    assert answers(model, requests, static_shapes=False) == expected
    with caplog.at_level(logging.WARNING, logger="vidqa"):
        assert answers(model, requests, static_shapes=True) == expected
    assert not caplog.records, "steps were not captured"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_own_llama_is_captured_while_other_threads_use_the_device(
    dtype: torch.dtype, model: VideoLlava, requests: list[Request], caplog: pytest.LogCaptureFixture
) -> None:
    """As in a run: another thread allocates, multiplies and synchronizes during the capture."""
    model.to("cuda", dtype)
    own = VideoLlava(model.connector, as_own(model.llm).to("cuda"), model.tokenizer, model.chat, model.context)
    expected = answers(own, requests, static_shapes=False)
    done, errors = threading.Event(), []

    def use_device() -> None:
        stream, n = torch.cuda.Stream(), 0
        try:
            while not done.is_set():
                with torch.cuda.stream(stream):
                    n += 1
                    kept = torch.ones(1024 + n % 7 * 4096, 1024, device="cuda")
                    assert float((kept @ kept.T)[0, 0]) == 1024
        except (RuntimeError, AssertionError) as error:
            errors.append(error)

    thread = threading.Thread(target=use_device)
    thread.start()
    with caplog.at_level(logging.WARNING, logger="vidqa"):
        got = answers(own, requests, static_shapes=True)
    done.set()
    thread.join()
    assert not errors and not caplog.records
    equal = sum(one == other for one, other in zip(got, expected, strict=True))
    assert equal == len(requests) if dtype == torch.float32 else equal >= len(requests) // 2


def test_half_precision_yields_mostly_the_same_answers_when_captured(
    model: VideoLlava, requests: list[Request]
) -> None:
    model.to("cuda", torch.bfloat16)
    eager, captured = answers(model, requests, static_shapes=False), answers(model, requests, static_shapes=True)
    assert sum(a[:4] == b[:4] for a, b in zip(eager, captured, strict=True)) >= len(requests) // 2


def test_a_failed_capture_leaves_the_allocator_intact(caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise `empty_cache` fails or frees nothing, and a full device stays full."""

    def synchronizes(ids: torch.Tensor) -> torch.Tensor:
        return (ids * ids.sum().item()).float()[:, None]

    graphs, ids = StepGraphs(), torch.arange(4, device="cuda")
    with caplog.at_level(logging.WARNING, logger="vidqa"):
        for _ in range(6):
            assert graphs.run("shape", synchronizes, ids).flatten().tolist() == [0, 6, 12, 18]
    assert len(caplog.records) == 1, "not captured, and reported once"
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    allocated = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    assert torch.cuda.memory_reserved() >= before + (1 << 30)
    del allocated
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before


def test_the_kv_cache_of_a_prefix_is_in_memory_once(tokenizer_folder: Path) -> None:
    """In addition to the buffers there is the KV cache of one layer, not of all 16."""
    torch.manual_seed(3)
    tokenizer = LlamaTokenizer.from_pretrained(tokenizer_folder, add_bos_token=True)
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 16, "num_attention_heads": 4}
    llm = as_own(LlamaForCausalLM(LlamaConfigOfTransformers(vocab_size=len(tokenizer), **sizes))).to("cuda")
    connector = build_connector("linear", 24, 256).to("cuda")
    model = VideoLlava(connector, llm, tokenizer, get_format("v1", ""), 4096).eval().requires_grad_(False)
    batch, prefix = (
        RunningBatch(model, CacheCapacity(2, 4, 2048, 64), static_shapes=True),
        torch.randn(2048, 256, device="cuda"),
    )
    with torch.inference_mode():
        batch.prefill_prefixes([prefix])  # allocates the buffers
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        batch.prefill_prefixes([prefix, prefix])
    kv_bytes_of_all_layers = 16 * 2 * 2 * 2048 * 256 * 4
    assert torch.cuda.max_memory_allocated() - before < kv_bytes_of_all_layers / 2


def test_rates_of_the_device_are_plausible() -> None:
    found = measure(torch.device("cuda"), torch.bfloat16)
    assert found.matmul_flop_per_s > 1e12
    assert found.copy_bytes_per_s > 1e10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kernels_pass_their_check(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("triton")
    device = torch.device("cuda", 0)
    for head_dim in (16, 64, 128):
        assert checked_kernels("vidqa.model.llama.fused_ops", device, dtype, head_dim) is not None, caplog.text
        assert checked_kernels(shared_prefix.KERNELS, device, dtype, head_dim) is not None, caplog.text


def test_kernels_do_not_change_the_answers(
    tokenizer_folder: Path, clips: dict[str, Features], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half precision: equal except for ties, with a head_dim that the kernels support."""
    torch.manual_seed(3)
    tokenizer = LlamaTokenizer.from_pretrained(tokenizer_folder, add_bos_token=True)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = LlamaConfigOfTransformers(
        vocab_size=len(tokenizer), num_key_value_heads=2, initializer_range=0.3, eos_token_id=None, **sizes
    )
    llm = as_own(LlamaForCausalLM(config)).to("cuda", torch.bfloat16)
    connector = build_connector("mlp2x_gelu", 24, 64).to("cuda", torch.bfloat16)
    model = VideoLlava(connector, llm, tokenizer, get_format("v1", ""), 256).eval().requires_grad_(False)
    questions = ("What happens?", "Why?", "What colour is the ball? And what is behind it?")
    requests = [Request((clips[c],), ((q, None),)) for c in ("video", "long", "image", "other") for q in questions]
    with_kernels = answers(model, requests, static_shapes=True)
    for module in (shared_prefix, pool, llama_model):
        monkeypatch.setattr(module, "checked_kernels", lambda *which: None)
    without = answers(model, requests, static_shapes=True)
    assert sum(a[:8] == b[:8] for a, b in zip(with_kernels, without, strict=True)) >= len(requests) // 2
