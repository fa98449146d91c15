"""Signals -> the end of a run at a moment when nothing is lost.

The first signal waits until the current batch is computed. It acts at once while the run only waits, or has not started
its work. The second signal exits at once: files are written atomically, so only uncommitted work is lost. Runs started
from Python keep Python's own handling of Ctrl-C unless they use `StopSignal.handled`.

Inside `StopSignal.handled` a hangup is ignored: closing the terminal costs messages, not the run.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType

#: Time in seconds after a signal in which a computation may finish.
GRACE_S = 10.0
#: Names of the threads that compute. A run that is interrupted does not wait for a long computation.
WORK_THREADS = ("vidqa-encode", "vidqa-answer")

#: Signal -> the exception that it raises in the main thread.
SignalExceptions = Mapping[int, type[BaseException]]


class StopSignal:
    """A request to stop, and the blocks of code in which it may be granted."""

    def __init__(self) -> None:
        self._pending: BaseException | None = None
        self._n_signals = 0
        self._deferred = False
        self._interruptible = False

    @property
    def is_requested(self) -> bool:
        """Whether a signal is pending, for code inside `deferred` that ends in its own way."""
        return self._pending is not None

    @contextmanager
    def handled(self, exceptions: SignalExceptions, message: Callable[[str], None] | None) -> Iterator[None]:
        """Handle signals inside the block, and ignore SIGHUP. Signals that the parent process ignores stay ignored.

        Args:
            exceptions: the signals to handle, with the exception of each.
            message: prints what the first signal does; called in the main thread. None if another process that receives
                the same signal prints it.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # Python delivers signals to the main thread only
            return

        owner = os.getpid()

        def handle(signum: int, frame: FrameType | None) -> None:
            if os.getpid() != owner:  # a process forked inside the block: its parent ends it
                return
            self._n_signals += 1
            if self._n_signals > 1:
                if message is not None:
                    with suppress(OSError):  # stderr may be gone
                        os.write(2, b"vidqa: exiting at once; unsaved work is lost\n")
                os._exit(128 + signum)  # no cleanup, which could hang on a stuck batch or disk
            self._pending = exceptions[signum]()
            if self._interruptible or not self._deferred:
                raise self._pending
            if message is not None:
                message("stopping after the current batch; press Ctrl-C again to exit at once")

        handlers: dict[int, Callable[[int, FrameType | None], None] | signal.Handlers] = dict.fromkeys(
            exceptions, handle
        )
        if hasattr(signal, "SIGHUP"):
            handlers[signal.SIGHUP] = signal.SIG_IGN
        before = {s: signal.signal(s, h) for s, h in handlers.items() if signal.getsignal(s) is not signal.SIG_IGN}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside the block the first signal stays pending until `interruptible`, or until the end of the block."""
        self._deferred = True
        try:
            yield
            if self._pending is not None:
                raise self._pending
        finally:
            self._deferred = False

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside the block, within `deferred`, a signal loses nothing: a pending or new one is raised at once.

        Raises:
            KeyboardInterrupt: or the exception that `handled` has for the pending signal.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # Set the flag before the check, so that a signal between the two is not missed.
        before, self._interruptible = self._interruptible, True
        try:
            if self._pending is not None and self._deferred:
                raise self._pending
            yield
        finally:
            self._interruptible = before
