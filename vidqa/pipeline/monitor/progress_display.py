"""Two ways to show progress on stderr: a bar for terminals, and a line every so often for log files."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from vidqa.common.display import bar_size, human_bytes, human_duration, plural
from vidqa.common.lossy_stream import lossy

#: Time between two progress lines, in seconds.
LINE_INTERVAL_S = 30.0
#: The rate is the mean over this many intervals, so that files without pending work do not distort it for long.
_RATE_INTERVALS = 10


class ProgressDisplay(Protocol):
    """What a `Reporter` shows progress with."""

    def advance(self, n: float, failed: int) -> None:
        """Count units.

        Args:
            n: units; a part of a long file is a fraction.
            failed: how many of them failed.
        """

    def hide(self) -> None:
        """Make room for a message."""

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
        """Draw the bar again."""
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
        self._done, self._failed = float(done), 0
        self._history = deque([(time.monotonic(), self._done)], maxlen=_RATE_INTERVALS + 1)
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="vidqa-progress", daemon=True).start()

    def advance(self, n: float, failed: int) -> None:
        """Count units."""
        self._done += n
        self._failed += failed

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
        self._history.append((now, self._done))
        (start, before), done = self._history[0], self._done
        rate = (done - before) / (now - start) if now > start else 0.0
        if self._unit == "B":
            amount, speed = f"{human_bytes(done)} of {human_bytes(self._total)}", f"{human_bytes(rate)}/s"
        else:
            amount, speed = f"{int(done + 1e-6):,} of {plural(self._total, self._unit)}", _speed(rate)
        parts = [f"{amount} ({min(1.0, done / self._total):.1%})"]
        if self._unit == "file" or self._failed:
            parts.append(f"{self._failed:,} failed")
        if rate > 0:
            parts += [speed, f"{human_duration(max(0.0, self._total - done) / rate)} left"]
        else:
            parts.append(f"nothing finished in the last {human_duration(now - start)}")
        return f"progress: {', '.join(parts)}"


def _speed(per_s: float) -> str:
    for factor, name in ((1.0, "s"), (60.0, "min")):
        if per_s * factor >= 1:
            return f"{per_s * factor:,.1f}/{name}"
    return f"{per_s * 3600:,.1f}/h"
