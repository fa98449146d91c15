"""The other end of `workers.py`: reads jobs from standard input, decodes, writes results. Never imports torch.

Output of C libraries must not get between the results: the pipe is moved away from descriptor 1 before anything is
imported.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import BinaryIO

from vidqa.common.display import display_path
from vidqa.errors import MediaError
from vidqa.media.workers.ipc import TAKEN, PipeClosedError, receive, send

_LOOK_AFTER_PARENT_S = 0.5


def serve() -> None:
    """Decode until the parent hangs up."""
    # Ctrl-C reaches the whole group, and a service manager ends all processes of a service at once. The parent decides
    # what ends: a file that is being decoded has not failed. Without it, `_die_with` ends this process.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    jobs = sys.stdin.buffer
    results = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
    try:
        memory_bytes, transform, backend = receive(jobs)
        from vidqa.media.backends import pyav  # noqa: F401  the first file should not pay for the imports
    except PipeClosedError:
        return
    except Exception as e:  # told to the caller: a transform that cannot be imported is its bug
        send(results, RuntimeError(f"a decoder process cannot start: {type(e).__name__}: {e}"))
        return
    _limit_memory(memory_bytes)
    send(results, "ready")
    try:
        while True:
            job = receive(jobs)
            send(results, TAKEN)  # from here on, what kills this process is this file's doing
            _answer(results, job, transform, backend)
    except (PipeClosedError, BrokenPipeError):
        return


def _answer(results: BinaryIO, job: tuple, transform: object, backend: str) -> None:
    from vidqa.media.decode import decode

    path, seconds, sampling, look = job
    try:
        outcome: object = (
            look(path) if look else decode(path, seconds, None, sampling, backend, transform=transform)  # type: ignore[arg-type]
        )
    except MediaError as e:
        outcome = e
    except MemoryError:
        outcome = MediaError(
            "out_of_memory", f"{display_path(path)}: the frames do not fit the memory limit of a decoder process"
        )
    except Exception as e:  # the one place: whatever a strange file provokes becomes a row that names it
        outcome = MediaError("crashed", f"{display_path(path)}: {type(e).__name__}: {e}")
    try:
        send(results, outcome)
    except MemoryError:  # nothing was written: the failure is in making the message
        outcome = MediaError(
            "out_of_memory", f"{display_path(path)}: the frames do not fit the memory limit of a decoder process"
        )
        send(results, outcome)


def _limit_memory(memory_bytes: int | None) -> None:
    """RLIMIT_DATA: what the process really may write to. Address space would count reserved but unused arenas, too."""
    if not memory_bytes:
        return
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    except (ImportError, ValueError, OSError):
        pass  # a system without the limit still has the time limit and the limit on frame size


def _die_with(parent: int) -> None:
    """A parent killed outright cannot end its workers; a busy worker would not notice the closed pipe."""
    while os.getppid() == parent:
        time.sleep(_LOOK_AFTER_PARENT_S)
    os._exit(1)
