"""Continuous batching: admits waiting requests into free batch slots and evicts finished sequences.

Requests whose prefix is already in the KV cache are admitted first, then the rest in arrival order.

Scope: token ids only; text and error handling live in engine.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vidqa.generate.kv_cache.buffers import to_device
from vidqa.generate.kv_cache.capacity import max_slots, plan_capacity, prefill_tokens
from vidqa.generate.kv_cache.pool import packed
from vidqa.generate.requests import Continuation, GenerationSettings, PlannedRequest, StoppingCriteria
from vidqa.generate.running_batch import EngineStats, RunningBatch
from vidqa.generate.sampling import RandomStream, pick_greedy, pick_sampled
from vidqa.model.video_llava import VideoLlava
from vidqa.records import Prompt

#: After running out of memory, the number of slots is doubled again once this many full batches have been answered.
_GROW_AFTER = 16


@dataclass
class _Sequence:
    """A running sequence and its sampling state."""

    planned: PlannedRequest
    random_stream: RandomStream | None
    output: Continuation = field(default_factory=Continuation)


@dataclass
class _PrefixGroup:
    """Requests with the same prefix: those that wait, and the index of the prefix in the KV pool."""

    waiting: deque[PlannedRequest] = field(default_factory=deque)
    prefix: int | None = None  # None: not in the pool


class Scheduler:
    """Queue of waiting requests and the batch of running sequences.

    Args:
        model: the model, in evaluation mode.
        settings: decoding settings.
        criteria: determine when a sequence is finished.
        n_slots: batch slots; None is as many as are likely to fit into memory.
        static_shapes: see `KVPool`.
    """

    def __init__(
        self,
        model: VideoLlava,
        settings: GenerationSettings,
        criteria: StoppingCriteria,
        n_slots: int | None,
        static_shapes: bool,
    ) -> None:
        self.stats = EngineStats()
        self.n_waiting = 0
        self._model, self._settings, self._criteria = model, settings, criteria
        self._requested_slots, self._static_shapes = n_slots, static_shapes
        self._n_slots = n_slots  # fewer than requested after running out of memory
        self._n_since_oom = 0  # requests finished since then
        self._groups: dict[Hashable, _PrefixGroup] = {}  # in arrival order
        self._running: list[_Sequence] = []  # by slot
        self._admitting: list[PlannedRequest] = []  # taken from the queue, not running yet
        self._finished: list[tuple[PlannedRequest, Continuation]] = []  # not lost if a later part of the step fails
        self._batch: RunningBatch | None = None

    @property
    def busy(self) -> bool:
        """True while there are requests to finish or to return."""
        return bool(self.n_waiting or self._running or self._finished)

    def submit(self, planned: PlannedRequest) -> None:
        """Append a request to the queue."""
        self._groups.setdefault(planned.prefix_key, _PrefixGroup()).waiting.append(planned)
        self.n_waiting += 1

    def drop_waiting(self) -> None:
        """Empty the queue."""
        for group in self._groups.values():
            group.waiting.clear()
        self.n_waiting = 0
        self._drop_empty_groups()

    @torch.inference_mode()
    def step(self) -> list[tuple[PlannedRequest, Continuation]]:
        """Refill free slots from the queue, then run one decode step for every active slot.

        Returns:
            The requests that finished, with their tokens.

        Raises:
            torch.OutOfMemoryError: call `back_off`, then continue.
        """
        if self.n_waiting or self._running:
            self._step()
        finished, self._finished = self._finished, []
        return finished

    def _step(self) -> None:
        self._admit()
        batch = self._batch
        assert batch is not None and batch.logits is not None
        picked = self._choose(batch.logits)
        tokens = batch.to_host(picked)
        if batch.static_shapes:
            # The device runs the next step while the host processes these tokens. For a finished sequence that step is
            # wasted.
            batch.decode_step(picked.clamp(min=0), count=False)
        for sequence, token in zip(self._running, tokens(), strict=True):
            sequence.output.append(token, self._criteria, sequence.planned.max_new_tokens)
        running = [sequence.output.finish_reason is None for sequence in self._running]
        if batch.static_shapes:
            batch.count_step([slot for slot, still_running in enumerate(running) if still_running])
        finished = [(s.planned, s.output) for s in self._running if s.output.finish_reason is not None]
        self._finished += finished
        self.stats.answers += len(finished)
        self._n_since_oom += len(finished)
        if finished:
            order = packed(running)
            picked = picked[to_device(order, picked.device)]
            self._evict_all_but(order, batch)
        if self._running and not batch.static_shapes:
            batch.decode_step(picked)

    def back_off(self) -> PlannedRequest | None:
        """Recover from running out of memory: requeue the running requests and halve the number of slots.

        Finished requests stay finished.

        Returns:
            The request that does not fit even alone in buffers of its own size; it is dropped. None if there is none.
        """
        requeued = [*(sequence.planned for sequence in self._running), *self._admitting]
        had = self._batch.capacity if self._batch else None
        self._running, self._admitting, self._batch = [], [], None
        for group in self._groups.values():
            group.prefix = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._n_slots, self._n_since_oom = max(1, len(requeued) // 2), 0
        was_alone = len(requeued) == 1 and had is not None and had.n_slots == had.n_prefixes == 1
        dropped = requeued.pop() if was_alone else None
        for planned in reversed(requeued):
            self._groups.setdefault(planned.prefix_key, _PrefixGroup()).waiting.appendleft(planned)
        self.n_waiting += len(requeued)
        self._drop_empty_groups()
        return dropped

    def _choose(self, logits: Tensor) -> Tensor:
        if self._settings.temperature == 0:
            return pick_greedy(logits)
        samples = [s.random_stream.next() if s.random_stream else 0.0 for s in self._running]
        random_samples = to_device(samples, logits.device, torch.float64)
        return pick_sampled(logits, self._settings.temperature, self._settings.top_p, random_samples)

    def _evict_all_but(self, slots: Sequence[int], batch: RunningBatch) -> None:
        """Evict all other sequences; prefixes stay in the KV cache while requests wait for them."""
        batch.has_non_finite |= any(sequence.output.finish_reason == "not_finite" for sequence in self._running)
        self._running = [self._running[slot] for slot in slots]
        needed = {group.prefix for group in self._groups.values() if group.waiting and group.prefix is not None}
        moved = batch.keep(slots, needed)
        for group in self._groups.values():
            group.prefix = None if group.prefix is None else moved.get(group.prefix)
        self._drop_empty_groups()

    def _drop_empty_groups(self) -> None:
        running = {sequence.planned.prefix_key for sequence in self._running}
        self._groups = {key: group for key, group in self._groups.items() if group.waiting or key in running}

    def _admit(self) -> None:
        """Admit waiting requests once an eighth of the slots is free: prefilling suffixes together is faster."""
        if not self.n_waiting or (self._running and self._may_grow()):  # let the batch drain, then enlarge it
            return
        batch = self._ready_batch()
        free = batch.capacity.n_slots - len(self._running)
        if self._running and free < max(1, batch.capacity.n_slots // 8):
            return
        admitted: list[tuple[_PrefixGroup, list[PlannedRequest]]] = []
        n_prefixes = batch.n_prefixes
        for group in sorted(self._groups.values(), key=lambda g: g.prefix is None):  # stable: arrival order otherwise
            if not group.waiting:
                continue
            is_new = group.prefix is None
            if not free or (is_new and n_prefixes == batch.capacity.n_prefixes) or not _fits(group, batch):
                break
            n_prefixes += is_new
            requests = [group.waiting.popleft() for _ in range(min(free, len(group.waiting)))]
            free -= len(requests)
            self._admitting += requests
            self.n_waiting -= len(requests)
            admitted.append((group, requests))
        if admitted:
            self._prefill(batch, admitted)

    def _prefill(self, batch: RunningBatch, admitted: Sequence[tuple[_PrefixGroup, list[PlannedRequest]]]) -> None:
        """Prefill the prefixes that are not in the KV cache, then the suffixes."""
        new = [(group, requests[0]) for group, requests in admitted if group.prefix is None]
        while new:
            n, longest = 1, new[0][1].n_prefix
            while n < len(new) and (n + 1) * max(longest, new[n][1].n_prefix) <= prefill_tokens(self._model):
                longest = max(longest, new[n][1].n_prefix)
                n += 1
            visual = self._model.visual_tokens([f for _, planned in new[:n] for f in planned.request.features])
            embeds = []
            for _, planned in new[:n]:
                own_visual = [visual.pop(0) for _ in planned.request.features]
                embeds.append(self._model.embed_prompt(planned.prefix, own_visual))
            for (group, _), prefix in zip(new[:n], batch.prefill_prefixes(embeds), strict=True):
                group.prefix = prefix
            new = new[n:]
        pairs = [(group.prefix, planned) for group, requests in admitted for planned in requests]
        prefixes = [prefix for prefix, _ in pairs if prefix is not None]
        batch.prefill_suffixes(prefixes, self._embed_suffixes([planned for _, planned in pairs]))
        self._running += [_Sequence(planned, planned.random_stream(self._settings)) for _, planned in pairs]
        self._admitting = []

    def _embed_suffixes(self, requests: Sequence[PlannedRequest]) -> list[Tensor]:
        """Embed suffixes, [S_i, L] each, with one lookup: each lookup would synchronize with a GPU."""
        suffixes = [planned.suffix for planned in requests]
        joined = Prompt(np.concatenate([s.ids for s in suffixes]), np.concatenate([s.slots for s in suffixes]))
        return list(self._model.embed_prompt(joined).split([len(s.ids) for s in suffixes]))

    def _may_grow(self) -> bool:
        """Return True if a batch that ran out of memory may grow again: the device may have been shared then."""
        slots = self._n_slots
        return slots is not None and slots != self._requested_slots and self._n_since_oom >= _GROW_AFTER * slots

    def _ready_batch(self) -> RunningBatch:
        """Return the batch; a new one if no sequence is running and the next request does not fit or it may grow."""
        groups = [group for group in self._groups.values() if group.waiting]
        first = min(groups, key=lambda g: g.prefix is None)
        grows = not self._running and self._may_grow()
        if grows and self._n_slots is not None:
            most = self._requested_slots or max_slots(self._model)
            self._n_slots = 2 * self._n_slots if 2 * self._n_slots < most else self._requested_slots
            self._n_since_oom = 0
        if self._batch is None or grows or (not self._running and not _fits(first, self._batch)):
            waiting = [planned for group in groups for planned in group.waiting]
            prefix_length = max(planned.n_prefix for planned in waiting)
            suffix_length = max(planned.max_suffix_length for planned in waiting)
            n_questions = max(len(group.waiting) for group in groups)
            self._batch = None  # free its buffers before the new ones are allocated
            capacity = plan_capacity(self._model, prefix_length, suffix_length, n_questions, self._n_slots)
            self._batch = RunningBatch(self._model, capacity, self._static_shapes, self.stats)
            for group in self._groups.values():
                group.prefix = None
        return self._batch


def _fits(group: _PrefixGroup, batch: RunningBatch) -> bool:
    capacity = batch.capacity
    suffix_length = max(planned.max_suffix_length for planned in group.waiting)
    return group.waiting[0].n_prefix <= capacity.prefix_length and suffix_length <= capacity.suffix_length
