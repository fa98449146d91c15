"""Messages and progress of a run on stderr, and the clock of its stages. Nothing here writes to stdout."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Literal

from vidqa.common.lossy_stream import lossy
from vidqa.pipeline.monitor.event_log import EventLog
from vidqa.pipeline.monitor.progress_display import (
    Progress,
    ProgressBar,
    ProgressCalls,
    ProgressCounter,
    ProgressDisplay,
    ProgressLines,
)
from vidqa.pipeline.monitor.signals import StopSignal
from vidqa.pipeline.monitor.throughput import ThroughputMeter

STAGES = ("load", "read", "decode", "encode", "generate", "write")
#: Stages in which the main thread waits or prepares. A signal acts at once there, because no result would be lost.
_INTERRUPTIBLE = frozenset({"load", "read", "decode"})


@dataclass
class Reporter:
    """Messages, progress, and the event log. What cannot be written to stderr is lost, and the run continues.

    Args:
        level: 0 prints only errors, 1 messages, 2 also every failed or ignored file.
        style: how progress is shown: as a bar, as a line every 30 seconds, or not at all. `auto` shows a bar if stderr
            is a terminal, else lines. With level 0 nothing is shown.
        stop: request of the user to end the run.
        log: receives events; None for no log.
        on_progress: called with the progress, whatever `level` and `style` are; see `describe`.
    """

    level: int = 1
    style: Literal["auto", "bar", "lines", "none"] = "auto"
    stop: StopSignal = field(default_factory=StopSignal)
    log: EventLog | None = None
    on_progress: Callable[[Progress], object] | None = None
    _printed: set[str] = field(default_factory=set)
    _display: ProgressDisplay | None = None
    _calls: ProgressCalls | None = None
    _shares: dict[str, float] = field(default_factory=dict)  # by path of a file in progress

    def calling(self, on_progress: Callable[[Progress], object] | None) -> Reporter:
        """Return a reporter that also calls a function with the progress; this one if there is no function.

        Args:
            on_progress: the function, or None.

        Raises:
            TypeError: it is neither.
        """
        if on_progress is None:
            return self
        if not callable(on_progress):
            raise TypeError(f"progress must be a function or None, not {type(on_progress).__name__}")
        return replace(self, on_progress=on_progress)

    @property
    def shows_bar(self) -> bool:
        """Whether progress is shown as a bar."""
        return self.level > 0 and (self.style == "bar" or (self.style == "auto" and sys.stderr.isatty()))

    def message(self, text: str, *, level: int = 1) -> None:
        """Write one line to stderr.

        Args:
            text: the line.
            level: lowest level of the reporter at which the line is written.
        """
        if level > self.level:
            return
        display = self._display
        if display is not None:
            display.hide()
        stream = lossy(sys.stderr)
        stream.write(f"{text}\n")
        stream.flush()
        if display is not None:
            display.show()

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
    def progress(self, total: int | None, unit: str, done: int = 0, *, phase: str = "") -> Iterator[None]:
        """Show progress with rate, failures and remaining time while the block runs.

        Args:
            total: number of units; None if it cannot be determined, so that only `on_progress` is called.
            unit: name of a unit.
            done: units that an earlier run has done.
            phase: name of the phase, for `on_progress`.
        """
        if self.on_progress is not None:
            self._calls = ProgressCalls(ProgressCounter(phase, unit, total, done), self.on_progress)
        if not total or self.style == "none" or self.level == 0:
            pass
        elif self.shows_bar:
            self._display = ProgressBar(total, unit, done)
        else:
            self._display = ProgressLines(total, unit, done, self.message)
        try:
            if self._calls is not None:
                self._calls.call()
            yield
            if self._calls is not None:
                self._calls.call()
        finally:
            if self._display is not None:
                self._display.close()
            self._display = self._calls = None

    def advance(self, n: float = 1, *, failed: int = 0) -> None:
        """Advance the progress display, if there is one. May be called from any thread.

        Args:
            n: units; a part of a long file is a fraction.
            failed: how many of them failed.

        Raises:
            Exception: whatever `on_progress` raises.
        """
        if self._display is not None:
            self._display.advance(n, failed)
        if self._calls is not None:
            self._calls.advance(n, failed)

    def advance_file(self, path: str, share: float, *, is_last: bool, failed: bool = False) -> None:
        """Advance the progress display by a part of a file.

        Args:
            path: of the file.
            share: of the file, at most 1.
            is_last: whether the file is finished.
            failed: whether the finished file has failed.
        """
        before = self._shares.pop(path, 0.0)
        now = 1.0 if is_last else min(1.0, before + share)
        if not is_last:
            self._shares[path] = now
        self.advance(now - before, failed=int(is_last and failed))


QUIET = Reporter(level=0, style="none")


@dataclass
class StageClock:
    """Seconds that a run spent in, or waiting for, each stage; the stage with the most is the bottleneck.

    `load` is opening models. `read` is scanning and reading the table. `decode` is waiting for frames, hashes or cached
    features; that work runs in parallel to the other stages, and whatever overlaps with them costs nothing.

    Args:
        seconds: by stage.
        stop: made interruptible in stages that may be left at once.
        cancelled: set when nothing new is to be started; the stages then end as soon as they can.
        meter: throughput of the stages, whether the run waited for them or not.
        start_s: part of `decode` until the first frames could arrive, which a run pays only once.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    stop: StopSignal = field(default_factory=StopSignal)
    cancelled: threading.Event = field(default_factory=threading.Event)
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
