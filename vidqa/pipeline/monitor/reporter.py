"""What a run tells the person who waits: progress, messages, and the clock of the stages. All of it on stderr.

Does not know what the stages do. stdout is never touched here.
"""

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

if TYPE_CHECKING:  # tqdm is needed only where a terminal looks on
    from tqdm import tqdm

STAGES = ("load", "read", "decode", "encode", "generate", "write")
#: Stages in which the main thread waits or prepares: a signal acts at once there, for nothing computed is lost.
_NOTHING_TO_LOSE = frozenset({"load", "read", "decode"})


@dataclass
class Reporter:
    """Messages and one progress bar.

    Args:
        level: 0 says only errors, 1 what a user wants to know, 2 every file.
        bar: None shows a bar where stderr is a terminal and level is not 0.
        stop: the other direction: how somebody ends the run.
        log: gets the events; None for nobody.
    """

    level: int = 1
    bar: bool | None = None
    stop: StopSignal = field(default_factory=StopSignal)
    log: EventLog | None = None
    _said: set[str] = field(default_factory=set)
    _bar: tqdm | None = None

    def say(self, text: str, *, level: int = 1) -> None:
        """Write one line to stderr if the user wants to hear this level."""
        if level > self.level:
            return
        if self._bar is not None:
            self._bar.clear()
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
        if self._bar is not None:
            self._bar.refresh()

    def say_once(self, text: str, *, level: int = 1) -> None:
        """As `say`, but the same text only once in the life of this reporter."""
        if text not in self._said:
            self._said.add(text)
            self.say(text, level=level)

    def event(
        self, stage: str, outcome: str, *, media: str | None = None, seconds: float | None = None, note: str = ""
    ) -> None:
        """Write one line into the log, if there is one; see `EventLog.write`. From any thread.

        A log that takes no more (disk full) is given up with a warning: the run is worth more than its diary.
        """
        if self.log is None:
            return
        try:
            self.log.write(stage, outcome, media=media, seconds=seconds, note=note)
        except (OSError, ValueError) as error:  # ValueError: closed under our hands
            self.log = None
            self.say(f"warning: the log cannot be written any more: {getattr(error, 'strerror', None) or error}")

    @contextmanager
    def progress(self, total: int, unit: str, done: int = 0) -> Iterator[None]:
        """Show a bar with rate and time left while the block runs; `done` units were done by an earlier run."""
        wanted = sys.stderr.isatty() if self.bar is None else self.bar
        if not wanted or self.level == 0 or total == 0:
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
        """Move the bar on by `n` units, if there is one."""
        if self._bar is not None:
            self._bar.update(n)


QUIET = Reporter(level=0, bar=False)


@dataclass
class StageClock:
    """Seconds that the run spent in, or waiting for, each stage; the largest is the one that limits it.

    `load` is opening the models; `read` is scanning and reading the table; `decode` is waiting for frames, or for
    hashes and cached features, while nothing else could be done (that work goes on beside the other stages, and what
    is hidden behind them costs nothing).

    Args:
        seconds: by stage.
        stop: hears when the run is in a stage that may be left at once.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    stop: StopSignal = field(default_factory=StopSignal)
    meter: ThroughputMeter = field(
        default_factory=ThroughputMeter
    )  # what the stages did, beside what the run waited for
    start_s: float = 0.0  # of `decode`: until the first frames could come; no further file pays for that again

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the wall time of the block to a stage."""
        start = time.perf_counter()
        try:
            with self.stop.opened() if name in _NOTHING_TO_LOSE else nullcontext():
                yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def limit(self) -> str | None:
        """The stage that took most; None if nothing was done."""
        name = max(self.seconds, key=lambda stage: self.seconds[stage])
        return name if self.seconds[name] > 0 else None
