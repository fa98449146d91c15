"""What lies in memory while beginnings come in, and what the buffers hold before anything was stored."""

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
    drawn = torch.Generator().manual_seed(0)
    for weight in llm.parameters():
        weight.data = torch.randn(weight.shape, generator=drawn) * 0.2
    return VideoLlava(build_connector("linear", 8, 16), llm, None, get_format("v1", ""), 64)


@pytest.fixture
def nothing_is_a_number() -> Iterator[None]:
    """What was not written to holds NaN, as it may on a GPU."""
    torch.use_deterministic_algorithms(True)  # which has torch fill new memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("kind", ["own", "transformers"])
def test_no_more_than_one_layer_lies_beside_the_buffers(
    kind: str, own: VideoLlava, model: VideoLlava, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A beginning of a 7B model is a gigabyte of keys and values: on a small GPU there is no room for two of each."""
    tested = own if kind == "own" else model
    held: list[weakref.ref[Any]] = []
    before = KVPool.hold

    def hold(self: KVPool, key: Tensor, value: Tensor, layer_idx: int) -> None:
        assert [seen() is None for seen in held] == [True] * (2 * layer_idx)
        held.extend((weakref.ref(key), weakref.ref(value)))
        before(self, key, value, layer_idx)

    monkeypatch.setattr(KVPool, "hold", hold)
    batch = RunningBatch(tested, CacheCapacity(4, 2, 32, 16))
    with torch.inference_mode():
        batch.begin([torch.randn(n, tested.llm.config.hidden_size) for n in (5, 9)])
    assert len(held) == 6


def test_lines_that_do_not_count_see_numbers(own: VideoLlava, nothing_is_a_number: None) -> None:
    """Steps of fixed shapes read what nothing was stored in. Where that gave NaN, recordings were not believed."""
    seen: list[Tensor] = []
    own.llm.lm_head.register_forward_hook(lambda module, args, out: seen.append(out))
    batch = RunningBatch(own, CacheCapacity(8, 4, 32, 16), static=True)
    with torch.inference_mode():
        clips = batch.begin([torch.randn(n, 16) for n in (5, 9, 7)])
        batch.ask(clips, [torch.randn(3, 16) for _ in clips])
        assert batch.logits is not None
        batch.step(batch.logits.argmax(-1))
    assert seen[-1].shape[0] == 4, "three lines and one that fills up"
    assert bool(torch.isfinite(seen[-1]).all())


def test_layers_may_differ() -> None:
    """Each keeps its own heads and widths, also where lines and clips move."""
    pool = KVPool(CacheCapacity(4, 3, 8, 6), 3, CPU)
    shapes, drawn = ((2, 4), (1, 4), (2, 8)), torch.Generator().manual_seed(1)
    assert pool.begin([5, 3, 4]) == [0, 1, 2]
    layers = [tuple(torch.randn(3, g, 5, d, generator=drawn) for _ in range(2)) for g, d in shapes]
    for i, (key, value) in enumerate(layers):
        pool.hold(key, value, i)
    pool.open([0, 1, 2], [2, 2, 2])
    tails = [tuple(torch.randn(3, g, 2, d, generator=drawn) for _ in range(2)) for g, d in shapes]
    for i, (key, value) in enumerate(tails):
        pool.update(key, value, i)
    assert pool.keep([2, 1]) == {2: 0, 1: 1}
    for (g, _), whole, begun, tail, own_part in zip(shapes, layers, pool.prefixes, tails, pool.own, strict=True):
        for role in range(2):
            assert torch.equal(begun[role][:g, :4], whole[role][2, :, :4])
            assert torch.equal(begun[role][g : 2 * g, :3], whole[role][1, :, :3])
            assert torch.equal(own_part[role][0, :, :2], tail[role][2])
            assert torch.equal(own_part[role][1, :, :2], tail[role][1])
