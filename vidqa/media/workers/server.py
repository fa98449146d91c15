"""Main loop of a decoder process: read jobs from standard input, decode, write results. Never imports torch.

Counterpart of `process.py`. The result pipe is moved away from file descriptor 1 before anything else is imported, so
that output of C libraries cannot corrupt the results.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from functools import partial
from typing import BinaryIO

from vidqa.common.display import display_path
from vidqa.errors import MediaError
from vidqa.media.workers.heartbeat import set_sender
from vidqa.media.workers.ipc import PipeClosedError, Signal, receive, send

_PARENT_POLL_S = 0.5


def serve() -> None:
    """Decode jobs until the parent closes the pipe."""
    # Ctrl-C and the end of a terminal reach the whole process group, and a service manager terminates all processes of
    # a service at once. A file that is being decoded then has not failed, so only the parent may end this process. If
    # the parent dies, `_exit_with_parent` does.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    jobs = sys.stdin.buffer
    results = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        memory_bytes, timeout_s, transform, backend = receive(jobs)
        from vidqa.media.backends import pyav  # noqa: F401  imported here so that the first file does not wait for it
    except PipeClosedError:
        return
    except Exception as e:  # noqa: BLE001  passed to the caller: the transform cannot be imported
        send(results, RuntimeError(f"a decoder process cannot start: {type(e).__name__}: {e}"))
        return
    _limit_memory(memory_bytes)
    set_sender(partial(send, results, Signal.PROGRESS), min(1.0, timeout_s / 4))
    send(results, "ready")
    try:
        while True:
            job = receive(jobs)
            send(results, Signal.ACCEPTED)  # if this process dies from now on, the file is the cause
            _run_job(results, job, transform, backend)
    except (PipeClosedError, BrokenPipeError):
        return


def _run_job(results: BinaryIO, job: tuple, transform: object, backend: str) -> None:
    from vidqa.media.decode import decode_parts

    path, segments, sampling, skip, function = job
    outcome: object
    try:
        if function is not None:
            outcome = function(path)
        else:
            for part in decode_parts(path, segments, None, sampling, backend, transform=transform, skip=skip):  # type: ignore[arg-type]
                if part.is_last:
                    outcome = part
                else:
                    send(results, part)
    except (PipeClosedError, BrokenPipeError):
        raise
    except MediaError as e:
        outcome = e
    except MemoryError:
        outcome = _out_of_memory(path)
    except Exception as e:  # noqa: BLE001  any exception caused by a damaged file becomes its error
        outcome = MediaError("crashed", f"{display_path(path)}: {type(e).__name__}: {e}")
    try:
        send(results, outcome)
    except MemoryError:  # raised while building the message, before anything was written
        send(results, _out_of_memory(path))


def _out_of_memory(path: str) -> MediaError:
    what = f"{display_path(path)}: the frames exceed the memory limit of a decoder process"
    return MediaError("out_of_memory", what)


def _limit_memory(memory_bytes: int | None) -> None:
    """Limit RLIMIT_DATA, the writable memory. RLIMIT_AS would also count reserved but unused address space."""
    if not memory_bytes:
        return
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    except (ImportError, ValueError, OSError):
        pass  # without this limit, the limit on time and the maximum frame size still apply


def _exit_with_parent(parent: int) -> None:
    """Exit when the parent is gone: a killed parent cannot stop its workers, and a busy one does not read the pipe."""
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_S)
    os._exit(1)
