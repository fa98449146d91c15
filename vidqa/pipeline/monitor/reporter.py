"""Messages and progress of a run on stderr, and the clock of its stages. Nothing here writes to stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vidqa.common.display import bar_size
from vidqa.pipeline.monitor.event_log import EventLog
from vidqa.pipeline.monitor.signals import StopSignal
from vidqa.pipeline.monitor.throughput import ThroughputMeter

if TYPE_CHECKING:  # tqdm is imported only to show a bar
    from tqdm import tqdm

STAGES = ("load", "read", "decode", "encode", "generate", "write")
#: Stages in which the main thread waits or prepares. A signal acts at once there, because no result would be lost.
_INTERRUPTIBLE = frozenset({"load", "read", "decode"})


@dataclass
class Reporter:
    """Messages, one progress bar, and the event log.

    Args:
        level: 0 prints only errors, 1 messages, 2 also every failed or ignored file.
        bar: whether to show a bar; None shows it if stderr is a terminal and level is not 0.
        stop: request of the user to end the run.
        log: receives events; None for no log.
    """

    level: int = 1
    bar: bool | None = None
    stop: StopSignal = field(default_factory=StopSignal)
    log: EventLog | None = None
    _printed: set[str] = field(default_factory=set)
    _bar: tqdm | None = None

    def message(self, text: str, *, level: int = 1) -> None:
        """Write one line to stderr.

        Args:
            text: the line.
            level: lowest level of the reporter at which the line is written.
        """
        if level > self.level:
            return
        if self._bar is not None:
            self._bar.clear()
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
        if self._bar is not None:
            self._bar.refresh()

    def message_once(self, text: str, *, level: int = 1) -> None:
        """Write a line as `message` does, unless this reporter has written the same line before.

        Args:
            text: the line.
            level: as for `message`.
        """
        if text not in self._printed:
            self._printed.add(text)
            self.message(text, level=level)

    def event(
        self, stage: str, outcome: str, *, media: str | None = None, seconds: float | None = None, note: str = ""
    ) -> None:
        """Write an event to the log, if there is one. May be called from any thread.

        If the log cannot be written (disk full), it is closed with a warning and the run continues.

        Args:
            stage: as for `EventLog.write`.
            outcome: as for `EventLog.write`.
            media: as for `EventLog.write`.
            seconds: as for `EventLog.write`.
            note: as for `EventLog.write`.
        """
        if self.log is None:
            return
        try:
            self.log.write(stage, outcome, media=media, seconds=seconds, note=note)
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            self.log = None
            self.message(f"warning: stopped logging: {getattr(error, 'strerror', None) or error}")

    @contextmanager
    def progress(self, total: int, unit: str, done: int = 0) -> Iterator[None]:
        """Show a bar with rate and remaining time while the block runs.

        Args:
            total: number of units.
            unit: name of a unit.
            done: units that an earlier run has done.
        """
        is_shown = sys.stderr.isatty() if self.bar is None else self.bar
        if not is_shown or self.level == 0 or total == 0:
            yield
            return
        from tqdm import tqdm

        size = bar_size(sys.stderr)
        self._bar = tqdm(total=total, initial=done, unit=unit, file=sys.stderr, leave=False, **size)
        try:
            yield
        finally:
            self._bar.close()
            self._bar = None

    def advance(self, n: int = 1) -> None:
        """Advance the bar, if there is one.

        Args:
            n: units.
        """
        if self._bar is not None:
            self._bar.update(n)


QUIET = Reporter(level=0, bar=False)


@dataclass
class StageClock:
    """Seconds that a run spent in, or waiting for, each stage; the stage with the most is the bottleneck.

    `load` is opening models. `read` is scanning and reading the table. `decode` is waiting for frames, hashes or cached
    features; that work runs in parallel to the other stages, and whatever overlaps with them costs nothing.

    Args:
        seconds: by stage.
        stop: made interruptible in stages that may be left at once.
        meter: throughput of the stages, whether the run waited for them or not.
        start_s: part of `decode` until the first frames could arrive, which a run pays only once.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    stop: StopSignal = field(default_factory=StopSignal)
    meter: ThroughputMeter = field(default_factory=ThroughputMeter)
    start_s: float = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the wall time of the block to a stage.

        Args:
            name: of the stage.
        """
        start = time.perf_counter()
        try:
            with self.stop.interruptible() if name in _INTERRUPTIBLE else nullcontext():
                yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def bottleneck(self) -> str | None:
        """Return the stage that took most time, or None if nothing was done."""
        name = max(self.seconds, key=lambda stage: self.seconds[stage])
        return name if self.seconds[name] > 0 else None
