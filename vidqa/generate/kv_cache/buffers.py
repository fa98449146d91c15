"""KV cache buffers: tensors for all layers that are allocated once and reused.

Letters as in `pool`.

Scope: layers, rows and columns of tensors. Which sequence owns which row is tracked by `pool`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CacheCapacity:
    """Capacity of a KV cache."""

    n_slots: int  # B, batch slots
    n_prefixes: int  # C
    prefix_length: int  # P, positions of the longest prefix
    suffix_length: int  # T, positions of the longest suffix with its answer


class KVBuffers:
    """K and V of prefixes and suffixes, allocated layer by layer during the first prefill.

    All layers are in one block, so that a sequence or a prefix moves with one copy rather than two per layer.

    Args:
        capacity: sizes of the buffers.
        n_layers: number of layers of the model.
        zeroed: initialize the prefix buffers with zeros, for steps that read positions that were never written.
    """

    def __init__(self, capacity: CacheCapacity, n_layers: int, zeroed: bool) -> None:
        self.prefix_kv: list[tuple[Tensor, Tensor]] = []  # [C * G, P, d] per layer
        self.suffix_kv: list[tuple[Tensor, Tensor]] = []  # [B, G, T, d] per layer
        self._capacity, self._n_layers, self._zeroed = capacity, n_layers, zeroed
        #: The same tensors with a leading layer dimension: keys, values, then layers whose shape differs from layer 0.
        self._prefix_blocks: list[Tensor] = []
        self._suffix_blocks: list[Tensor] = []

    def add_layer(self, *like: Tensor) -> None:
        """Allocate the next layer, with the heads, head_dim and dtype of these K and V, [n, G, S, d]."""
        layer, capacity = len(self.prefix_kv), self._capacity
        prefixes, suffixes = [], []
        for role, one in enumerate(like):
            _, n_kv_heads, _, head_dim = one.shape
            shape = (capacity.n_prefixes * n_kv_heads, capacity.prefix_length, head_dim)
            at, row = role, layer
            if not layer or self._prefix_blocks[role].shape[1:] != shape:  # layers of most models have equal shapes
                n = 1 if layer else self._n_layers
                # On a CPU the system allocates a page when it is first written, so unused capacity costs nothing.
                new = one.new_zeros if self._zeroed else one.new_empty
                self._prefix_blocks.append(new(n, *shape))
                self._suffix_blocks.append(
                    one.new_zeros(n, capacity.n_slots, n_kv_heads, capacity.suffix_length, head_dim)
                )
                at, row = -1, 0
            prefixes.append(self._prefix_blocks[at][row])
            suffixes.append(self._suffix_blocks[at][row])
        self.prefix_kv.append((prefixes[0], prefixes[1]))
        self.suffix_kv.append((suffixes[0], suffixes[1]))

    def store_prefix(self, layer: int, prefix: int, key: Tensor, value: Tensor) -> None:
        """Write K and V of a prefix, [G, length, d], into a layer."""
        for buffer, new in zip(self.prefix_kv[layer], (key, value), strict=True):
            n_kv_heads, n, _ = new.shape
            buffer[prefix * n_kv_heads : (prefix + 1) * n_kv_heads, :n] = new

    def move_suffix(self, old: int, new: int, n: int) -> None:
        """Copy the first `n` columns of one slot's suffix to another slot."""
        for buffer in self._suffix_blocks:
            buffer[:, new, :, :n] = buffer[:, old, :, :n]

    def move_prefix(self, old: int, new: int, n: int) -> None:
        """Copy the first `n` positions of one prefix to another."""
        for buffer in self._prefix_blocks:
            buffer[:, self._rows(buffer, new), :n] = buffer[:, self._rows(buffer, old), :n]

    def clear_suffix(self, slot: int) -> None:
        """Write zeros into one slot's suffix."""
        for buffer in self._suffix_blocks:
            buffer[:, slot] = 0

    def clear_prefix(self, prefix: int, start: int, end: int) -> None:
        """Write zeros into the positions from `start` to `end` of a prefix."""
        for buffer in self._prefix_blocks:
            buffer[:, self._rows(buffer, prefix), start:end] = 0

    def _rows(self, buffer: Tensor, prefix: int) -> slice:
        n_kv_heads = buffer.shape[1] // self._capacity.n_prefixes
        return slice(prefix * n_kv_heads, (prefix + 1) * n_kv_heads)


def to_device(values: Sequence[float], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """Copy numbers to a device as a tensor [n], without waiting for a GPU's running steps."""
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)
