"""The engine on a CUDA device: recorded steps give the tokens of the CPU. Skipped where there is none, unless
VIDQA_REQUIRE_GPU=1 says that there must be one.
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
from vidqa.model.llama.kernel_check import proven
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
    engine = Engine(model, SETTINGS, batch_size=8, static=static)
    for i, request in enumerate(requests):
        engine.submit(i, request)
    got: dict[object, str] = {}
    while engine.busy:
        got |= {tag: answer.text for tag, answer in engine.advance()}  # type: ignore[union-attr]
    return [got[i] for i in range(len(requests))]


def as_own(llm: Any) -> Llama:
    """The same weights in our own Llama."""
    c = llm.config
    sizes = {name: getattr(c, name) for name in LlamaConfig.__dataclass_fields__ if hasattr(c, name)}
    own = Llama(LlamaConfig(**sizes | {"rope_theta": c.rope_parameters["rope_theta"]}))
    assert load_published(own, llm.state_dict())
    return own.eval().requires_grad_(False)


@pytest.fixture
def requests(clips: dict[str, Features]) -> list[Request]:
    questions = ("What happens?", "Why?", "What colour is the ball? And what is behind it?")
    return [Request((clips[c],), ((q, None),)) for c in ("video", "long", "image", "other") for q in questions]


def test_recorded_steps_give_the_tokens_of_the_cpu(
    model: VideoLlava, requests: list[Request], caplog: pytest.LogCaptureFixture
) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    want = answers(model, requests, static=False)
    model.to("cuda")
    assert answers(model, requests, static=False) == want
    with caplog.at_level(logging.WARNING, logger="vidqa"):
        assert answers(model, requests, static=True) == want
    assert not caplog.records, "steps were not recorded"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_our_own_llama_recorded_while_others_use_the_device(
    dtype: torch.dtype, model: VideoLlava, requests: list[Request], caplog: pytest.LogCaptureFixture
) -> None:
    """As in a run: another thread takes memory, multiplies and waits for results while steps are recorded."""
    model.to("cuda", dtype)
    own = VideoLlava(model.connector, as_own(model.llm).to("cuda"), model.tokenizer, model.chat, model.context)
    want = answers(own, requests, static=False)
    ended, errors = threading.Event(), []

    def others() -> None:
        stream, n = torch.cuda.Stream(), 0
        try:
            while not ended.is_set():
                with torch.cuda.stream(stream):
                    n += 1
                    kept = torch.ones(1024 + n % 7 * 4096, 1024, device="cuda")
                    assert float((kept @ kept.T)[0, 0]) == 1024
        except (RuntimeError, AssertionError) as error:
            errors.append(error)

    thread = threading.Thread(target=others)
    thread.start()
    with caplog.at_level(logging.WARNING, logger="vidqa"):
        got = answers(own, requests, static=True)
    ended.set()
    thread.join()
    assert not errors and not caplog.records
    equal = sum(one == other for one, other in zip(got, want, strict=True))
    assert equal == len(requests) if dtype == torch.float32 else equal >= len(requests) // 2


def test_half_precision_agrees_with_itself_recorded_or_not(model: VideoLlava, requests: list[Request]) -> None:
    model.to("cuda", torch.bfloat16)
    plain, recorded = answers(model, requests, static=False), answers(model, requests, static=True)
    assert sum(a[:4] == b[:4] for a, b in zip(plain, recorded, strict=True)) >= len(requests) // 2


def test_a_recording_that_fails_leaves_torch_in_order(caplog: pytest.LogCaptureFixture) -> None:
    """Where the allocator is not told, `empty_cache` fails or frees nothing, and a device that was full stays full."""

    def waits(ids: torch.Tensor) -> torch.Tensor:
        return (ids * ids.sum().item()).float()[:, None]

    graphs, ids = StepGraphs(), torch.arange(4, device="cuda")
    with caplog.at_level(logging.WARNING, logger="vidqa"):
        for _ in range(6):
            assert graphs.run("shape", waits, ids).flatten().tolist() == [0, 6, 12, 18]
    assert len(caplog.records) == 1, "not recorded, and said once"
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    taken = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    assert torch.cuda.memory_reserved() >= before + (1 << 30)
    del taken
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before


def test_a_beginning_lies_in_memory_once(tokenizer_folder: Path) -> None:
    """Beside the buffers there is one layer's keys and values, not those of all 16."""
    torch.manual_seed(3)
    tokenizer = LlamaTokenizer.from_pretrained(tokenizer_folder, add_bos_token=True)
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 16, "num_attention_heads": 4}
    llm = as_own(LlamaForCausalLM(LlamaConfigOfTransformers(vocab_size=len(tokenizer), **sizes))).to("cuda")
    connector = build_connector("linear", 24, 256).to("cuda")
    model = VideoLlava(connector, llm, tokenizer, get_format("v1", ""), 4096).eval().requires_grad_(False)
    batch, one = RunningBatch(model, CacheCapacity(2, 4, 2048, 64), static=True), torch.randn(2048, 256, device="cuda")
    with torch.inference_mode():
        batch.begin([one])  # the buffers are made
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        batch.begin([one, one])
    of_all_layers = 16 * 2 * 2 * 2048 * 256 * 4
    assert torch.cuda.max_memory_allocated() - before < of_all_layers / 2


def test_limits_of_the_device() -> None:
    found = measure(torch.device("cuda"), torch.bfloat16)
    assert found.matrix_per_s > 1e12
    assert found.copy_bytes_per_s > 1e10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kernels_are_right_and_used(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("triton")
    device = torch.device("cuda", 0)
    for width in (16, 64, 128):
        assert proven("vidqa.model.llama.fused_ops", device, dtype, width) is not None, caplog.text
        assert proven(shared_prefix.KERNELS, device, dtype, width) is not None, caplog.text


def test_answers_by_kernels_are_those_without(
    tokenizer_folder: Path, clips: dict[str, Features], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half precision: equal but for ties, with heads wide enough for the kernels."""
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
    asked = [Request((clips[c],), ((q, None),)) for c in ("video", "long", "image", "other") for q in questions]
    by_kernels = answers(model, asked, static=True)
    for module in (shared_prefix, pool, llama_model):
        monkeypatch.setattr(module, "proven", lambda *which: None)
    without = answers(model, asked, static=True)
    assert sum(a[:8] == b[:8] for a, b in zip(by_kernels, without, strict=True)) >= len(asked) // 2
