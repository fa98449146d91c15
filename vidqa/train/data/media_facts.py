"""Paths of media -> facts, or why there are none. Decodes one frame of each in a decoder process: a file that kills or
hangs its decoder costs one line of the report.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator

import numpy as np

from vidqa.cache.media_index import MediaIndex
from vidqa.common.devices import cpu_threads
from vidqa.errors import MediaError
from vidqa.media.workers.decode_pool import DecodeJob, DecodePool
from vidqa.records import EncoderInput, FrameBatch, MediaFacts, SamplingSpec

_ONE_FRAME = SamplingSpec("linspace", 1)


class Prober:
    """Looks at each file once, however often it is asked for; with an index, at good ones once until they change.

    Args:
        n_workers: decoder processes; None means one for each core.
        timeout_s: wall time for one file, in seconds.
        index: remembers, by path, size and modification time, which files were decoded well.
    """

    def __init__(self, n_workers: int | None = None, timeout_s: float = 120.0, index: MediaIndex | None = None) -> None:
        self.n_workers, self.timeout_s, self.index = n_workers, timeout_s, index
        self._known: dict[str, MediaFacts | MediaError] = {}

    def __call__(self, paths: Iterable[str]) -> Iterator[tuple[str, MediaFacts | MediaError]]:
        """Facts of each path, as they come."""
        new: dict[str, tuple[int, int] | None] = {}
        for path in dict.fromkeys(paths):
            state = _state(path)
            if path not in self._known and self.index and state and (facts := self.index.probed_facts(path, *state)):
                self._known[path] = facts
            if path in self._known:
                yield path, self._known[path]
            else:
                new[path] = state
        if not new:
            return
        n_workers, began_ns = min(self.n_workers or cpu_threads(), len(new)), time.time_ns()
        with DecodePool(n_workers, self.timeout_s, transform=no_pixels) as pool:
            for job, outcome in pool.run(DecodeJob(path, sampling=_ONE_FRAME) for path in new):
                self._known[job.path] = found = outcome if isinstance(outcome, MediaError) else outcome.facts
                state = new[job.path]
                if self.index and state and isinstance(found, MediaFacts) and _state(job.path) == state:
                    self.index.store_probed_facts(job.path, *state, began_ns, found)
                yield job.path, found


def _state(path: str) -> tuple[int, int] | None:
    """Size and modification time; None where there is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def no_pixels(batch: FrameBatch) -> EncoderInput:
    """Stands in for preprocessing, in the decoder processes: what was decoded is not needed here."""
    return EncoderInput(np.zeros((len(batch.pts_s), 3, 1, 1), np.float32), batch.pts_s, batch.repeated, batch.kind)
