"""What the hardware allows: how fast a device multiplies matrices and moves bytes, and what a model asks of it.

Knows tensors. Does not know clips or stages.

    beginnings and questions   2 operations a weight and token: the matrix rate limits them
    a step of answers          every weight and every stored key and value is read once: the copy rate limits it

Attention's own products are left out of the first (4 % of the weights' for 257 tokens of a ViT-L, 10 % for 2,000 tokens
of a 7B model), so the share of the limit that is said to be reached is on the low side.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vidqa.generate.running_batch import EngineStats
from vidqa.model.video_llava import VideoLlava

_SECONDS = 0.15  # of each measurement, after a first run that does not count
_SIDE = {"cpu": 1024, "cuda": 8192}
#: Copied in one go: more than caches hold. On a CPU it is no more, for a run must not need memory for being measured.
_BYTES = {"cpu": 64 << 20, "cuda": 2 << 30}


@dataclass(frozen=True)
class Limits:
    """What one device reached in products and copies that do nothing else."""

    device: str
    dtype: str
    matrix_per_s: float  # operations, a multiplication and an addition counted as two
    copy_bytes_per_s: float  # read and written bytes together


def measure(device: torch.device, dtype: torch.dtype) -> Limits:
    """Measure a device with what is free of it now.

    Args:
        device: of the model.
        dtype: of its weights.
    """
    n = _SIDE.get(device.type, 1024)
    a, b = (torch.rand(n, n, device=device, dtype=dtype) for _ in range(2))
    products = _per_second(lambda: a @ b, device)
    from_ = torch.zeros(_BYTES.get(device.type, 64 << 20), dtype=torch.uint8, device=device)
    to = torch.ones_like(from_)
    copies = _per_second(lambda: to.copy_(from_), device)
    return Limits(str(device), str(dtype).removeprefix("torch."), 2.0 * n**3 * products, 2.0 * len(from_) * copies)


def prefill_operations(model: VideoLlava, n_tokens: int) -> float:
    """Operations that so many tokens of prompts ask for."""
    return 2.0 * _n_weights(model) * n_tokens


def decode_bytes(model: VideoLlava, work: EngineStats) -> float:
    """Bytes that the steps of an engine had to read: all weights once a step, and the keys and values."""
    return float(work.decode_steps * _n_weights(model, with_head=True) * model.dtype.itemsize + work.decode_kv_bytes)


def _n_weights(model: VideoLlava, with_head: bool = False) -> int:
    """Weights that every token passes: the table of embeddings is looked up, and the head reads last tokens only."""
    tables = {id(model.llm.get_input_embeddings().weight)}
    head = model.llm.get_output_embeddings()
    n = 0
    if head is not None:
        tables.add(id(head.weight))
        n = head.weight.numel() if with_head else 0
    return n + sum(p.numel() for p in model.llm.parameters() if id(p) not in tables)


def _per_second(run: Callable[[], object], device: torch.device) -> float:
    """How often something runs in a second, by the best of three rounds."""

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
