"""Rejected records: a count, the table `rejects.parquet`, and an error if there are too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from vidqa.common import atomic_io
from vidqa.common.disk_space import os_errors
from vidqa.errors import TrainError, UsageError
from vidqa.training.data.sample import REJECT_KINDS

DEFAULT_MAX_RATE = 0.01
COLUMNS = ("source", "record", "id", "kind", "message")


@dataclass(frozen=True)
class Rejected:
    """One rejected record."""

    source: str
    record: int  # index in the source, from 0
    id: str
    kind: str  # one of REJECT_KINDS
    message: str


class RejectLog:
    """The rejected records of one run, each once, however often training reaches it.

    Args:
        path: path of the table, `rejects.parquet`; an existing one is read.
        n_records: number of records in the corpus.
        max_rate: share of the corpus that may be rejected before training stops.

    Raises:
        UsageError: the existing file is not a table of rejects.
    """

    def __init__(self, path: str | Path, n_records: int, max_rate: float = DEFAULT_MAX_RATE) -> None:
        if n_records < 1 or not 0 <= max_rate <= 1:
            raise ValueError(f"need n_records >= 1 and 0 <= max_rate <= 1, got {n_records=} {max_rate=}")
        self.path, self.n_records, self.max_rate = Path(path), n_records, max_rate
        self._found: dict[tuple[str, int], Rejected] = {}
        if self.path.exists():
            self._found = {(r.source, r.record): r for r in read_rejects(self.path)}

    def __len__(self) -> int:
        return len(self._found)

    @property
    def rate(self) -> float:
        """Share of the corpus that is rejected."""
        return len(self) / self.n_records

    def counts(self) -> dict[str, int]:
        """Return the number of rejected records of each kind, the most frequent first."""
        return dict(Counter(r.kind for r in self._found.values()).most_common())

    def add(self, *rejected: Rejected) -> None:
        """Add rejected records; those that are already in the log change nothing.

        Raises:
            TrainError: there are too many now. The table is written first.
        """
        for one in rejected:
            self._found.setdefault((one.source, one.record), one)
        if len(self) > self.max_rate * self.n_records:
            self.save()
            raise TrainError(self._too_many(), hint="vidqa train --check-data RECIPE lists all of them before training")

    def save(self, path: Path | None = None) -> Path:
        """Write the table atomically, in the order of the records; to another path for a checkpoint."""
        return write_rejects(path or self.path, self._found.values())

    def restore(self, path: Path | None) -> None:
        """Return to the state of a checkpoint: records rejected later are rejected again unless they were fixed.

        Args:
            path: path of the table in the checkpoint; None clears the log. A missing file changes nothing.

        Raises:
            UsageError: it is not a table of rejects.
        """
        if path is None:
            self._found = {}
        elif path.exists():
            self._found = {(r.source, r.record): r for r in read_rejects(path)}

    def _too_many(self) -> str:
        share = (
            f"{len(self)} of {self.n_records} records are rejected, more than max_reject_rate {self.max_rate:g} allows"
        )
        reasons = [f"  {n} {kind}: {REJECT_KINDS[kind]}" for kind, n in list(self.counts().items())[:3]]
        first = next(iter(self._found.values()))
        example = f"  first: {first.source}, record {first.record} (id {first.id}): {first.message}"
        return "\n".join([f"training stops: {share}", *reasons, example, f"  all of them: {self.path}"])


def write_rejects(path: str | Path, rejected: Iterable[Rejected]) -> Path:
    """Write a table of rejects atomically; a table without rows means that no record was rejected."""
    import polars as pl

    path = Path(path)
    rows = sorted((asdict(r) for r in rejected), key=lambda r: (r["source"], r["record"]))
    schema = {name: pl.Int64 if name == "record" else pl.String for name in COLUMNS}
    with atomic_io.atomic_write(path) as f, os_errors(f, pl.exceptions.PolarsError):
        pl.DataFrame(rows, schema=schema).write_parquet(f)
    return path


def read_rejects(path: str | Path) -> list[Rejected]:
    """Read a table of rejects.

    Raises:
        UsageError: it cannot be read, or is a different table.
    """
    import polars as pl

    try:
        table = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as e:
        raise UsageError(f"{path}: not a readable table of rejects: {e}") from e
    if tuple(table.columns) != COLUMNS:
        raise UsageError(f"{path}: not a table of rejects; its columns are {', '.join(table.columns)}")
    return [Rejected(**row) for row in table.iter_rows(named=True)]
