"""Media paths -> facts or errors, by decoding one frame of each file in a worker process.

A file that crashes or hangs its decoder is only one more error in the report.
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
    """Probes each file once, however often it is requested; with an index, a readable file only after it changes.

    Args:
        n_workers: number of decoder processes; None is one per CPU core.
        timeout_s: longest time in seconds without progress in a file.
        index: stores which files were decoded without errors, by path, size and modification time.
    """

    def __init__(self, n_workers: int | None = None, timeout_s: float = 120.0, index: MediaIndex | None = None) -> None:
        self.n_workers, self.timeout_s, self.index = n_workers, timeout_s, index
        self._probed: dict[str, MediaFacts | MediaError] = {}

    def __call__(self, paths: Iterable[str]) -> Iterator[tuple[str, MediaFacts | MediaError]]:
        """Yield facts or an error for each distinct path, in the order in which they are available."""
        new: dict[str, tuple[int, int] | None] = {}
        for path in dict.fromkeys(paths):
            state = _state(path)
            if path not in self._probed and self.index and state and (facts := self.index.probed_facts(path, *state)):
                self._probed[path] = facts
            if path in self._probed:
                yield path, self._probed[path]
            else:
                new[path] = state
        if not new:
            return
        n_workers, start_ns = min(self.n_workers or cpu_threads(), len(new)), time.time_ns()
        with DecodePool(n_workers, self.timeout_s, transform=no_pixels) as pool:
            for job, outcome in pool.run(DecodeJob(path, sampling=_ONE_FRAME) for path in new):
                self._probed[job.path] = found = outcome if isinstance(outcome, MediaError) else outcome.facts
                state = new[job.path]
                if self.index and state and isinstance(found, MediaFacts) and _state(job.path) == state:
                    self.index.store_probed_facts(job.path, *state, start_ns, found)
                yield job.path, found


def _state(path: str) -> tuple[int, int] | None:
    """Return size in bytes and modification time in nanoseconds; None if the file does not exist."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def no_pixels(batch: FrameBatch) -> EncoderInput:
    """Replace preprocessing in the decoder processes: the decoded pixels are not needed."""
    return EncoderInput(np.zeros((len(batch.pts_s), 3, 1, 1), np.float32), batch.pts_s, batch.repeated, batch.kind)
