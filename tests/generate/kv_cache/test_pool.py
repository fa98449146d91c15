"""Peak memory of a prefill, content of unused buffers, and layers of different shapes."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from vidqa.generate.kv_cache.buffers import CacheCapacity
from vidqa.generate.kv_cache.pool import KVPool
from vidqa.generate.running_batch import RunningBatch
from vidqa.model.connector import build_connector
from vidqa.model.llama.model import Llama, LlamaConfig
from vidqa.model.video_llava import VideoLlava
from vidqa.prompts.chat_formats import get_format

CPU = torch.device("cpu")


@pytest.fixture
def own() -> VideoLlava:
    """Three layers with random weights."""
    llm = Llama(LlamaConfig(50, 16, 32, 3, 4, 2, 4, 1e-5, 1e4, False)).eval()
    generator = torch.Generator().manual_seed(0)
    for weight in llm.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.2
    return VideoLlava(build_connector("linear", 8, 16), llm, None, get_format("v1", ""), 64)


@pytest.fixture
def memory_of_nan() -> Iterator[None]:
    """Memory that was not written contains NaN, as it may on a GPU."""
    torch.use_deterministic_algorithms(True)  # torch then fills new memory with NaN
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("kind", ["own", "transformers"])
def test_prefill_holds_at_most_one_layer_besides_the_buffers(
    kind: str, own: VideoLlava, model: VideoLlava, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The KV cache of one prefix of a 7B model is a gigabyte: a small GPU cannot hold it twice."""
    tested = own if kind == "own" else model
    layers: list[weakref.ref[Any]] = []
    before = KVPool.store_prefixes

    def store_prefixes(self: KVPool, key: Tensor, value: Tensor, layer_idx: int) -> None:
        assert [layer() is None for layer in layers] == [True] * (2 * layer_idx)
        layers.extend((weakref.ref(key), weakref.ref(value)))
        before(self, key, value, layer_idx)

    monkeypatch.setattr(KVPool, "store_prefixes", store_prefixes)
    batch = RunningBatch(tested, CacheCapacity(4, 2, 32, 16))
    with torch.inference_mode():
        batch.prefill_prefixes([torch.randn(n, tested.llm.config.hidden_size) for n in (5, 9)])
    assert len(layers) == 6


def test_padding_sequences_read_finite_values(own: VideoLlava, memory_of_nan: None) -> None:
    """Steps of static shapes read positions that were never written. With NaN there, captured graphs are rejected."""
    seen: list[Tensor] = []
    own.llm.lm_head.register_forward_hook(lambda module, args, out: seen.append(out))
    batch = RunningBatch(own, CacheCapacity(8, 4, 32, 16), static_shapes=True)
    with torch.inference_mode():
        prefixes = batch.prefill_prefixes([torch.randn(n, 16) for n in (5, 9, 7)])
        batch.prefill_suffixes(prefixes, [torch.randn(3, 16) for _ in prefixes])
        assert batch.logits is not None
        batch.decode_step(batch.logits.argmax(-1))
    assert seen[-1].shape[0] == 4, "three sequences and one padding sequence"
    assert bool(torch.isfinite(seen[-1]).all())


def test_layers_may_have_different_shapes() -> None:
    """Each keeps its own heads and head_dim, also when sequences and prefixes move."""
    pool = KVPool(CacheCapacity(4, 3, 8, 6), 3, CPU)
    shapes, generator = ((2, 4), (1, 4), (2, 8)), torch.Generator().manual_seed(1)
    assert pool.add_prefixes([5, 3, 4]) == [0, 1, 2]
    layers = [tuple(torch.randn(3, g, 5, d, generator=generator) for _ in range(2)) for g, d in shapes]
    for i, (key, value) in enumerate(layers):
        pool.store_prefixes(key, value, i)
    pool.add_sequences([0, 1, 2], [2, 2, 2])
    suffixes = [tuple(torch.randn(3, g, 2, d, generator=generator) for _ in range(2)) for g, d in shapes]
    for i, (key, value) in enumerate(suffixes):
        pool.update(key, value, i)
    assert pool.keep([2, 1]) == {2: 0, 1: 1}
    for (g, _), prefix, prefix_kv, suffix, suffix_kv in zip(
        shapes, layers, pool.prefix_kv, suffixes, pool.suffix_kv, strict=True
    ):
        for role in range(2):
            assert torch.equal(prefix_kv[role][:g, :4], prefix[role][2, :, :4])
            assert torch.equal(prefix_kv[role][g : 2 * g, :3], prefix[role][1, :, :3])
            assert torch.equal(suffix_kv[role][0, :, :2], suffix[role][2])
            assert torch.equal(suffix_kv[role][1, :, :2], suffix[role][1])
