"""Counts of a table for `vidqa table info`: rows by status, question, model, settings and age."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import polars as pl

from vidqa.tables.reader import TableReader
from vidqa.tables.superseded import READ_COLUMNS, answer_sets

#: Age of a row -> its upper limit; the last one has none.
AGES = {
    "less than a day": timedelta(days=1),
    "less than a week": timedelta(days=7),
    "less than a month": timedelta(days=30),
    "less than a year": timedelta(days=365),
}
OLDER, UNKNOWN = "a year or more", "unknown"
_COLUMNS = [*READ_COLUMNS, "question_id", "model", "error_kind", "media_note"]


@dataclass
class TableStatistics:
    """Counts of the rows of a table. Keys of the counters are in the order in which they first occur."""

    n_rows: int = 0
    n_files: int = 0
    n_noted: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    error_kinds: Counter[str] = field(default_factory=Counter)
    questions: Counter[tuple[str, str]] = field(default_factory=Counter)  # (question_id, question)
    models: Counter[tuple[str, str]] = field(default_factory=Counter)  # (model, model_id)
    settings: Counter[str] = field(default_factory=Counter)
    ages: Counter[str] = field(default_factory=Counter)
    superseded: Counter[str] = field(default_factory=Counter)  # reason -> rows
    oldest: datetime | None = None
    newest: datetime | None = None


def table_statistics(reader: TableReader, now: datetime | None = None) -> TableStatistics:
    """Count the rows of a table. It is read once; memory holds the keys of its rows.

    Args:
        reader: the table.
        now: time from which the age of rows is counted; None for the current time.

    Raises:
        TableError: the table cannot be read.
    """
    found = TableStatistics()
    sets = answer_sets(_counted(reader.batches(_COLUMNS), found, now or datetime.now(UTC)))
    found.n_files = sets.select(pl.struct("root", "path").n_unique()).item() if sets.height else 0
    for reason, n_rows in sets.group_by("reason").agg(pl.col("n_rows").sum()).iter_rows():
        if reason is not None:
            found.superseded[reason] = n_rows
    return found


def _counted(batches: Iterable[pl.DataFrame], found: TableStatistics, now: datetime) -> Iterator[pl.DataFrame]:
    """Count the rows of each batch, and pass it on."""
    for batch in batches:
        found.n_rows += batch.height
        found.n_noted += batch.height - batch["media_note"].null_count()
        for counter, names in (
            (found.statuses, ["status"]),
            (found.error_kinds, ["error_kind"]),
            (found.questions, ["question_id", "question"]),
            (found.models, ["model", "model_id"]),
            (found.settings, ["settings_id"]),
        ):
            for *key, n in batch.group_by(names, maintain_order=True).len().iter_rows():
                if key != [None]:
                    counter[key[0] if len(key) == 1 else tuple(key)] += n  # type: ignore[index]
        _count_ages(batch["created_at"], found, now)
        yield batch


def _count_ages(created: pl.Series, found: TableStatistics, now: datetime) -> None:
    label = pl.when(pl.col("created_at").is_null()).then(pl.lit(UNKNOWN))
    for name, limit in AGES.items():
        label = label.when(pl.col("created_at") > now - limit).then(pl.lit(name))  # type: ignore[assignment]
    labels = created.to_frame().select(label.otherwise(pl.lit(OLDER)).alias("age"))["age"]
    found.ages.update(dict(labels.value_counts().iter_rows()))
    times = [time for time in (found.oldest, created.min()) if isinstance(time, datetime)]
    found.oldest = min(times, default=None)
    times = [time for time in (found.newest, created.max()) if isinstance(time, datetime)]
    found.newest = max(times, default=None)
