"""KV pool: the KV cache of all running sequences, in buffers that are allocated once and reused.

    prefix_kv   [C * G, P, d] per layer: each prefix once, from position 0
    suffix_kv   [B, G, T, d] per layer: the suffix of each sequence. Suffixes that are prefilled together are padded on
                the left to one length, so a sequence's columns run from `first_column` to before `next_column`

Slots and prefixes are kept dense: when some are evicted, the last ones move into the gaps.

Letters: B batch slots, n sequences, S new tokens of a sequence, C capacity for prefixes, P capacity for positions of a
prefix, T capacity for columns of a suffix, G KV heads, d head_dim.

Scope: tensors, and which sequence has which prefix. Token ids and stopping are handled by the scheduler.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from vidqa.generate.attention.shared_prefix import KERNELS, PrefixSpan, SharedPrefix, SuffixSpan
from vidqa.generate.kv_cache.buffers import CacheCapacity, KVBuffers, to_device
from vidqa.model.llama.kernel_check import checked_kernels


class KVPool:
    """Buffers of one model on one device, with the `update` method that attention layers call on a cache.

    Args:
        capacity: size of the buffers; they are allocated for the first K and V, which determine heads, head_dim and
            dtype.
        n_layers: number of layers of the model.
        device: device of all buffers.
        static_shapes: run every step over whole buffers, with the numbers of sequences and prefixes rounded up, so that
            few different shapes occur and every tensor keeps its address, as CUDA graphs require.
    """

    def __init__(
        self, capacity: CacheCapacity, n_layers: int, device: torch.device, static_shapes: bool = False
    ) -> None:
        self.capacity, self.static_shapes, self.device = capacity, static_shapes, device
        # Steps of static shapes read positions that were never written.
        self._buffers = KVBuffers(capacity, n_layers, zeroed=static_shapes)
        self.prefix_kv, self.suffix_kv = self._buffers.prefix_kv, self._buffers.suffix_kv
        self.prefix_lengths: list[int] = []
        self._incoming = range(0)  # prefixes that are being prefilled
        self._n_finite: list[int] = []  # by prefix: number of leading positions with finite values
        self.prefix_of: list[int] = []  # by sequence: index of its prefix
        self.next_columns: list[int] = []  # by sequence: `next_column` on the host
        #: Sequences, prefixes, and sequences per prefix that a decode step runs over.
        self.step_shape = (0, 0, 0)
        self.is_dense = False  # see `PrefixSpan`; apart from values, steps of one shape differ in this only
        zeros = torch.zeros(capacity.n_slots, dtype=torch.int64, device=self.device)
        self.first_column = zeros.clone()  # where each sequence's suffix starts
        self.next_column = zeros.clone()  # where each sequence's next token is written
        self.positions = zeros.clone()  # position of that token in the whole sequence
        self._cell_of = zeros.clone()  # see `PrefixSpan`
        #: Inverse of `_cell_of`, and `prefix_lengths` on the device, for kernels.
        self._sequence_at = torch.full(
            (capacity.n_slots * capacity.n_prefixes,), -1, dtype=torch.int64, device=self.device
        )
        self._prefix_lengths = torch.zeros(capacity.n_prefixes, dtype=torch.int64, device=self.device)
        self._slot_indices = torch.arange(capacity.n_slots, device=self.device)
        longest = max(capacity.suffix_length, capacity.prefix_length)
        self._column_indices = torch.arange(longest, device=self.device)
        self._padding = torch.zeros(
            capacity.n_prefixes, 1, capacity.prefix_length, dtype=torch.bool, device=self.device
        )
        self._has_padding = False
        self._common_column: int | None = None  # where all sequences write, if it is the same column
        self._prefill_slots: slice | None = None  # slots that a prefill writes; None for a decode step

    def add_prefixes(self, lengths: Sequence[int]) -> list[int]:
        """Reserve prefixes of these lengths and return their indices; `store_prefixes` then receives their K and V."""
        self._incoming = range(len(self.prefix_lengths), len(self.prefix_lengths) + len(lengths))
        self.prefix_lengths += lengths
        self._n_finite += lengths
        return list(self._incoming)

    def store_prefixes(self, key: Tensor, value: Tensor, layer_idx: int) -> None:
        """Store K and V of the new prefixes in one layer, [*, G, longest, d].

        It is called layer by layer, so that no more than one layer is in memory in addition to the buffers.
        """
        if layer_idx == len(self.prefix_kv):
            self._buffers.add_layer(key, value)
        for row, prefix in enumerate(self._incoming):
            n = self.prefix_lengths[prefix]
            self._buffers.store_prefix(layer_idx, prefix, key[row, :, :n], value[row, :, :n])

    def keep(self, slots: Sequence[int], prefixes: Collection[int] = (), clear: bool = False) -> dict[int, int]:
        """Evict all other sequences, and the prefixes without a sequence.

        Args:
            slots: slots of the sequences to keep, in their new order (see `packed`).
            prefixes: prefixes to keep even without a sequence.
            clear: write zeros over what is evicted, because it has NaN or infinity: other sequences read it with weight
                0, but 0 times NaN is NaN.

        Returns:
            Old index -> new index of each prefix that is kept.
        """
        for slot in set(range(len(self.prefix_of))).difference(slots) if clear else ():
            self._buffers.clear_suffix(slot)
        for new, old in enumerate(slots):
            if old != new:
                self._buffers.move_suffix(old, new, self.next_columns[old])
        index = to_device(slots, self.device)
        for values in (self.first_column, self.next_column, self.positions):
            values[: len(slots)] = values[index]
        self.prefix_of = [self.prefix_of[old] for old in slots]
        self.next_columns = [self.next_columns[old] for old in slots]
        n_prefixes = len(self.prefix_lengths)
        order = packed([prefix in self.prefix_of or prefix in prefixes for prefix in range(n_prefixes)])
        for prefix in set(range(n_prefixes)).difference(order) if clear else ():
            self._buffers.clear_prefix(prefix, 0, self.prefix_lengths[prefix])
        for new, old in enumerate(order):
            if old != new:
                self._buffers.move_prefix(old, new, self.prefix_lengths[old])
        self.prefix_lengths = [self.prefix_lengths[old] for old in order]
        self._n_finite = list(self.prefix_lengths)
        moved = {old: new for new, old in enumerate(order)}
        self.prefix_of = [moved[prefix] for prefix in self.prefix_of]
        self._update_grid()
        return moved

    def add_sequences(self, prefixes: Sequence[int], n_tokens: Sequence[int]) -> tuple[Tensor, Tensor, SharedPrefix]:
        """Add sequences after the running ones and prepare the prefill of their suffixes.

        Args:
            prefixes: prefix of each new sequence; sequences of one prefix are consecutive.
            n_tokens: length of each suffix; shorter ones are padded on the left to the longest, S.

        Returns:
            Positions int64 [n, S], attention mask of the suffixes bool [n, 1, S, S], and the prefixes.
        """
        first, longest = len(self.prefix_of), max(n_tokens)
        new = slice(first, first + len(prefixes))
        lengths = to_device([self.prefix_lengths[prefix] for prefix in prefixes], self.device)
        pad = longest - to_device(n_tokens, self.device)
        self.first_column[new], self.next_column[new], self.positions[new] = pad, longest, lengths + longest - pad
        self._zero_padding()
        self.prefix_of += prefixes
        self.next_columns += [longest] * len(prefixes)
        self._update_grid()
        self._prefill_slots = new
        columns = self._column_indices[:longest]
        mask = (columns >= pad[:, None, None]) & (columns <= columns[:, None])
        spans = [
            PrefixSpan(prefix, 1, n, self.prefix_lengths[prefix], self._slot_indices[:n], None, is_dense=True)
            for prefix, n in Counter(prefixes).items()
        ]
        suffix = SuffixSpan(self.first_column[new], self.next_column[new], is_prefill=True)
        shared_prefix = SharedPrefix(self.prefix_kv, self.capacity.n_prefixes, tuple(spans), suffix)
        return lengths[:, None] + (columns - pad[:, None]).clamp(min=0), mask[:, None], shared_prefix

    def prepare_decode(self) -> tuple[Tensor, Tensor, SharedPrefix]:
        """Prepare one decode step of all sequences; call `advance` after it. Returns the same as `add_sequences`."""
        n, n_prefixes, n_columns = self.step_shape
        self._prefill_slots = None
        columns = self._column_indices[: self._n_suffix_columns()]
        mask = (columns >= self.first_column[:n, None]) & (columns <= self.next_column[:n, None])
        length = self._longest_prefix()
        padding = self._padding[:n_prefixes, :, :length] if self._has_padding or self.static_shapes else None
        span = PrefixSpan(
            0,
            n_prefixes,
            n_columns,
            length,
            self._cell_of[:n],
            padding,
            self.is_dense,
            None if self.is_dense else self._sequence_at[: n_prefixes * n_columns],
            None if padding is None else self._prefix_lengths[:n_prefixes],
        )
        # Sequences that were admitted together write the same column. A graph is captured once and must not rely on it.
        self._common_column = None if self.static_shapes or len(set(self.next_columns)) > 1 else self.next_columns[0]
        suffix = SuffixSpan(self.first_column[:n], self.next_column[:n], is_prefill=False)
        shared_prefix = SharedPrefix(self.prefix_kv, self.capacity.n_prefixes, (span,), suffix)
        return self.positions[:n, None], mask[:, None, None], shared_prefix

    def advance(self) -> None:
        """Advance to the next column after one token of every sequence was stored."""
        n = len(self.prefix_of)
        self.next_column[:n] += 1
        self.positions[:n] += 1
        self.next_columns = [column + 1 for column in self.next_columns]

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store new K and V of a layer, as layers of transformers call it.

        Args:
            key: keys of the new tokens, [n, G, S, d].
            value: values of the new tokens, [n, G, S, d].
            layer_idx: index of the layer.
            args: ignored.
            kwargs: ignored.

        Returns:
            K and V of the suffix columns that the attention mask covers, [n, G, columns, d].
        """
        kernels = checked_kernels(KERNELS, self.device, key.dtype, key.shape[-1])
        if kernels is not None and self._prefill_slots is None and self._common_column is None:
            keys, values = self.suffix_kv[layer_idx]
            kernels.store(keys, values, (key, value), self.next_column)
            n, n_columns = len(key), self._n_suffix_columns()
            return keys[:n, :, :n_columns], values[:n, :, :n_columns]
        out = []
        for buffer, new in zip(self.suffix_kv[layer_idx], (key, value), strict=True):
            if self._prefill_slots is not None:
                buffer[self._prefill_slots, :, : new.shape[2]] = new
                out.append(buffer[self._prefill_slots, :, : new.shape[2]])
            else:
                n = len(new)
                if self._common_column is not None:
                    buffer[:n, :, self._common_column] = new[:, :, 0]
                else:
                    buffer[self._slot_indices[:n], :, self.next_column[:n]] = new[:, :, 0]
                out.append(buffer[:n, :, : self._n_suffix_columns()])
        return out[0], out[1]

    def _n_suffix_columns(self) -> int:
        return self.capacity.suffix_length if self.static_shapes else max(self.next_columns) + 1

    def _longest_prefix(self) -> int:
        return self.capacity.prefix_length if self.static_shapes else max(self.prefix_lengths)

    def _zero_padding(self) -> None:
        """Write zeros past the end of shorter prefixes: hidden positions have weight 0, but 0 times NaN is NaN."""
        n = self._longest_prefix()
        for prefix, n_finite in enumerate(self._n_finite):
            if n_finite < n:
                self._buffers.clear_prefix(prefix, n_finite, n)
                self._n_finite[prefix] = n

    def _update_grid(self) -> None:
        """Compute the shape of the next decode steps and copy the grid of sequences and prefixes to the device."""
        n, counts = len(self.prefix_of), Counter(self.prefix_of)
        exact = (n, len(self.prefix_lengths), max(counts.values(), default=0))
        limits = (self.capacity.n_slots, self.capacity.n_prefixes, self.capacity.n_slots)
        self.step_shape = tuple(map(_rounded_up, exact, limits)) if self.static_shapes else exact  # type: ignore[assignment]
        _, n_prefixes, n_columns = self.step_shape
        seen: Counter[int] = Counter()
        cells = []
        for prefix in self.prefix_of:
            cells.append(prefix * n_columns + seen[prefix])
            seen[prefix] += 1
        self.is_dense = cells == list(range(n_prefixes * n_columns)) and n == self.step_shape[0]
        cells += [n_prefixes * n_columns] * (self.step_shape[0] - n)  # padding sequences
        self._cell_of[: len(cells)] = to_device(cells, self.device)
        sequences = [-1] * (n_prefixes * n_columns)
        for sequence, cell in enumerate(cells[:n]):
            sequences[cell] = sequence
        self._sequence_at[: len(sequences)] = to_device(sequences, self.device)
        for values in (self.first_column, self.next_column, self.positions):
            values[n:] = 0
        lengths = to_device(self.prefix_lengths + [0] * (n_prefixes - len(self.prefix_lengths)), self.device)
        self._prefix_lengths[:n_prefixes] = lengths
        positions = self._column_indices[: self.capacity.prefix_length]
        self._padding[:n_prefixes] = (positions >= lengths[:, None])[:, None]
        self._has_padding = len(set(self.prefix_lengths)) > 1


def packed(kept: Sequence[bool]) -> list[int]:
    """Return the indices that are kept, the last ones moved into the gaps: [True, False, True, True] -> [0, 3, 2]."""
    order = [i for i, keep in enumerate(kept) if keep]
    n = len(order)
    moving = [i for i in order if i >= n]
    return [i if kept[i] else moving.pop() for i in range(n)]


def _rounded_up(n: int, limit: int) -> int:
    """Round up to a power of two, at most `limit`, so that few different shapes occur."""
    return min(limit, 1 << max(0, n - 1).bit_length())
