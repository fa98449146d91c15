"""How many prompts a device is likely to hold at once, and whether an error says that it did not.

A guess only: the engine halves a batch that does not fit.
"""

from __future__ import annotations

import torch

from vidqa.model.llava import VideoLlava

_CPU_BYTES = 128 << 20  # a run over thousands of clips must not grow; more rows gain little on a CPU
_GPU_SHARE = 0.5  # of what is free now; the rest is for activations
_MOST_ROWS = 64


def rows_that_fit(model: VideoLlava, n_positions: int) -> int:
    """Rows of a batch.

    Args:
        model: its device and cache size count.
        n_positions: prompt and answer of the longest row.

    Returns:
        At least 1.
    """
    free = _CPU_BYTES
    if model.device.type == "cuda":
        free = int(torch.cuda.mem_get_info(model.device)[0] * _GPU_SHARE)
    # Twice: the cache is copied when it grows and when rows are dropped.
    row = 2 * n_positions * _cache_bytes_per_position(model)
    return max(1, min(_MOST_ROWS, free // max(row, 1)))


def is_out_of_memory(error: RuntimeError) -> bool:
    """True for torch's errors of a full device; on the CPU they are told by their text only."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _cache_bytes_per_position(model: VideoLlava) -> int:
    c = model.llm.config
    n_heads = c.num_attention_heads
    n_kv = getattr(c, "num_key_value_heads", None) or n_heads
    size = getattr(c, "head_dim", None) or c.hidden_size // n_heads
    return 2 * c.num_hidden_layers * n_kv * size * model.dtype.itemsize
