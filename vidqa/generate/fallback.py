"""Jobs -> what the model said, for models whose attention cannot be exchanged: batch after batch, each to its end.

The same seam as `lines.Lines`. A clip's beginning is computed once a batch, and copied for each of its questions.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from vidqa.generate.fallback_decode import Choose, Continuation, Row, decode
from vidqa.generate.kv_cache.capacity import rows_that_fit
from vidqa.generate.requests import GenerationSettings, PlannedRequest
from vidqa.generate.running_batch import EngineStats
from vidqa.generate.sampling import pick_greedy, pick_sampled
from vidqa.generate.scheduler import StoppingCriteria
from vidqa.model.video_llava import VideoLlava


class FallbackEngine:
    """Jobs that wait. Arguments as of `Lines`."""

    def __init__(
        self, model: VideoLlava, settings: GenerationSettings, ends: StoppingCriteria, limit: int | None
    ) -> None:
        self.work = EngineStats()
        self._model, self._settings, self._ends, self._limit = model, settings, ends, limit
        self._waiting: list[PlannedRequest] = []
        self._tried = 0  # jobs of the batch at work

    @property
    def n_waiting(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """True while there is anything to do."""
        return bool(self._waiting)

    def submit(self, job: PlannedRequest) -> None:
        """Put a job behind the others."""
        self._waiting.append(job)

    def advance(self) -> list[tuple[PlannedRequest, Continuation]]:
        """Answer the next batch.

        Raises:
            torch.OutOfMemoryError: `back_off` is to be called then.
        """
        longest = max(len(job.prompt.ids) + job.max_new_tokens for job in self._waiting)
        self._tried = min(self._limit or rows_that_fit(self._model, longest), len(self._waiting))
        batch = self._waiting[: self._tried]
        start = time.perf_counter()
        distinct = {id(f): f for job in batch for f in job.request.features}
        with torch.inference_mode():
            visual = dict(zip(distinct, self._model.visual_tokens(list(distinct.values())), strict=True))
        rows = [Row(j.prompt, tuple(visual[id(f)] for f in j.request.features), j.max_new_tokens) for j in batch]
        said = decode(self._model, rows, self._ends.ids, self._chooser(batch), self._ends.stops)
        del self._waiting[: len(batch)]
        self.work.decode_s += time.perf_counter() - start
        self.work.decode_tokens += sum(len(one.ids) for one in said)
        self.work.answers += len(said)
        return list(zip(batch, said, strict=True))

    def back_off(self) -> PlannedRequest | None:
        """After running out of memory: half as many the next time; gives the job that does not fit on its own."""
        self._limit = max(1, self._tried // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return self._waiting.pop(0) if self._tried == 1 else None

    def _chooser(self, batch: Sequence[PlannedRequest]) -> Choose:
        settings = self._settings
        draws = [job.draws(settings) for job in batch]

        def choose(logits: Tensor, rows: Sequence[int]) -> Tensor:
            if settings.temperature == 0:
                return pick_greedy(logits)
            drawn = [one.next() for i in rows if (one := draws[i]) is not None]
            numbers = torch.tensor(drawn, dtype=torch.float64, device=logits.device)
            return pick_sampled(logits, settings.temperature, settings.top_p, numbers)

        return choose
