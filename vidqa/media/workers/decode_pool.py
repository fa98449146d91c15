"""Jobs -> decoded media, in processes of their own: a file that kills or hangs its decoder costs one row.

Each worker is a fresh interpreter (no fork: the parent may hold CUDA and threads; no re-import of the caller's script),
fed by one thread here. Results come back through a pipe, arrays out of band (pickle protocol 5): nothing is left in
shared memory when either side dies.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator
from typing import Self, TypeVar, cast

from vidqa.errors import MediaError
from vidqa.media.workers.process import DecodeJob, Worker, WorkerLimits
from vidqa.records import DecodedMedia, EncoderInput, FrameBatch

__all__ = ["DecodeJob", "DecodePool"]

Found = TypeVar("Found")

#: Jobs waiting beside each running one, so that a worker never idles while its result is fetched.
_QUEUED_PER_WORKER = 1


class DecodePool:
    """A few decoder processes behind one iterator.

    Args:
        n_workers: processes at most; they start when jobs come. About the number of cores: each decodes with one
            thread.
        timeout_s: wall time for one file, in seconds; over it the process is killed and the file's error is `timeout`.
        memory_bytes: memory for one process; None means no limit. Over it the file's error is `out_of_memory`.
        transform: applied to every segment inside the worker, so that full frames never cross to this side. A function
            of an importable module or a functools.partial of one; functions of the main script cannot be found by the
            workers.
        backend: see `vidqa.media.decode.open_reader`.

    Use it as a context manager: leaving the block ends all processes, whatever they are doing.
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
        self._results: queue.SimpleQueue[tuple[int, DecodedMedia | MediaError | BaseException]] = queue.SimpleQueue()
        self._workers: list[Worker] = []
        self._next_id = 0
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def run(self, jobs: Iterable[DecodeJob]) -> Iterator[tuple[DecodeJob, DecodedMedia | MediaError]]:
        """Decode; results come as they finish, not in the order of the jobs.

        Jobs are pulled in the caller's thread, a few ahead of the results: at most two for each worker are in flight.
        If the iterator is closed early, files being decoded are given up and their processes ended.

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
                    if done not in waiting:  # left over from a run that was given up
                        continue
                    if isinstance(outcome, BaseException) and not isinstance(outcome, MediaError):
                        raise RuntimeError("decoder processes do not start") from outcome
                    yield waiting.pop(done), outcome
        finally:
            if waiting:
                self._give_up()

    def map_unordered(
        self, ask: Callable[[str], Found], paths: Iterable[str]
    ) -> Iterator[tuple[str, Found | MediaError]]:
        """Ask something else of files, with the same care: opening a damaged one may kill or hang whoever does it.

        Args:
            ask: a function of an importable module, called with a path. What it returns must pickle; a MediaError that
                it raises is the answer.
            paths: of the files, each once.

        Raises:
            RuntimeError: as `run`.
        """
        jobs = (DecodeJob(path, function=ask) for path in paths)
        return ((job.path, cast("Found | MediaError", outcome)) for job, outcome in self.run(jobs))

    def close(self) -> None:
        """End all processes and wait for them. May be called twice."""
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

    def _give_up(self) -> None:
        """Forget queued jobs and end running ones; a later run starts fresh processes."""
        try:
            while True:
                self._jobs.get_nowait()
        except queue.Empty:
            pass
        closed, self._closed = self._closed, True
        self.close()
        self._closed = closed
