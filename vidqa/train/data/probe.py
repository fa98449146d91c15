"""Paths of media -> facts, or why there are none. Decodes one frame of each in a decoder process: a file that kills or
hangs its decoder costs one line of the report.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from vidqa.encoders.devices import cpu_threads
from vidqa.errors import MediaError
from vidqa.media.workers import DecodeJob, DecodePool
from vidqa.records import EncoderInput, FrameBatch, MediaFacts, SamplingSpec

_ONE_FRAME = SamplingSpec("linspace", 1)


class Prober:
    """Looks at each file once, however often it is asked for.

    Args:
        n_workers: decoder processes; None means one for each core.
        timeout_s: wall time for one file, in seconds.
    """

    def __init__(self, n_workers: int | None = None, timeout_s: float = 120.0) -> None:
        self.n_workers, self.timeout_s = n_workers, timeout_s
        self._known: dict[str, MediaFacts | MediaError] = {}

    def __call__(self, paths: Iterable[str]) -> Iterator[tuple[str, MediaFacts | MediaError]]:
        """Facts of each path, as they come."""
        new: list[str] = []
        for path in dict.fromkeys(paths):
            if path in self._known:
                yield path, self._known[path]
            else:
                new.append(path)
        if not new:
            return
        n_workers = min(self.n_workers or cpu_threads(), len(new))
        with DecodePool(n_workers, self.timeout_s, transform=no_pixels) as pool:
            for job, outcome in pool.run(DecodeJob(path, sampling=_ONE_FRAME) for path in new):
                self._known[job.path] = outcome if isinstance(outcome, MediaError) else outcome.facts
                yield job.path, self._known[job.path]


def no_pixels(batch: FrameBatch) -> EncoderInput:
    """Stands in for preprocessing, in the decoder processes: what was decoded is not needed here."""
    return EncoderInput(np.zeros((len(batch.pts_s), 3, 1, 1), np.float32), batch.pts_s, batch.repeated, batch.kind)
