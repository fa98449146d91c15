"""Progress of a run as a value for programs, as a bar for terminals, and as a line every so often for log files."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from vidqa.common.display import bar_size, human_bytes, human_duration, plural
from vidqa.common.lossy_stream import lossy

#: Time between two progress lines, in seconds.
LINE_INTERVAL_S = 30.0
#: Shortest time between two calls of a progress callback, in seconds.
CALL_INTERVAL_S = 0.5
#: The rate is the mean over this time in seconds, so that files without pending work do not distort it for long.
_RATE_WINDOW_S = 300.0


@dataclass(frozen=True)
class Progress:
    """Progress of a run. `seconds_left` is that of the phase, as the length of later phases is not determined yet."""

    phase: str  # `scan`, `answer`, `encode`, `search`; in training also `read` and `train`
    unit: str  # what is counted: `file`, `record` or `step`
    done: float  # units; a part of a long file is a fraction
    total: float | None  # None until it is determined
    failed: int  # files that failed; part of done
    rate: float | None  # units per second, over the last five minutes; None before anything is done
    seconds_left: float | None  # None if it cannot be estimated


class ProgressCounter:
    """Counts units in any thread, and derives rate and remaining time.

    Args:
        phase: name of the phase.
        unit: name of a unit.
        total: number of units, or None.
        done: units that an earlier run has done; they do not count for the rate.
    """

    def __init__(self, phase: str, unit: str, total: float | None, done: float) -> None:
        self._phase, self._unit, self._total = phase, unit, total
        self._lock = threading.Lock()
        self._done, self._failed = float(done), 0
        self._history = deque([(time.monotonic(), self._done)])

    def add(self, n: float, failed: int) -> None:
        """Count units, of which some may have failed."""
        with self._lock:
            self._done += n
            self._failed += failed

    def window_s(self, now: float) -> float:
        """Return the time over which the last rate was measured."""
        return now - self._history[0][0]

    def progress(self, now: float) -> Progress:
        """Return how far the run is.

        Args:
            now: time in seconds, of any clock that only moves forward.
        """
        with self._lock:
            done, failed = self._done, self._failed
            self._history.append((now, done))
            while len(self._history) > 2 and self._history[1][0] <= now - _RATE_WINDOW_S:
                self._history.popleft()
            start, before = self._history[0]
        rate = (done - before) / (now - start) if now > start and done > before else None
        left = None if rate is None or self._total is None else max(0.0, self._total - done) / rate
        return Progress(self._phase, self._unit, done, self._total, failed, rate, left)


class ProgressDisplay(Protocol):
    """What a `Reporter` shows progress with."""

    def advance(self, n: float, failed: int) -> None:
        """Count units.

        Args:
            n: units; a part of a long file is a fraction.
            failed: how many of them failed.
        """

    def hide(self) -> None:
        """Hide progress while a message is printed."""

    def show(self) -> None:
        """Show progress again after a message."""

    def close(self) -> None:
        """Remove the display."""


class ProgressBar:
    """A bar at the bottom of a terminal.

    Args:
        total: number of units.
        unit: name of a unit.
        done: units that an earlier run has done.
    """

    def __init__(self, total: int, unit: str, done: int) -> None:
        from tqdm import tqdm  # imported only to show a bar

        stream = lossy(sys.stderr)
        self.bar = tqdm(total=total, initial=done, unit=unit, file=stream, leave=False, **bar_size(stream))
        self._part = 0.0

    def advance(self, n: float, failed: int) -> None:
        """Advance by complete units: tqdm would show fractions with many digits."""
        self._part += n
        whole = int(self._part + 1e-6)
        self._part -= whole
        self.bar.update(whole)

    def hide(self) -> None:
        """Clear the line of the bar."""
        self.bar.clear()

    def show(self) -> None:
        """Redisplay the bar."""
        self.bar.refresh()

    def close(self) -> None:
        """Remove the bar."""
        self.bar.close()


class ProgressLines:
    """A line every `LINE_INTERVAL_S` seconds, written by a thread: also while a single file takes very long.

    Args:
        total: number of units.
        unit: name of a unit; `B` for bytes.
        done: units that an earlier run has done.
        write: receives each line.
    """

    def __init__(self, total: int, unit: str, done: int, write: Callable[[str], None]) -> None:
        self._total, self._unit, self._write = total, unit, write
        self.counter = ProgressCounter("", unit, total, done)
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="vidqa-progress", daemon=True).start()

    def advance(self, n: float, failed: int) -> None:
        """Count units."""
        self.counter.add(n, failed)

    def hide(self) -> None:
        """Do nothing: lines do not disturb messages."""

    def show(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """End the thread."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(LINE_INTERVAL_S):
            self._write(self.line(time.monotonic()))

    def line(self, now: float) -> str:
        """Return the next line: `progress: 120 of 9,530 files (1.3%), 2 failed, 14.0/min, 11 h 12 min left`.

        Args:
            now: time in seconds, of any clock that only moves forward.
        """
        p = self.counter.progress(now)
        if self._unit == "B":
            amount, speed = f"{human_bytes(p.done)} of {human_bytes(self._total)}", f"{human_bytes(p.rate or 0)}/s"
        else:
            amount, speed = f"{int(p.done + 1e-6):,} of {plural(self._total, self._unit)}", _speed(p.rate or 0.0)
        parts = [f"{amount} ({min(1.0, p.done / self._total):.1%})"]
        if self._unit == "file" or p.failed:
            parts.append(f"{p.failed:,} failed")
        if p.seconds_left is not None:
            parts += [speed, f"{human_duration(p.seconds_left)} left"]
        else:
            parts.append(f"nothing finished in the last {human_duration(self.counter.window_s(now))}")
        return f"progress: {', '.join(parts)}"


class ProgressCalls:
    """Calls a function of the user with the progress, in the thread that creates this object.

    Units that other threads count are part of the next call. After an error of the function it is not called again.

    Args:
        counter: of the phase.
        call: the function of the user; its errors are raised here.
    """

    def __init__(self, counter: ProgressCounter, call: Callable[[Progress], object]) -> None:
        self._counter, self._call = counter, call
        self._thread = threading.get_ident()
        self._next = 0.0  # time.monotonic() of the next call
        self._has_failed = False

    def advance(self, n: float, failed: int) -> None:
        """Count units, and call the function unless that happened a moment ago."""
        self._counter.add(n, failed)
        if threading.get_ident() == self._thread and time.monotonic() >= self._next:
            self.call()

    def call(self) -> None:
        """Call the function now."""
        if self._has_failed:
            return
        now = time.monotonic()
        self._has_failed = True
        self._call(self._counter.progress(now))
        self._has_failed = False
        self._next = time.monotonic() + CALL_INTERVAL_S


def _speed(per_s: float) -> str:
    for factor, name in ((1.0, "s"), (60.0, "min")):
        if per_s * factor >= 1:
            return f"{per_s * factor:,.1f}/{name}"
    return f"{per_s * 3600:,.1f}/h"
