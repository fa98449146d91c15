"""The running batch: prefill and decode steps of the LLM over a KV pool, while sequences are added and evicted.

Letters: n running sequences, P_i and S_i tokens of one prefix or suffix, L LLM hidden size, N vocabulary size.

Scope: tensors and slots. Which request runs when is decided by the scheduler.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidqa.generate.attention.cuda_graphs import StepGraphs
from vidqa.generate.attention.shared_prefix import SharedPrefix
from vidqa.generate.kv_cache.buffers import CacheCapacity, to_device
from vidqa.generate.kv_cache.pool import KVPool
from vidqa.generate.llm_adapter import cache_argument, forwarding_cache, kv_only_arguments, shared_prefix_enabled
from vidqa.model.video_llava import VideoLlava


@dataclass
class EngineStats:
    """Work done by the LLM, for throughput and roofline."""

    prefill_tokens: int = 0  # in prefixes and suffixes
    prefill_s: float = 0.0
    decode_tokens: int = 0
    decode_steps: int = 0
    decode_s: float = 0.0
    decode_kv_bytes: int = 0  # size of the KV cache that the decode steps had to read
    answers: int = 0

    def add(self, other: EngineStats) -> None:
        """Add the work of another engine."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class RunningBatch:
    """A KV pool and the model that fills and reads it.

    Args:
        model: the model, in evaluation mode.
        capacity: capacity of the pool.
        static_shapes: see `KVPool`; on a CUDA device decode steps are then replayed as CUDA graphs.
        stats: updated with the work done.
        pool: created by the first prefill.
        logits: float32 [n, N] of the sequences' next tokens.
        has_non_finite: whether K and V of some sequence had NaN or infinity.
    """

    model: VideoLlava
    capacity: CacheCapacity
    static_shapes: bool = False
    stats: EngineStats = field(default_factory=EngineStats)
    pool: KVPool | None = None
    logits: Tensor | None = None
    has_non_finite: bool = False
    _graphs: StepGraphs | None = None
    _decoding_since: float | None = None  # start of the decode time that is not in `stats` yet

    @property
    def n_prefixes(self) -> int:
        """Prefixes in the KV cache."""
        return len(self.pool.prefix_lengths) if self.pool else 0

    def prefill_prefixes(self, embeds: Sequence[Tensor]) -> list[int]:
        """Compute the KV cache of new prefixes.

        Args:
            embeds: embedded prefixes, [P_i, L] each.

        Returns:
            The index of each prefix in the pool.
        """
        lengths = [len(e) for e in embeds]
        with self._timed("prefill_s"), shared_prefix_enabled(self.model.llm):
            # Right padding: in causal attention no token attends to later ones, so no mask is needed.
            padded = torch.nn.utils.rnn.pad_sequence(list(embeds), batch_first=True)
            if self.pool is None:
                n_layers = self.model.llm.config.num_hidden_layers
                self.pool = KVPool(self.capacity, n_layers, padded.device, self.static_shapes)
                if self.static_shapes and padded.is_cuda:
                    self._graphs = StepGraphs()
            prefixes = self.pool.add_prefixes(lengths)
            positions = torch.arange(padded.shape[1], device=padded.device)[None].expand(len(embeds), -1)
            self.model.llm(
                inputs_embeds=padded,
                position_ids=positions,
                **cache_argument(self.model.llm, forwarding_cache(self.model.llm, self.pool.store_prefixes)),
                use_cache=True,
                **kv_only_arguments(self.model.llm),
            )
        self.stats.prefill_tokens += sum(lengths)
        return prefixes

    def prefill_suffixes(self, prefixes: Sequence[int], embeds: Sequence[Tensor]) -> None:
        """Add sequences after the running ones and prefill their suffixes; their logits are appended to `logits`.

        Args:
            prefixes: prefix of each sequence; sequences of one prefix are consecutive.
            embeds: embedded suffixes, [S_i, L] each.
        """
        assert self.pool is not None
        longest = max(len(e) for e in embeds)
        padded = embeds[0].new_zeros(len(embeds), longest, embeds[0].shape[1])
        for row, e in enumerate(embeds):
            padded[row, longest - len(e) :] = e
        with self._timed("prefill_s"):
            positions, mask, shared_prefix = self.pool.add_sequences(prefixes, [len(e) for e in embeds])
            new = self._forward(mask, positions, shared_prefix, inputs_embeds=padded)
            self.logits = new if self.logits is None else torch.cat([self.logits, new])
        self.stats.prefill_tokens += sum(len(e) for e in embeds)

    def decode_step(self, ids: Tensor, count: bool = True) -> None:
        """Append one token to every sequence and compute the logits of the next.

        Args:
            ids: token ids, int64 [n].
            count: add the step to `stats`; False leaves that to `count_step`.
        """
        assert self.pool is not None
        pool, n = self.pool, len(ids)
        if self._decoding_since is None:
            self._decoding_since = time.perf_counter()
        padded = torch.zeros(pool.step_shape[0], dtype=torch.int64, device=pool.device)
        padded[:n] = ids

        def run(ids: Tensor) -> Tensor:
            positions, mask, shared_prefix = pool.prepare_decode()
            return self._forward(mask, positions, shared_prefix, input_ids=ids[:, None])

        logits = self._graphs.run((pool.step_shape, pool.is_dense), run, padded) if self._graphs else run(padded)
        self.logits = logits[:n]
        pool.advance()
        if not self.static_shapes:
            self._finish_decoding()
        if count:
            self.count_step(range(n))

    def count_step(self, slots: Sequence[int]) -> None:
        """Add the last decode step to `stats`, as work for these slots."""
        assert self.pool is not None
        pool, stats = self.pool, self.stats
        stats.decode_tokens += len(slots)
        stats.decode_steps += bool(slots)
        prefix_positions = sum(pool.prefix_lengths[prefix] for prefix in {pool.prefix_of[i] for i in slots})
        suffix_positions = sum(pool.next_columns[i] for i in slots)
        stats.decode_kv_bytes += (prefix_positions + suffix_positions) * self.kv_bytes_per_position

    def to_host(self, ids: Tensor) -> Callable[[], list[int]]:
        """Start copying token ids int64 [n] to the host.

        Returns:
            A function that waits for the copy, but not for work that is queued on the device afterwards.
        """
        if not ids.is_cuda:
            return ids.tolist
        copied = torch.empty(ids.shape, dtype=ids.dtype, pin_memory=True)
        copied.copy_(ids, non_blocking=True)
        done = torch.cuda.Event()
        done.record()

        def values() -> list[int]:
            done.synchronize()
            self._add_decode_time(still_decoding=True)
            on_host: list[int] = copied.tolist()
            return on_host

        return values

    def keep(self, slots: Sequence[int], prefixes: Collection[int] = ()) -> dict[int, int]:
        """Evict all other sequences, with their logits; see `KVPool.keep`."""
        assert self.pool is not None
        if self.logits is not None:
            self.logits = self.logits[to_device(slots, self.logits.device)]
        return self.pool.keep(slots, prefixes, clear=self.has_non_finite)

    @property
    def kv_bytes_per_position(self) -> int:
        """Size of the KV cache of one position in all layers, in bytes; 0 before the first prefill."""
        if self.pool is None:
            return 0
        return sum(t.shape[1] * t.shape[3] * t.element_size() for pair in self.pool.suffix_kv for t in pair)

    def _forward(self, mask: Tensor, positions: Tensor, shared_prefix: SharedPrefix, **inputs: Tensor) -> Tensor:
        with shared_prefix_enabled(self.model.llm):
            out = self.model.llm(
                **inputs,
                attention_mask=mask,
                position_ids=positions,
                **cache_argument(self.model.llm, self.pool),
                use_cache=True,
                logits_to_keep=1,
                shared_prefix=shared_prefix,
            )
        logits: Tensor = out.logits[:, -1].float()
        return logits

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        self._finish_decoding()
        start = time.perf_counter()
        try:
            yield
        finally:
            self._synchronize()
            setattr(self.stats, name, getattr(self.stats, name) + time.perf_counter() - start)

    def _finish_decoding(self) -> None:
        """Wait for running decode steps and count their time."""
        if self._decoding_since is not None:
            self._synchronize()
            self._add_decode_time(still_decoding=False)

    def _add_decode_time(self, still_decoding: bool) -> None:
        if self._decoding_since is not None:
            now = time.perf_counter()
            self.stats.decode_s += now - self._decoding_since
            self._decoding_since = now if still_decoding else None

    def _synchronize(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
