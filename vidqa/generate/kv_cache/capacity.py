"""How many prompts a device is likely to hold at once, and whether an error says that it did not.

A guess from what is free now; the engine halves a batch that does not fit.
"""

from __future__ import annotations

from pathlib import Path

import torch

from vidqa.common.devices import RELEASE_MEMORY
from vidqa.generate.kv_cache.buffers import CacheCapacity
from vidqa.model.video_llava import VideoLlava

_CPU_SHARE = 0.25  # of what is available: decoders, encoder and the disk cache of the system want the rest
_CPU_MOST_BYTES = 4 << 30
_CPU_BYTES = 1 << 30  # where the system does not say what is available
_GPU_SHARE = 0.7  # of what is free now; the rest is for activations
#: More lines gain little once the weights are read for so many at a time (a GPU does about as many operations a byte).
_MOST_LINES = {"cpu": 32, "cuda": 256}
#: Tokens of beginnings that are computed together: enough to keep a device busy.
_PREFILL_TOKENS = {"cpu": 1024, "cuda": 8192}
#: Buffers are sized in steps of so many positions, so that a slightly longer prompt does not ask for new ones.
_STEP = 64


def give_back() -> None:
    """Have torch give back memory of CUDA devices that it holds for later: onnxruntime cannot take it from there."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


RELEASE_MEMORY.append(give_back)


def most_lines(model: VideoLlava) -> int:
    """Lines that are worth having at once on the model's device, whatever the memory."""
    return _MOST_LINES.get(model.device.type, 32)


def prefill_tokens(model: VideoLlava) -> int:
    """Tokens of beginnings to compute together."""
    return _PREFILL_TOKENS.get(model.device.type, 1024)


def room_for(model: VideoLlava, n_prefix: int, n_own: int, n_questions: int, limit: int | None = None) -> CacheCapacity:
    """A room that the memory is likely to hold.

    Args:
        model: its device and the size of its keys and values count.
        n_prefix: longest beginning that waits, in positions.
        n_own: longest question with its answer.
        n_questions: most questions of one clip.
        limit: most lines; None takes what the memory holds.

    Returns:
        At least one line and one clip.
    """
    n_prefix, n_own = _up(n_prefix), _up(n_own)
    position = _cache_bytes_per_position(model)
    lines = limit or most_lines(model)
    free = free_bytes(model.device)
    clips = free // position // (n_prefix + min(n_questions, lines) * n_own)
    if clips < 1:
        fit = (free // position - n_prefix) // n_own
        return CacheCapacity(limit or max(1, min(lines, fit)), 1, n_prefix, n_own)
    clips = min(clips, lines)
    return CacheCapacity(limit or min(lines, clips * n_questions), clips, n_prefix, n_own)


def rows_that_fit(model: VideoLlava, n_positions: int) -> int:
    """Rows of a batch that shares nothing (see `decode`).

    Args:
        model: its device and cache size count.
        n_positions: prompt and answer of the longest row.

    Returns:
        At least 1.
    """
    # Twice: the cache is copied when it grows and when rows are dropped.
    row = 2 * n_positions * _cache_bytes_per_position(model)
    return max(1, min(most_lines(model), free_bytes(model.device) // max(row, 1)))


def free_bytes(device: torch.device) -> int:
    """What keys and values may take on a device now."""
    if device.type == "cuda":
        # What torch holds without using it is free for the buffers, too: those of an earlier batch, say.
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int((torch.cuda.mem_get_info(device)[0] + held) * _GPU_SHARE)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError, IndexError):  # another system
        return _CPU_BYTES
    return min(_CPU_MOST_BYTES, int(available * _CPU_SHARE))


def _cache_bytes_per_position(model: VideoLlava) -> int:
    c = model.llm.config
    n_heads = c.num_attention_heads
    n_kv = getattr(c, "num_key_value_heads", None) or n_heads
    size = getattr(c, "head_dim", None) or c.hidden_size // n_heads
    return 2 * c.num_hidden_layers * n_kv * size * model.dtype.itemsize


def _up(n: int) -> int:
    return -(-n // _STEP) * _STEP
