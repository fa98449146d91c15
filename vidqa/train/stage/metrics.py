"""What a run tells of itself: one JSON line a step, on disk in the order of the steps, and the counts behind it.

Knows numbers and one file. Does not know models or data.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidqa.common.atomic_io import atomic_write


class MetricsFile:
    """`metrics.jsonl`: lines are appended, and taken back where a run goes on from an earlier step.

    Args:
        path: of the file.
        active: False in all processes but the first: nothing is written.
    """

    def __init__(self, path: Path, active: bool = True) -> None:
        self.path, self.active = path, active
        self._waiting: list[str] = []

    def add(self, line: dict[str, Any]) -> None:
        """Note a line; it is written by `flush`."""
        self._waiting.append(json.dumps(line))

    def flush(self) -> None:
        """Write what waits."""
        waiting, self._waiting = self._waiting, []
        if waiting and self.active:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as f:
                f.write("".join(f"{line}\n" for line in waiting))

    def take_back(self, stage: int, step: int) -> None:
        """Drop what was written after a step of a stage: a run that goes on from there writes it again."""
        self._waiting = []
        if not self.active or not self.path.exists():
            return
        kept = [line for line in read_metrics(self.path) if (line["stage"], line["step"]) <= (stage, step)]
        with atomic_write(self.path) as f:
            f.write("".join(f"{json.dumps(line)}\n" for line in kept).encode())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics file; a last line that a kill cut short is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


@dataclass
class StepTally:
    """Sums over the micro-batches of one step in one process."""

    loss: float = 0.0  # summed, not averaged
    n_learned: int = 0
    n_filled: int = 0  # positions that hold a token
    n_positions: int = 0
    n_samples: int = 0
    n_rejected: int = 0

    def values(self) -> list[float]:
        """As numbers that processes can add up."""
        return [self.loss, self.n_learned, self.n_filled, self.n_positions, self.n_samples, self.n_rejected]

    @property
    def mean_loss(self) -> float:
        """Per token; 0 where nothing was to be learned."""
        return self.loss / self.n_learned if self.n_learned else 0.0

    @property
    def padding(self) -> float:
        """Share of positions that hold nothing."""
        return 1 - self.n_filled / self.n_positions if self.n_positions else 0.0

    @property
    def is_finite(self) -> bool:
        """False when the loss is no number."""
        return math.isfinite(self.loss)


def summed(values: list[float]) -> StepTally:
    """The tally of all processes."""
    return StepTally(values[0], *(round(v) for v in values[1:]))


@dataclass
class Totals:
    """Sums over the steps of a stage; saved with checkpoints, so that a report covers all of a broken run."""

    n_filled: int = 0
    n_positions: int = 0
    n_samples: int = 0
    n_rejected: int = 0
    n_steps: int = 0
    loss: float = 0.0  # of the steps, added up
    seconds: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    def add(self, tally: StepTally) -> float:
        """Take up one step.

        Returns:
            Its wall time in seconds.
        """
        now = time.perf_counter()
        took, self.since = now - self.since, now
        self.seconds += took
        self.n_filled += tally.n_filled
        self.n_positions += tally.n_positions
        self.n_samples += tally.n_samples
        self.n_rejected += tally.n_rejected
        self.n_steps += 1
        self.loss += tally.mean_loss
        return took

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "n_filled": self.n_filled,
            "n_positions": self.n_positions,
            "n_samples": self.n_samples,
            "n_rejected": self.n_rejected,
            "n_steps": self.n_steps,
            "loss": self.loss,
            "seconds": round(self.seconds, 3),
        }
