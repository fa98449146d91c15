"""KV cache capacity: how many sequences and prefixes are likely to fit into the memory of a device.

The numbers are estimates from the memory that is free now; the engine halves a batch that does not fit.
"""

from __future__ import annotations

import torch

from vidqa.common.devices import RELEASE_MEMORY, available_main_memory
from vidqa.generate.kv_cache.buffers import CacheCapacity
from vidqa.model.video_llava import VideoLlava

_CPU_SHARE = 0.25  # share of the available memory; decoders, encoder and the page cache need the rest
_CPU_MAX_BYTES = 4 << 30
_CPU_DEFAULT_BYTES = 1 << 30  # where the system does not report available memory
_GPU_SHARE = 0.7  # share of the free memory; the rest is for activations
#: More slots gain little: decode steps are then limited by matmuls (a GPU does about this many operations per byte).
_MAX_SLOTS = {"cpu": 32, "cuda": 256}
#: Tokens of prefixes that are prefilled together: enough to keep a device busy.
_PREFILL_TOKENS = {"cpu": 1024, "cuda": 8192}
#: Buffer lengths are multiples of this, so that a slightly longer prompt does not require new buffers.
_LENGTH_STEP = 64


def release_memory() -> None:
    """Release the CUDA memory that torch caches; otherwise onnxruntime cannot use it."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


RELEASE_MEMORY.append(release_memory)


def max_slots(model: VideoLlava) -> int:
    """Return the number of batch slots beyond which the model's device gains little, whatever its memory."""
    return _MAX_SLOTS.get(model.device.type, 32)


def prefill_tokens(model: VideoLlava) -> int:
    """Return how many prefix tokens to prefill together."""
    return _PREFILL_TOKENS.get(model.device.type, 1024)


def plan_capacity(
    model: VideoLlava, prefix_length: int, suffix_length: int, n_questions: int, n_slots: int | None = None
) -> CacheCapacity:
    """Choose a capacity that is likely to fit into memory.

    Args:
        model: determines the device and the size of the KV cache per position.
        prefix_length: longest waiting prefix, in positions.
        suffix_length: longest suffix with its answer, in positions.
        n_questions: largest number of waiting questions with the same prefix.
        n_slots: fixed number of batch slots; None is as many as fit.

    Returns:
        At least one slot and one prefix.
    """
    prefix_length, suffix_length = _round_up(prefix_length), _round_up(suffix_length)
    position = _kv_bytes_per_position(model)
    slots = n_slots or max_slots(model)
    free = free_bytes(model.device)
    prefixes = free // position // (prefix_length + min(n_questions, slots) * suffix_length)
    if prefixes < 1:
        fit = (free // position - prefix_length) // suffix_length
        return CacheCapacity(n_slots or max(1, min(slots, fit)), 1, prefix_length, suffix_length)
    prefixes = min(prefixes, slots)
    return CacheCapacity(n_slots or min(slots, prefixes * n_questions), prefixes, prefix_length, suffix_length)


def unshared_batch_size(model: VideoLlava, n_positions: int) -> int:
    """Choose the batch size of the fallback engine, whose sequences share no prefix.

    Args:
        model: determines the device and the size of the KV cache per position.
        n_positions: length of the longest sequence, including its answer.

    Returns:
        At least 1.
    """
    # Twice: the cache is copied when it grows and when sequences are evicted.
    sequence = 2 * n_positions * _kv_bytes_per_position(model)
    return max(1, min(max_slots(model), free_bytes(model.device) // max(sequence, 1)))


def free_bytes(device: torch.device) -> int:
    """Return how many bytes the KV cache may use on a device at present."""
    if device.type == "cuda":
        # Memory that torch caches without using it is available to the buffers, for example that of an earlier batch.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int((torch.cuda.mem_get_info(device)[0] + cached) * _GPU_SHARE)
    available = available_main_memory()
    if available is None:
        return _CPU_DEFAULT_BYTES
    return min(_CPU_MAX_BYTES, int(available * _CPU_SHARE))


def _kv_bytes_per_position(model: VideoLlava) -> int:
    c = model.llm.config
    n_heads = c.num_attention_heads
    n_kv_heads = getattr(c, "num_key_value_heads", None) or n_heads
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // n_heads
    return 2 * c.num_hidden_layers * n_kv_heads * head_dim * model.dtype.itemsize


def _round_up(n: int) -> int:
    return -(-n // _LENGTH_STEP) * _LENGTH_STEP
