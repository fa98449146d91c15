"""Decode jobs -> decoded media, in separate processes: a file that crashes or hangs its decoder affects no other file.

Each worker is a new interpreter, fed by one thread of this process. It is not a fork, because the parent may have
initialized CUDA or started threads, and it does not import the caller's script. Results return through a pipe, with
arrays out of band (pickle protocol 5), so no shared memory is leaked if either side dies.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator
from typing import Self, TypeVar, cast

from vidqa.errors import MediaError
from vidqa.media.decode import join_parts
from vidqa.media.workers.process import DecodeJob, Worker, WorkerLimits
from vidqa.records import DecodedMedia, EncoderInput, FrameBatch

__all__ = ["DecodeJob", "DecodePool"]

Result = TypeVar("Result")

#: Queued jobs per running one, so that a worker is never idle while its result is fetched.
_QUEUED_PER_WORKER = 1


class DecodePool:
    """A pool of decoder processes. Use it as a context manager: leaving the block ends all processes.

    Args:
        n_workers: maximum number of processes, about the number of cores because each one decodes with one thread.
            They start on demand.
        timeout_s: longest time in seconds in which neither a packet nor a frame of a file arrives. After it, the
            process is killed and the file fails with `timeout`.
        memory_bytes: memory limit of a process; None means no limit. A file that exceeds it fails with
            `out_of_memory`.
        transform: applied to every segment in the worker, so that full-size frames are not sent to this process. A
            function of an importable module, or a functools.partial of one; workers cannot import the main script.
        backend: see `vidqa.media.decode.open_reader`.
    """

    def __init__(
        self,
        n_workers: int,
        timeout_s: float = 300.0,
        memory_bytes: int | None = 4 << 30,
        transform: Callable[[FrameBatch], EncoderInput] | None = None,
        backend: str = "auto",
    ) -> None:
        if n_workers < 1 or not timeout_s > 0:
            raise ValueError(f"need n_workers >= 1 and timeout_s > 0, got {n_workers=} {timeout_s=}")
        if getattr(transform, "__module__", None) == "__main__":
            raise ValueError("transform must be importable by the workers; move it from the main script into a module")
        self._n_workers = n_workers
        self._limits = WorkerLimits(timeout_s, memory_bytes, transform, backend)
        self._jobs: queue.SimpleQueue[tuple[int, DecodeJob] | None] = queue.SimpleQueue()
        self._results: queue.Queue[tuple[int, DecodedMedia | MediaError | BaseException]] = queue.Queue(n_workers)
        self._workers: list[Worker] = []
        self._next_id = 0
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def run(self, jobs: Iterable[DecodeJob]) -> Iterator[tuple[DecodeJob, DecodedMedia | MediaError]]:
        """Decode files. Yields each file when it is complete, in the order in which they finish.

        Args:
            jobs: as for `stream`.

        Yields:
            Each job with its result. If a file fails, parts that were decoded before are dropped.

        Raises:
            RuntimeError: as `stream`.
        """
        parts: dict[int, list[DecodedMedia]] = {}
        for job, outcome in self.stream(jobs):
            if isinstance(outcome, MediaError):
                parts.pop(id(job), None)
                yield job, outcome
                continue
            parts.setdefault(id(job), []).append(outcome)
            if outcome.is_last:
                yield job, join_parts(parts.pop(id(job)))

    def stream(self, jobs: Iterable[DecodeJob]) -> Iterator[tuple[DecodeJob, DecodedMedia | MediaError]]:
        """Decode files. Yields the segments of each file as they are decoded; files alternate.

        Jobs are taken from `jobs` in the caller's thread, at most two per worker ahead of the results. If the iterator
        is closed early, running jobs are canceled and their processes killed.

        Args:
            jobs: the files to decode.

        Yields:
            Each job with a part of its result. The last one of a job is a part with `is_last`, or an error.

        Raises:
            RuntimeError: the pool is closed, or worker processes do not start.
        """
        if self._closed:
            raise RuntimeError("the decode pool is closed")
        waiting: dict[int, DecodeJob] = {}
        source = iter(jobs)
        most, more = self._n_workers * (1 + _QUEUED_PER_WORKER), True
        try:
            while more or waiting:
                while more and len(waiting) < most:
                    if (job := next(source, None)) is None:
                        more = False
                        break
                    waiting[self._next_id] = job
                    self._submit(job, n_busy=len(waiting))
                if waiting:
                    done, outcome = self._results.get()
                    if done not in waiting:  # result of a canceled run
                        continue
                    if isinstance(outcome, BaseException) and not isinstance(outcome, MediaError):
                        raise RuntimeError("decoder processes do not start") from outcome
                    if isinstance(outcome, DecodedMedia) and not outcome.is_last:
                        yield waiting[done], outcome
                    else:
                        yield waiting.pop(done), outcome
        finally:
            if waiting:
                self._cancel()

    def map_unordered(
        self, function: Callable[[str], Result], paths: Iterable[str]
    ) -> Iterator[tuple[str, Result | MediaError]]:
        """Call a function on each path in a worker, because opening a damaged file may crash or hang the process.

        Args:
            function: a function of an importable module, called with a path. Its result must be picklable; a
                MediaError that it raises is the result.
            paths: the paths, without duplicates.

        Yields:
            Each path with its result, in the order in which they finish.

        Raises:
            RuntimeError: as `run`.
        """
        jobs = (DecodeJob(path, function=function) for path in paths)
        return ((job.path, cast("Result | MediaError", outcome)) for job, outcome in self.stream(jobs))

    def close(self) -> None:
        """Kill all processes and wait for them. May be called twice."""
        self._closed = True
        for _ in self._workers:
            self._jobs.put(None)
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            worker.thread.join()
        self._workers = []

    def _submit(self, job: DecodeJob, n_busy: int) -> None:
        if len(self._workers) < min(self._n_workers, n_busy):
            self._workers.append(Worker(self._jobs, self._results, self._limits))
        self._jobs.put((self._next_id, job))
        self._next_id += 1

    def _cancel(self) -> None:
        """Drop queued jobs and kill running ones; a later run starts new processes."""
        try:
            while True:
                self._jobs.get_nowait()
        except queue.Empty:
            pass
        closed, self._closed = self._closed, True
        self.close()
        self._closed = closed
