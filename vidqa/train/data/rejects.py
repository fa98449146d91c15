"""Records that cannot be trained on -> a count, a table, and the end of training where they are too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from vidqa.common import atomic_io
from vidqa.errors import TrainError, UsageError
from vidqa.train.data.sample import REJECT_KINDS

DEFAULT_MAX_RATE = 0.01
COLUMNS = ("source", "record", "id", "kind", "message")


@dataclass(frozen=True)
class Rejected:
    """One record that was left out."""

    source: str
    record: int  # its place in the source, from 0
    id: str
    kind: str  # one of REJECT_KINDS
    message: str


class RejectLog:
    """The rejects of one run, each record once, however often an epoch meets it.

    Args:
        path: of the table, `rejects.parquet`; what an earlier part of the run found is read from there.
        n_records: of the corpus.
        max_rate: share of the corpus that may be rejected; one more, and training stops.

    Raises:
        UsageError: the table that is there is not one of rejects.
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
        """How many records of each kind, the most frequent first."""
        return dict(Counter(r.kind for r in self._found.values()).most_common())

    def add(self, *rejected: Rejected) -> None:
        """Note rejects; those that are known already change nothing.

        Raises:
            TrainError: they are too many now. The table is written before.
        """
        for one in rejected:
            self._found.setdefault((one.source, one.record), one)
        if len(self) > self.max_rate * self.n_records:
            self.save()
            raise TrainError(self._too_many(), hint="vidqa train --check-data RECIPE lists all of them before training")

    def save(self, path: Path | None = None) -> Path:
        """Write the table, whole or not at all, in the order of the records; to another place for a checkpoint."""
        return write_rejects(path or self.path, self._found.values())

    def take_back(self, path: Path | None) -> None:
        """Know what was known at a checkpoint, and no more: what came later comes again, or was mended since.

        Args:
            path: of the table that was saved with it; None begins with nothing. One that is not there changes nothing.

        Raises:
            UsageError: the table is not one of rejects.
        """
        if path is None:
            self._found = {}
        elif path.exists():
            self._found = {(r.source, r.record): r for r in read_rejects(path)}

    def _too_many(self) -> str:
        share = f"{len(self)} of {self.n_records} records are bad, more than max_reject_rate {self.max_rate:g} allows"
        reasons = [f"  {n} {kind}: {REJECT_KINDS[kind]}" for kind, n in list(self.counts().items())[:3]]
        first = next(iter(self._found.values()))
        example = f"  first: {first.source}, record {first.record} (id {first.id}): {first.message}"
        return "\n".join([f"training stops: {share}", *reasons, example, f"  all of them: {self.path}"])


def write_rejects(path: str | Path, rejected: Iterable[Rejected]) -> Path:
    """Write a table of rejects, whole or not at all; one without rows says that all records are good."""
    import polars as pl

    path = Path(path)
    rows = sorted((asdict(r) for r in rejected), key=lambda r: (r["source"], r["record"]))
    schema = {name: pl.Int64 if name == "record" else pl.String for name in COLUMNS}
    with atomic_io.atomic_write(path) as f:
        pl.DataFrame(rows, schema=schema).write_parquet(f)
    return path


def read_rejects(path: str | Path) -> list[Rejected]:
    """Read a table of rejects.

    Raises:
        UsageError: it cannot be read, or is another table.
    """
    import polars as pl

    try:
        table = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as e:
        raise UsageError(f"{path}: cannot be read as a table of rejects: {e}") from e
    if tuple(table.columns) != COLUMNS:
        raise UsageError(f"{path}: not a table of rejects; its columns are {', '.join(table.columns)}")
    return [Rejected(**row) for row in table.iter_rows(named=True)]
