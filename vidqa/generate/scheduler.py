"""Jobs -> what the model said, with a batch whose lines come and go.

Decides who is at work: jobs about a clip that is stored already first, then in the order in which they came. Does not
know text or errors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vidqa.generate.fallback_decode import Continuation
from vidqa.generate.kv_cache.buffers import numbers
from vidqa.generate.kv_cache.capacity import most_lines, prefill_tokens, room_for
from vidqa.generate.kv_cache.pool import packed
from vidqa.generate.requests import GenerationSettings, PlannedRequest
from vidqa.generate.running_batch import EngineStats, RunningBatch
from vidqa.generate.sampling import RandomStream, pick_greedy, pick_sampled
from vidqa.model.video_llava import VideoLlava
from vidqa.records import Prompt

#: A batch that ran out of memory is tried with twice as many lines after so many full batches without that.
_TRY_AGAIN = 16


@dataclass(frozen=True)
class StoppingCriteria:
    """What ends an answer."""

    ids: frozenset[int]
    stops: Callable[[Sequence[int]], bool]  # says whether the ids so far complete a stop string


@dataclass
class _Line:
    """A job at work."""

    job: PlannedRequest
    draws: RandomStream | None
    said: Continuation = field(default_factory=Continuation)


@dataclass
class _Group:
    """Jobs that share a beginning: those that wait, and where it is stored."""

    waiting: deque[PlannedRequest] = field(default_factory=deque)
    clip: int | None = None


class Scheduler:
    """Jobs at work and jobs that wait.

    Args:
        model: in evaluation mode.
        settings: how tokens are chosen.
        ends: what ends an answer.
        limit: most lines at once; None takes what the memory is likely to hold.
        static: see `Pool`.
    """

    def __init__(
        self, model: VideoLlava, settings: GenerationSettings, ends: StoppingCriteria, limit: int | None, static: bool
    ) -> None:
        self.work = EngineStats()
        self.n_waiting = 0
        self._model, self._settings, self._ends = model, settings, ends
        self._asked, self._static = limit, static
        self._limit = limit  # less than was asked for after running out of memory
        self._n_since = 0  # answers since then
        self._groups: dict[Hashable, _Group] = {}  # in the order in which they came
        self._lines: list[_Line] = []
        self._entering: list[PlannedRequest] = []  # on their way from waiting to a line
        self._done: list[tuple[PlannedRequest, Continuation]] = []  # kept where the step after them fails
        self._batch: RunningBatch | None = None

    @property
    def busy(self) -> bool:
        """True while there is anything to do."""
        return bool(self.n_waiting or self._lines or self._done)

    def submit(self, job: PlannedRequest) -> None:
        """Put a job behind the others."""
        self._groups.setdefault(job.key, _Group()).waiting.append(job)
        self.n_waiting += 1

    @torch.inference_mode()
    def advance(self) -> list[tuple[PlannedRequest, Continuation]]:
        """One token for every line, and new lines where others left.

        Returns:
            What was finished.

        Raises:
            torch.OutOfMemoryError: `back_off` is to be called then.
        """
        if self.n_waiting or self._lines:
            self._step()
        done, self._done = self._done, []
        return done

    def _step(self) -> None:
        self._admit()
        batch = self._batch
        assert batch is not None and batch.logits is not None
        picked = self._choose(batch.logits)
        tokens = batch.look(picked)
        if batch.static:
            # The device goes on while the tokens are looked at here; for a line that ends, it is one step too many.
            batch.step(picked, counted=False)
        for line, token in zip(self._lines, tokens(), strict=True):
            self._take(line, token)
        if batch.static:
            batch.count([i for i, line in enumerate(self._lines) if line.said.reason is None])
        done = [(line.job, line.said) for line in self._lines if line.said.reason is not None]
        self._done += done
        self.work.answers += len(done)
        self._n_since += len(done)
        if done:
            order = packed([line.said.reason is None for line in self._lines])
            picked = picked[numbers(order, picked.device)]
            self._keep(batch, order)
        if self._lines and not batch.static:
            batch.step(picked)

    def back_off(self) -> PlannedRequest | None:
        """After running out of memory: begin again with half as many lines. What was finished before stays finished.

        Returns:
            The job that does not fit even on its own, in buffers for no other, which is given up.
        """
        again = [*(line.job for line in self._lines), *self._entering]
        had = self._batch.room if self._batch else None
        self._lines, self._entering, self._batch = [], [], None
        for group in self._groups.values():
            group.clip = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._limit, self._n_since = max(1, len(again) // 2), 0
        lost = again.pop() if len(again) == 1 and had is not None and had.n_lines == had.n_clips == 1 else None
        for job in reversed(again):
            self._groups.setdefault(job.key, _Group()).waiting.appendleft(job)
        self.n_waiting += len(again)
        self._forget_empty()
        return lost

    def _take(self, line: _Line, token: int) -> None:
        """One more token of a line, and whether it was the last."""
        said = line.said
        if token in self._ends.ids:
            said.reason = "eos"
            return
        said.ids.append(token)
        if self._ends.stops(said.ids):
            said.reason = "stop"
        elif len(said.ids) >= line.job.max_new_tokens:
            said.reason = "length"

    def _choose(self, logits: Tensor) -> Tensor:
        if self._settings.temperature == 0:
            return pick_greedy(logits)
        drawn = [line.draws.next() if line.draws else 0.0 for line in self._lines]
        draws = numbers(drawn, logits.device, torch.float64)
        return pick_sampled(logits, self._settings.temperature, self._settings.top_p, draws)

    def _keep(self, batch: RunningBatch, order: Sequence[int]) -> None:
        """Go on with some lines; clips stay while jobs about them wait."""
        self._lines = [self._lines[i] for i in order]
        wanted = {group.clip for group in self._groups.values() if group.waiting and group.clip is not None}
        moved = batch.keep(order, wanted)
        for group in self._groups.values():
            group.clip = None if group.clip is None else moved.get(group.clip)
        self._forget_empty()

    def _forget_empty(self) -> None:
        at_work = {line.job.key for line in self._lines}
        self._groups = {k: g for k, g in self._groups.items() if g.waiting or k in at_work}

    def _admit(self) -> None:
        """Let waiting jobs in where there is room. Not for every single line: their questions go better together."""
        if not self.n_waiting or (self._lines and self._may_grow()):  # the batch empties, and is made anew
            return
        batch = self._ready_batch()
        free = batch.room.n_lines - len(self._lines)
        if self._lines and free < max(1, batch.room.n_lines // 8):
            return
        chosen: list[tuple[_Group, list[PlannedRequest]]] = []
        n_clips = batch.n_clips
        for group in sorted(self._groups.values(), key=lambda g: g.clip is None):  # stable: else as they came
            if not group.waiting:
                continue
            is_new = group.clip is None
            if not free or (is_new and n_clips == batch.room.n_clips) or not _fits(group, batch):
                break
            n_clips += is_new
            jobs = [group.waiting.popleft() for _ in range(min(free, len(group.waiting)))]
            free -= len(jobs)
            self._entering += jobs
            self.n_waiting -= len(jobs)
            chosen.append((group, jobs))
        if chosen:
            self._enter(batch, chosen)

    def _enter(self, batch: RunningBatch, chosen: Sequence[tuple[_Group, list[PlannedRequest]]]) -> None:
        """Store the beginnings that are new, then ask."""
        fresh = [(group, jobs[0]) for group, jobs in chosen if group.clip is None]
        while fresh:
            n, longest = 1, fresh[0][1].n_shared
            while n < len(fresh) and (n + 1) * max(longest, fresh[n][1].n_shared) <= prefill_tokens(self._model):
                longest = max(longest, fresh[n][1].n_shared)
                n += 1
            visual = self._model.visual_tokens([f for _, job in fresh[:n] for f in job.request.features])
            embeds = []
            for _, job in fresh[:n]:
                mine = [visual.pop(0) for _ in job.request.features]
                embeds.append(self._model.embed_prompt(job.head, mine))
            for (group, _), clip in zip(fresh[:n], batch.begin(embeds), strict=True):
                group.clip = clip
            fresh = fresh[n:]
        pairs = [(group.clip, job) for group, jobs in chosen for job in jobs]
        batch.ask([clip for clip, _ in pairs if clip is not None], self._tails([job for _, job in pairs]))
        self._lines += [_Line(job, job.draws(self._settings)) for _, job in pairs]
        self._entering = []

    def _tails(self, jobs: Sequence[PlannedRequest]) -> list[Tensor]:
        """What follows the beginnings, embedded [S_i, L] each: looked up together, for each look-up waits for a GPU."""
        tails = [job.tail for job in jobs]
        joined = Prompt(np.concatenate([t.ids for t in tails]), np.concatenate([t.slots for t in tails]))
        return list(self._model.embed_prompt(joined).split([len(t.ids) for t in tails]))

    def _may_grow(self) -> bool:
        """Whether a batch that ran out of memory is to be larger again: others may have used the device, too."""
        return self._limit is not None and self._limit != self._asked and self._n_since >= _TRY_AGAIN * self._limit

    def _ready_batch(self) -> RunningBatch:
        """The batch; a new one where nobody is at work and the next job does not fit into the old, or it may grow."""
        groups = [group for group in self._groups.values() if group.waiting]
        first = min(groups, key=lambda g: g.clip is None)
        grows = not self._lines and self._may_grow()
        if grows and self._limit is not None:
            most = self._asked or most_lines(self._model)
            self._limit, self._n_since = (2 * self._limit if 2 * self._limit < most else self._asked), 0
        if self._batch is None or grows or (not self._lines and not _fits(first, self._batch)):
            jobs = [job for group in groups for job in group.waiting]
            n_prefix, n_own = max(job.n_shared for job in jobs), max(job.n_own for job in jobs)
            most = max(len(group.waiting) for group in groups)
            self._batch = None  # its buffers go before the new ones are made
            room = room_for(self._model, n_prefix, n_own, most, self._limit)
            self._batch = RunningBatch(self._model, room, self._static, self.work)
            for group in self._groups.values():
                group.clip = None
        return self._batch


def _fits(group: _Group, batch: RunningBatch) -> bool:
    room = batch.room
    return group.waiting[0].n_shared <= room.n_prefix and max(job.n_own for job in group.waiting) <= room.n_own
