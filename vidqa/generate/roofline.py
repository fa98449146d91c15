"""Roofline: the matmul and memory rates that a device reaches, and what a model needs of each.

    prefill       2 FLOP per weight and token: limited by the matmul rate
    decode step   reads every weight and the whole KV cache once: limited by the memory bandwidth

The matmuls of attention are not counted (4 % of those of the weights for 257 tokens of a ViT-L, 10 % for 2,000 tokens
of a 7B model), so the reported share of the limit is on the low side.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vidqa.generate.running_batch import EngineStats
from vidqa.model.video_llava import VideoLlava

_SECONDS = 0.15  # duration of each measurement, after a warm-up
_MATRIX_SIZE = {"cpu": 1024, "cuda": 8192}
#: Bytes per copy: more than fits into caches. No more than that on a CPU, to save memory.
_COPY_BYTES = {"cpu": 64 << 20, "cuda": 2 << 30}


@dataclass(frozen=True)
class Limits:
    """Rates that one device reached with nothing but matmuls or copies."""

    device: str
    dtype: str
    matmul_flop_per_s: float  # a multiplication and an addition count as two
    copy_bytes_per_s: float  # bytes read and written


def measure(device: torch.device, dtype: torch.dtype) -> Limits:
    """Measure a device.

    Args:
        device: device of the model.
        dtype: dtype of its weights.
    """
    n = _MATRIX_SIZE.get(device.type, 1024)
    a, b = (torch.rand(n, n, device=device, dtype=dtype) for _ in range(2))
    matmuls = _per_second(lambda: a @ b, device)
    source = torch.zeros(_COPY_BYTES.get(device.type, 64 << 20), dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    copies = _per_second(lambda: target.copy_(source), device)
    return Limits(str(device), str(dtype).removeprefix("torch."), 2.0 * n**3 * matmuls, 2.0 * len(source) * copies)


def prefill_operations(model: VideoLlava, n_tokens: int) -> float:
    """Return the floating-point operations that the prefill of this many tokens needs."""
    return 2.0 * _n_weights(model) * n_tokens


def decode_bytes(model: VideoLlava, stats: EngineStats) -> float:
    """Return the bytes that the decode steps of an engine had to read: all weights per step, and the KV cache."""
    return float(stats.decode_steps * _n_weights(model, with_head=True) * model.dtype.itemsize + stats.decode_kv_bytes)


def _n_weights(model: VideoLlava, with_head: bool = False) -> int:
    """Count the weights that every token is multiplied with: no embedding table, and the head only if requested."""
    tables = {id(model.llm.get_input_embeddings().weight)}
    head = model.llm.get_output_embeddings()
    n = 0
    if head is not None:
        tables.add(id(head.weight))
        n = head.weight.numel() if with_head else 0
    return n + sum(p.numel() for p in model.llm.parameters() if id(p) not in tables)


def _per_second(run: Callable[[], object], device: torch.device) -> float:
    """Runs per second, the best of three rounds."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    run()
    wait()
    best = 0.0
    for _ in range(3):
        n, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < _SECONDS / 3 or n == 0:
            run()
            wait()
            n += 1
        spent = time.perf_counter() - start
        best = max(best, n / spent)
    return best
