"""One decoder process as seen from this side: started when needed, fed by a thread, ended and replaced when it dies.

Knows processes and pipes; does not know what decoding is. `worker_process.py` is the other end.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO

from vidqa.common.display import display_path
from vidqa.errors import MediaError
from vidqa.media.workers.ipc import TAKEN, PipeClosedError, receive, send
from vidqa.records import DecodedMedia, EncoderInput, FrameBatch, SamplingSpec, Segment

_START_TIMEOUT_S = 60.0
_ATTEMPTS = 2  # to hand a job to a process
_START = (
    "import sys, pickle; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from vidqa.media.workers.server import serve; serve()"
)


@dataclass(frozen=True)
class DecodeJob:
    """One file to decode. `tag` stays on this side and comes back with the result."""

    path: str
    segments: float | tuple[Segment, ...] | None = None  # length of a segment, or the segments; None = whole
    sampling: SamplingSpec = field(default_factory=SamplingSpec)
    tag: object = None
    function: Callable[[str], object] | None = (
        None  # called with the path instead of decoding; see `DecodePool.map_unordered`
    )


@dataclass(frozen=True)
class WorkerLimits:
    """What one worker may use, and how it decodes."""

    timeout_s: float  # wall time for one file
    memory_bytes: int | None  # data the process may allocate; held by the system on Linux only
    transform: Callable[[FrameBatch], EncoderInput] | None
    backend: str = "auto"


class Worker:
    """One process and the thread that feeds it. A process that dies is replaced at its next job."""

    def __init__(
        self,
        jobs: queue.SimpleQueue[tuple[int, DecodeJob] | None],
        results: queue.SimpleQueue[tuple[int, DecodedMedia | MediaError | BaseException]],
        limits: WorkerLimits,
    ) -> None:
        self._jobs, self._results, self._limits = jobs, results, limits
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()  # between starting a process here and ending it from the caller's thread
        self._stopped = False
        self.thread = threading.Thread(target=self._feed, name="vidqa-decode", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """End the process at once, from any thread."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.kill()

    def _feed(self) -> None:
        while (task := self._jobs.get()) is not None and not self._stopped:
            number, job = task
            try:
                outcome: DecodedMedia | MediaError | BaseException = self._decode(job)
            except BaseException as e:  # the caller's thread must hear of it, or it would wait for ever
                outcome = e
            if not self._stopped:
                self._results.put((number, outcome))
        self._end()

    def _decode(self, job: DecodeJob) -> DecodedMedia | MediaError:
        """One file. A process that died before it took the job is replaced once: the file had no part in it.

        To look whether the process lives is not enough: one that is being killed still counts as alive for a moment.
        """
        for attempt in range(_ATTEMPTS):
            taken, outcome = self._try(job)
            if taken or attempt == _ATTEMPTS - 1:
                break
        return outcome

    def _try(self, job: DecodeJob) -> tuple[bool, DecodedMedia | MediaError]:
        """Whether a process took the job, and what became of it."""
        process = self._process or self._start()
        late, taken = threading.Event(), False

        def kill() -> None:
            late.set()
            process.kill()

        clock = threading.Timer(self._limits.timeout_s, kill)
        clock.daemon = True
        clock.start()
        try:
            send(_pipe(process.stdin), (job.path, job.segments, job.sampling, job.function))
            taken = receive(_pipe(process.stdout)) == TAKEN
            result = receive(_pipe(process.stdout))
        except (PipeClosedError, OSError):
            self._end()
            return taken or late.is_set(), self._death(job, process, late.is_set())
        finally:
            clock.cancel()
        if late.is_set():  # finished in the very moment of the kill: the result counts, the process is gone
            self._end()
        return True, result

    def _death(self, job: DecodeJob, process: subprocess.Popen[bytes], late: bool) -> MediaError:
        if late:
            return MediaError(
                "timeout",
                f"{display_path(job.path)}: not decoded within {self._limits.timeout_s:g} s",
                hint="give it more time with --timeout",
            )
        code = process.returncode
        how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        if code == -9:  # SIGKILL: nobody else sends it
            how += ", as the system does when memory runs out"
        return MediaError("crashed", f"{display_path(job.path)}: the decoder process died ({how})")

    def _start(self) -> subprocess.Popen[bytes]:
        # One thread for array libraries: files are decoded side by side. Noise of C libraries goes nowhere.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with self._lock:
            if self._stopped:
                raise PipeClosedError
            process = subprocess.Popen(
                [sys.executable, "-c", _START],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
            self._process = process
        clock = threading.Timer(_START_TIMEOUT_S, process.kill)
        clock.daemon = True
        clock.start()
        try:
            limits = (self._limits.memory_bytes, self._limits.transform, self._limits.backend)
            send(_pipe(process.stdin), [p or os.getcwd() for p in sys.path], framed=False)
            send(_pipe(process.stdin), limits)
            ready = receive(_pipe(process.stdout))
        except (PipeClosedError, OSError) as e:
            self._end()
            raise RuntimeError(f"a decoder process did not start (exit code {process.returncode})") from e
        except BaseException:  # a transform that does not pickle
            self._end()
            raise
        finally:
            clock.cancel()
        if isinstance(ready, BaseException):
            self._end()
            raise ready
        return process

    def _end(self) -> None:
        """Kill if still there, and take the exit status so that no zombie stays."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # what could not be written any more is of no interest
                _pipe(pipe).close()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None  # both are made by _start
    return pipe
