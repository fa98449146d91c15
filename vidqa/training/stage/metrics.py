"""Training metrics: `metrics.jsonl` with one line per step, and the sums that it is computed from."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vidqa.common.atomic_io import atomic_write


class MetricsFile:
    """`metrics.jsonl`. A resumed run removes the lines after its checkpoint and appends again.

    Args:
        path: path of the file.
        active: False in all processes except the first, so that they write nothing.
    """

    def __init__(self, path: Path, active: bool = True) -> None:
        self.path, self.active = path, active
        self._buffer: list[str] = []

    def add(self, line: dict[str, Any]) -> None:
        """Add a line to the buffer that `flush` writes."""
        self._buffer.append(json.dumps(line))

    def flush(self) -> None:
        """Write the buffered lines."""
        lines, self._buffer = self._buffer, []
        if lines and self.active:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as f:
                f.write("".join(f"{line}\n" for line in lines))

    def truncate(self, stage: int, step: int) -> None:
        """Remove all lines after a step of a stage: a run that resumes there writes them again."""
        self._buffer = []
        if not self.active or not self.path.exists():
            return
        kept = [line for line in read_metrics(self.path) if (line["stage"], line["step"]) <= (stage, step)]
        with atomic_write(self.path) as f:
            f.write("".join(f"{json.dumps(line)}\n" for line in kept).encode())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read all complete lines of a metrics file; a last line that was cut off by a kill is skipped."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


@dataclass
class StepTotals:
    """Sums over the micro-batches of one step in one process."""

    loss: float = 0.0  # sum over target tokens
    n_targets: int = 0
    n_filled: int = 0  # positions that are not padding
    n_positions: int = 0
    n_samples: int = 0
    n_rejected: int = 0

    def values(self) -> list[float]:
        """Return the sums as numbers that processes can all-reduce."""
        return [self.loss, self.n_targets, self.n_filled, self.n_positions, self.n_samples, self.n_rejected]

    @classmethod
    def from_values(cls, values: list[float]) -> StepTotals:
        """Create the totals of all processes from the all-reduced `values`."""
        return cls(values[0], *(round(v) for v in values[1:]))

    @property
    def mean_loss(self) -> float | None:
        """Loss per target token; None without targets, that is, if all samples of the step were rejected."""
        return self.loss / self.n_targets if self.n_targets else None

    @property
    def padding(self) -> float:
        """Share of positions that are padding."""
        return 1 - self.n_filled / self.n_positions if self.n_positions else 0.0

    @property
    def is_finite(self) -> bool:
        """False if the loss is NaN or infinite."""
        return math.isfinite(self.loss)


@dataclass
class StageTotals:
    """Sums over the steps of a stage. Saved with checkpoints, so that a resumed run reports the whole stage."""

    n_filled: int = 0
    n_positions: int = 0
    n_samples: int = 0
    n_rejected: int = 0
    n_steps: int = 0
    n_steps_without_loss: int = 0  # part of n_steps
    loss: float = 0.0  # sum of the mean losses of the other steps
    seconds: float = 0.0
    since: float = field(default_factory=time.perf_counter)  # end of the previous step

    def add(self, step: StepTotals) -> float:
        """Add one step.

        Returns:
            Its wall time in seconds.
        """
        now = time.perf_counter()
        seconds, self.since = now - self.since, now
        self.seconds += seconds
        self.n_filled += step.n_filled
        self.n_positions += step.n_positions
        self.n_samples += step.n_samples
        self.n_rejected += step.n_rejected
        self.n_steps += 1
        self.n_steps_without_loss += step.mean_loss is None
        self.loss += step.mean_loss or 0.0
        return seconds

    @property
    def mean_loss(self) -> float | None:
        """Mean of the losses of the steps; None if no step has one."""
        n = self.n_steps - self.n_steps_without_loss
        return self.loss / n if n else None

    def restart_clock(self) -> None:
        """Exclude the time since the previous step, for example that of an evaluation."""
        self.since = time.perf_counter()

    def as_dict(self) -> dict[str, Any]:
        """Return the sums for JSON."""
        values = asdict(self) | {"seconds": round(self.seconds, 3)}
        del values["since"]
        return values
