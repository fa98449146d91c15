"""Signals -> the end of a run at a moment when nothing is lost. Knows signals; does not know what the run does.

The first signal waits for the batch that is being computed; while the run only waits, or has not begun, it acts at
once. The second one leaves at once, whatever is going on: files are whole or absent at every moment, so all it can
cost is what was not committed yet. Runs that were started from Python keep Python's own Ctrl-C, until `heard` is used.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

#: Signal -> what is raised for it in the main thread.
Kinds = Mapping[int, type[BaseException]]


class StopSignal:
    """A wish to stop, and when it may be granted."""

    def __init__(self) -> None:
        self._wish: BaseException | None = None
        self._n_signals = 0
        self._held = False
        self._open = False

    @property
    def is_wanted(self) -> bool:
        """Whether a signal waits: for work that ends in its own way, inside `held`."""
        return self._wish is not None

    @contextmanager
    def heard(self, kinds: Kinds, say: Callable[[str], None] | None) -> Iterator[None]:
        """Handle signals inside the block. One that whoever started us had ignored (nohup) stays ignored.

        Args:
            kinds: the signals, and the exception of each.
            say: hears what the first signal does. Called between two steps of the main thread. None where another
                process, which got the same signal, speaks for this one.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # Python hands signals to the main thread only
            return

        owner = os.getpid()

        def handle(signum: int, frame: FrameType | None) -> None:
            if os.getpid() != owner:  # a process that was forked inside the block: the end comes from us
                return
            self._n_signals += 1
            if self._n_signals > 1:
                if say is not None:
                    os.write(2, b"vidqa: leaving at once; what was not yet saved is lost\n")
                os._exit(128 + signum)  # no clean-up: a stuck batch or a stuck disk must not hold us
            self._wish = kinds[signum]()
            if self._open or not self._held:
                raise self._wish
            if say is not None:
                say("stopping after the current batch; once more leaves at once")

        before = {s: signal.signal(s, handle) for s in kinds if signal.getsignal(s) is not signal.SIG_IGN}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside the block the first signal waits: for `opened`, or for the end of the block."""
        self._held = True
        try:
            yield
            if self._wish is not None:
                raise self._wish
        finally:
            self._held = False

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Inside this block, within `held`, nothing is lost by a signal: a waiting one is raised, a new one at once.

        Raises:
            KeyboardInterrupt: or whatever `heard` was given for the signal that waits.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before, self._open = self._open, True  # first open, then look: a signal between the two must not be missed
        try:
            if self._wish is not None and self._held:
                raise self._wish
            yield
        finally:
            self._open = before
