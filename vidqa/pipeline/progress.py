"""What a run tells the person who waits: progress, messages, and the clock of the stages. All of it on stderr.

Does not know what the stages do. stdout is never touched here.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # tqdm is needed only where a terminal looks on
    from tqdm import tqdm

STAGES = ("load", "read", "decode", "encode", "generate", "write")


@dataclass
class Reporter:
    """Messages and one progress bar.

    Args:
        level: 0 says only errors, 1 what a user wants to know, 2 every file.
        bar: None shows a bar where stderr is a terminal and level is not 0.
    """

    level: int = 1
    bar: bool | None = None
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

    @contextmanager
    def progress(self, total: int, unit: str) -> Iterator[None]:
        """Show a bar with rate and time left while the block runs."""
        wanted = sys.stderr.isatty() if self.bar is None else self.bar
        if not wanted or self.level == 0 or total == 0:
            yield
            return
        from tqdm import tqdm

        self._bar = tqdm(total=total, unit=unit, file=sys.stderr, dynamic_ncols=True, leave=False)
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
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the wall time of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def limit(self) -> str | None:
        """The stage that took most; None if nothing was done."""
        name = max(self.seconds, key=lambda stage: self.seconds[stage])
        return name if self.seconds[name] > 0 else None
