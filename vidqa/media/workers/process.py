"""A decoder process and the thread that feeds it. The process starts on demand and is replaced if it dies.

`server.py` is the code that runs in the process.
"""

from __future__ import annotations

import contextlib
import math
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Self

from vidqa.common.display import display_path
from vidqa.errors import MediaError
from vidqa.import_path import child_environment, python_command
from vidqa.media.workers.ipc import PipeClosedError, Signal, receive, send
from vidqa.records import DecodedMedia, EncoderInput, FrameBatch, SamplingSpec, Segment

_START_TIMEOUT_S = 60.0
_ATTEMPTS = 2  # to send a job to a process
_POLL_S = 0.2
_START = "from vidqa.media.workers.server import serve; serve()"


@dataclass(frozen=True)
class DecodeJob:
    """One file to decode. `tag` is not sent to the process; it is returned with the result."""

    path: str
    segments: float | tuple[Segment, ...] | None = None  # length in seconds, or the segments; None = whole
    sampling: SamplingSpec = field(default_factory=SamplingSpec)
    skip: frozenset[Segment] = frozenset()  # segments that are not needed
    tag: object = None
    function: Callable[[str], object] | None = None  # called instead of decoding; see `DecodePool.map_unordered`


@dataclass(frozen=True)
class WorkerLimits:
    """Resource limits and decode settings of a worker."""

    timeout_s: float  # longest time without progress
    memory_bytes: int | None  # writable memory of the process; enforced on Linux only
    transform: Callable[[FrameBatch], EncoderInput] | None
    backend: str = "auto"


class Worker:
    """One decoder process and the thread that feeds it. A process that died is replaced for the next job.

    Args:
        jobs: queue of (job number, job), shared by all workers; None ends a worker.
        results: bounded queue of (job number, result). Several parts of a file may precede its last result.
            Exceptions other than MediaError mean that no process can be started.
        limits: resource limits of the process.
    """

    def __init__(
        self,
        jobs: queue.SimpleQueue[tuple[int, DecodeJob] | None],
        results: queue.Queue[tuple[int, DecodedMedia | MediaError | BaseException]],
        limits: WorkerLimits,
    ) -> None:
        self._jobs, self._results, self._limits = jobs, results, limits
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()  # held while this thread starts the process or another thread kills it
        self._stopped = False
        self.thread = threading.Thread(target=self._feed, name="vidqa-decode", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Kill the process immediately. May be called from any thread."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.kill()

    def _feed(self) -> None:
        while (task := self._jobs.get()) is not None and not self._stopped:
            number, job = task
            try:
                outcome: DecodedMedia | MediaError | BaseException = self._decode(number, job)
            except BaseException as e:  # noqa: BLE001  passed to the caller, which would otherwise wait forever
                outcome = e
            self._put(number, outcome)
        self._end_process()

    def _put(self, number: int, outcome: DecodedMedia | MediaError | BaseException) -> None:
        """Pass a result on. While the queue is full, the process waits, too: its pipe fills up."""
        while not self._stopped:
            try:
                return self._results.put((number, outcome), timeout=_POLL_S)
            except queue.Full:
                continue

    def _decode(self, number: int, job: DecodeJob) -> DecodedMedia | MediaError:
        """Decode one file and return its last part.

        If a process dies before it accepts the job, the file is not the cause: try a new process. Polling the process
        first would not be enough, because a process that is being killed still counts as alive.
        """
        for attempt in range(_ATTEMPTS):
            accepted, outcome = self._try(number, job)
            if accepted or attempt == _ATTEMPTS - 1:
                break
        return outcome

    def _try(self, number: int, job: DecodeJob) -> tuple[bool, DecodedMedia | MediaError]:
        """Return whether a process accepted the job, and its last result."""
        process = self._process or self._start()
        accepted = False
        with _Watchdog(process, self._limits.timeout_s) as watchdog:
            try:
                with watchdog.watching():
                    send(_pipe(process.stdin), (job.path, job.segments, job.sampling, job.skip, job.function))
                while True:
                    with watchdog.watching():
                        message = receive(_pipe(process.stdout))
                    if message is Signal.ACCEPTED:
                        accepted = True
                    elif isinstance(message, DecodedMedia) and not message.is_last:
                        self._put(number, message)
                    elif message is not Signal.PROGRESS:
                        break
            except (PipeClosedError, OSError):
                self._end_process()
                return accepted or watchdog.has_killed, self._exit_error(job, process, watchdog.has_killed)
        if watchdog.has_killed:  # finished just before the kill: the result is valid, the process is not
            self._end_process()
        return True, message

    def _exit_error(self, job: DecodeJob, process: subprocess.Popen[bytes], timed_out: bool) -> MediaError:
        if timed_out:
            return MediaError(
                "timeout",
                f"{display_path(job.path)}: no packet or frame arrived within {self._limits.timeout_s:g} s",
                hint="raise the limit with --timeout",
            )
        code = process.returncode
        how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        if code == -9:  # not sent by vidqa here, so probably by the kernel's OOM killer
            how += ", probably because the system ran out of memory"
        return MediaError("crashed", f"{display_path(job.path)}: the decoder process died ({how})")

    def _start(self) -> subprocess.Popen[bytes]:
        # One thread for array libraries, because files are decoded in parallel. Output of C libraries is discarded.
        one_thread = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with self._lock:
            if self._stopped:
                raise PipeClosedError
            process = subprocess.Popen(
                python_command(_START),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=child_environment() | one_thread,
            )
            self._process = process
        timer = threading.Timer(_START_TIMEOUT_S, process.kill)
        timer.daemon = True
        timer.start()
        try:
            ours = self._limits
            limits = (ours.memory_bytes, ours.timeout_s, ours.transform, ours.backend)
            send(_pipe(process.stdin), limits)
            ready = receive(_pipe(process.stdout))
        except (PipeClosedError, OSError) as e:
            self._end_process()
            raise RuntimeError(f"a decoder process did not start (exit code {process.returncode})") from e
        except BaseException:  # for example a transform that cannot be pickled
            self._end_process()
            raise
        finally:
            timer.cancel()
        if isinstance(ready, BaseException):
            self._end_process()
            raise ready
        return process

    def _end_process(self) -> None:
        """Kill the process if it still runs, and collect its exit status."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # unwritten data does not matter
                _pipe(pipe).close()


class _Watchdog:
    """Kills a process that is watched for too long without progress. Use it as a context manager.

    Args:
        process: to kill.
        timeout_s: longest time in one block of `watching`.
    """

    def __init__(self, process: subprocess.Popen[bytes], timeout_s: float) -> None:
        self.has_killed = False
        self._process, self._timeout_s = process, timeout_s
        self._deadline = math.inf
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vidqa-watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the process during the block."""
        self._deadline = time.monotonic() + self._timeout_s
        try:
            yield
        finally:
            self._deadline = math.inf

    def _run(self) -> None:
        wait_s = self._timeout_s
        while not self._ended.wait(wait_s):
            left_s = self._deadline - time.monotonic()
            if left_s <= 0:
                self.has_killed = True
                self._process.kill()
                return
            wait_s = min(left_s, self._timeout_s)


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None  # both are created by _start
    return pipe
