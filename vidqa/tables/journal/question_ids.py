"""The ids of a table's questions. A question is identified by its text, so its id may be renamed. Scope: frames."""

from __future__ import annotations

import polars as pl

from vidqa.tables.journal.row_keys import QuestionKey

_KEYS = list(QuestionKey._fields)


class QuestionIds:
    """Which ids the questions of the stored rows have, and which of them a run changes."""

    def __init__(self) -> None:
        # Question -> id -> first and last + 1 row of each batch in which rows of the question have this id.
        self._stored: dict[QuestionKey, dict[str, list[tuple[int, int]]]] = {}
        self._renamed: dict[QuestionKey, str] = {}

    def add_batch(self, batch: pl.DataFrame, first_row: int) -> None:
        """Take note of the ids of rows.

        Args:
            batch: rows of the written table, with the columns of a `QuestionKey` and `question_id`.
            first_row: number of the first row.
        """
        for *question, question_id in batch.select(*_KEYS, "question_id").unique().iter_rows():
            rows = self._stored.setdefault(QuestionKey(*question), {}).setdefault(question_id, [])
            rows.append((first_row, first_row + batch.height))

    def rename(self, question: QuestionKey, question_id: str) -> bool:
        """Set the id of all rows of a question. Returns whether any stored row has another one."""
        if self._stored.get(question, {}).keys() <= {question_id}:
            return False
        self._renamed[question] = question_id
        return True

    def changes(self, start: int, stop: int) -> bool:
        """Return whether any of the stored rows `start` to `stop` - 1 may have a new id."""
        return any(
            old != question_id and first < stop and last > start
            for question, question_id in self._renamed.items()
            for old, batches in self._stored.get(question, {}).items()
            for first, last in batches
        )

    def apply(self, batch: pl.DataFrame) -> pl.DataFrame:
        """Return stored rows with their new ids."""
        if not self._renamed:
            return batch
        new = pl.DataFrame(list(self._renamed), schema=_KEYS, orient="row").with_columns(
            pl.Series("new_id", list(self._renamed.values()))
        )
        joined = batch.join(new, on=_KEYS, how="left", maintain_order="left")
        return joined.with_columns(pl.coalesce("new_id", "question_id").alias("question_id")).select(batch.columns)
