"""Lines in, tokens out, one step after another: lines come and go while others are at work.

Knows a causal LLM and the pool. Does not know requests, text, memory limits or whose turn it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vidqa.generate.attention.cuda_graphs import StepGraphs
from vidqa.generate.kv_cache.buffers import CacheCapacity, numbers
from vidqa.generate.kv_cache.pool import KVPool
from vidqa.generate.llm_adapter import handing_on, keys_only, sharing, stored_in
from vidqa.model.video_llava import VideoLlava


@dataclass
class EngineStats:
    """What the LLM did, for rates and limits."""

    prefill_tokens: int = 0  # beginnings and questions
    prefill_s: float = 0.0
    decode_tokens: int = 0
    decode_steps: int = 0
    decode_s: float = 0.0
    decode_kv_bytes: int = 0  # keys and values that the steps had to read
    answers: int = 0

    def add(self, other: EngineStats) -> None:
        """Add what another engine did."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class RunningBatch:
    """A pool and a model that fill it and read it.

    Args:
        model: in evaluation mode.
        room: of the pool, which is made when the first beginning is there.
        static: see `KVPool`; on a CUDA device steps are then replayed as graphs where that proves right.
        work: counts what is done.
    """

    model: VideoLlava
    room: CacheCapacity
    static: bool = False
    work: EngineStats = field(default_factory=EngineStats)
    pool: KVPool | None = None
    logits: Tensor | None = None  # float32 [n, N] of the lines' next tokens
    _graphs: StepGraphs | None = None
    _since: float | None = None  # steps that run on the device are counted from here on

    @property
    def n_lines(self) -> int:
        """Lines at work."""
        return len(self.pool.clip_of) if self.pool else 0

    @property
    def n_clips(self) -> int:
        """Beginnings that are stored."""
        return len(self.pool.lengths) if self.pool else 0

    def begin(self, embeds: Sequence[Tensor]) -> list[int]:
        """Compute and store beginnings.

        Args:
            embeds: [P_i, L] each.

        Returns:
            The clip number of each.
        """
        lengths = [len(e) for e in embeds]
        with self._timed("prefill_s"), sharing(self.model.llm):
            # Padded on the right: causal attention keeps what comes later from being seen, so no mask is needed.
            padded = torch.nn.utils.rnn.pad_sequence(list(embeds), batch_first=True)
            if self.pool is None:
                self.pool = KVPool(self.room, self.model.llm.config.num_hidden_layers, padded.device, self.static)
                if self.static and padded.is_cuda:
                    self._graphs = StepGraphs()
            clips = self.pool.begin(lengths)
            positions = torch.arange(padded.shape[1], device=padded.device)[None].expand(len(embeds), -1)
            self.model.llm(
                inputs_embeds=padded,
                position_ids=positions,
                **stored_in(self.model.llm, handing_on(self.model.llm, self.pool.hold)),
                use_cache=True,
                **keys_only(self.model.llm),
            )
        self.work.prefill_tokens += sum(lengths)
        return clips

    def ask(self, clips: Sequence[int], embeds: Sequence[Tensor]) -> None:
        """Take in questions as new lines behind the others; their logits join `logits`.

        Args:
            clips: clip number of each, those of one clip side by side.
            embeds: [S_i, L] each, what follows the beginning.
        """
        assert self.pool is not None
        longest = max(len(e) for e in embeds)
        padded = embeds[0].new_zeros(len(embeds), longest, embeds[0].shape[1])
        for row, e in enumerate(embeds):
            padded[row, longest - len(e) :] = e
        with self._timed("prefill_s"):
            positions, mask, shared = self.pool.open(clips, [len(e) for e in embeds])
            new = self._run(mask, positions, shared, inputs_embeds=padded)
            self.logits = new if self.logits is None else torch.cat([self.logits, new])
        self.work.prefill_tokens += sum(len(e) for e in embeds)

    def step(self, ids: Tensor, counted: bool = True) -> None:
        """Take in one token a line, int64 [n], and learn what may follow; `counted` False leaves it to `count`."""
        assert self.pool is not None
        pool, n = self.pool, len(ids)
        if self._since is None:
            self._since = time.perf_counter()
        padded = torch.zeros(pool.shape[0], dtype=torch.int64, device=pool.device)
        padded[:n] = ids

        def run(ids: Tensor) -> Tensor:
            positions, mask, shared = pool.step()
            return self._run(mask, positions, shared, input_ids=ids[:, None])

        logits = self._graphs.run((pool.shape, pool.in_order), run, padded) if self._graphs else run(padded)
        self.logits = logits[:n]
        pool.advance()
        if not self.static:
            self._settle()
        if counted:
            self.count(range(n))

    def count(self, lines: Sequence[int]) -> None:
        """Count the last step as work for some lines."""
        assert self.pool is not None
        pool, work = self.pool, self.work
        work.decode_tokens += len(lines)
        work.decode_steps += bool(lines)
        begun = sum(pool.lengths[clip] for clip in {pool.clip_of[i] for i in lines})
        work.decode_kv_bytes += (begun + sum(pool.ends[i] for i in lines)) * self.bytes_per_position

    def look(self, picked: Tensor) -> Callable[[], list[int]]:
        """Have picked tokens copied, int64 [n]; the function waits for them, not for what is asked for later."""
        if not picked.is_cuda:
            return picked.tolist
        copied = torch.empty(picked.shape, dtype=picked.dtype, pin_memory=True)
        copied.copy_(picked, non_blocking=True)
        there = torch.cuda.Event()
        there.record()

        def tokens() -> list[int]:
            there.synchronize()
            self._count(goes_on=True)
            numbers: list[int] = copied.tolist()
            return numbers

        return tokens

    def keep(self, lines: Sequence[int], clips: Collection[int] = ()) -> dict[int, int]:
        """See `Pool.keep`; the logits go with the lines."""
        assert self.pool is not None
        if self.logits is not None:
            self.logits = self.logits[numbers(lines, self.logits.device)]
        return self.pool.keep(lines, clips)

    @property
    def bytes_per_position(self) -> int:
        """Of keys and values in all layers."""
        if self.pool is None:
            return 0
        return sum(t.shape[1] * t.shape[3] * t.element_size() for pair in self.pool.own for t in pair)

    def _run(self, mask: Tensor, positions: Tensor, shared: Any, **inputs: Tensor) -> Tensor:
        with sharing(self.model.llm):
            out = self.model.llm(
                **inputs,
                attention_mask=mask,
                position_ids=positions,
                **stored_in(self.model.llm, self.pool),
                use_cache=True,
                logits_to_keep=1,
                shared=shared,
            )
        logits: Tensor = out.logits[:, -1].float()
        return logits

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        self._settle()
        start = time.perf_counter()
        try:
            yield
        finally:
            self._wait()
            setattr(self.work, name, getattr(self.work, name) + time.perf_counter() - start)

    def _settle(self) -> None:
        """Wait for the steps that run, and count their time."""
        if self._since is not None:
            self._wait()
            self._count(goes_on=False)

    def _count(self, goes_on: bool) -> None:
        if self._since is not None:
            now = time.perf_counter()
            self.work.decode_s += now - self._since
            self._since = now if goes_on else None

    def _wait(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
