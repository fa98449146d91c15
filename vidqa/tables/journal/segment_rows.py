"""Questions that only some segments of a file answer, because a run ended in the middle or some segments failed.

The rows of a long video reach the disk one after another, so a table may have the first 300 of 600 rows. Each row has
the number of the file's segments, which is how the missing ones are noticed. Complete questions without failed rows,
which are nearly all, are not kept here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import polars as pl

from vidqa.common.path_text import unescape_path
from vidqa.tables.journal.row_keys import FILE_COLUMNS, QuestionKey, RowEntry, file_path


@dataclass
class SegmentRows:
    """Which segments of a file have a row for one question.

    Attributes:
        n_segments: number of the file's segments.
        answered: starts of the segments with a row that has not failed, in seconds.
        failed: starts of the segments with a failed row.
        rest_failed: whether a failed row without a segment stands for all others.
    """

    n_segments: int
    answered: set[float] = field(default_factory=set)
    failed: set[float] = field(default_factory=set)
    rest_failed: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether there is a row for every segment."""
        return self.rest_failed or len(self.answered) + len(self.failed) >= self.n_segments

    @property
    def has_failed(self) -> bool:
        """Whether a row has failed."""
        return self.rest_failed or bool(self.failed)


class SegmentIndex:
    """The incomplete questions of a table, and those with failed rows, by media_id and path of the file."""

    def __init__(self) -> None:
        self._files: dict[tuple[str, str], dict[QuestionKey, SegmentRows]] = {}

    def get(self, media_id: str | None, path: str, question: QuestionKey) -> SegmentRows | None:
        """Return the rows for a question about the file at `path`; None if none are missing or have failed.

        Also None for videos of one segment and for rows of versions that did not store the number of segments.
        """
        return None if media_id is None else self._files.get((media_id, path), {}).get(question)

    def add(self, media_id: str | None, path: str, rows: Iterable[RowEntry]) -> None:
        """Add rows of the file at `path`."""
        if media_id is None:
            return
        for row in rows:
            has_failed = row.state.status == "failed"
            if row.n_segments is None:
                if has_failed and (entry := self.get(media_id, path, row.question)) is not None:
                    entry.rest_failed = True
            elif row.n_segments > 1 and row.start_s is not None:
                starts = [row.start_s]
                parts = ([], starts) if has_failed else (starts, [])
                self._add(media_id, path, row.question, row.n_segments, *parts)

    def add_batch(self, batch: pl.DataFrame) -> None:
        """Add rows of the written table.

        Args:
            batch: with the columns `KEY_COLUMNS`.
        """
        keys, failed = [*FILE_COLUMNS, *QuestionKey._fields], pl.col("status") == "failed"
        found = (
            batch.filter(pl.col("n_segments") > 1, pl.col("media_id").is_not_null(), pl.col("start_s").is_not_null())
            .group_by(keys, maintain_order=True)
            .agg(
                pl.col("n_segments").last(),
                pl.col("start_s").filter(~failed).alias("answered"),
                pl.col("start_s").filter(failed).alias("failed"),
            )
            .filter(pl.col("answered").list.len() < pl.col("n_segments"))
        )
        for media_id, root, path, *question, n_segments, answered, with_error in found.iter_rows():
            name = file_path(unescape_path(root), unescape_path(path))
            self._add(media_id, name, QuestionKey(*question), n_segments, answered, with_error)
        if self._files:
            rest = batch.filter(failed, pl.col("n_segments").is_null(), pl.col("media_id").is_not_null())
            for media_id, root, path, *question in rest.select(keys).iter_rows():
                entry = self.get(media_id, file_path(unescape_path(root), unescape_path(path)), QuestionKey(*question))
                if entry is not None:
                    entry.rest_failed = True

    def drop(self, media_id: str | None, path: str, question: QuestionKey | None, *, only_failed: bool) -> None:
        """Remove rows of the file at `path`: for one question or all, with any status or only failed ones."""
        if media_id is None or (file := self._files.get((media_id, path))) is None:
            return
        for one in [question] if question is not None else list(file):
            if only_failed and one in file:
                file[one].failed, file[one].rest_failed = set(), False
            else:
                file.pop(one, None)
        if not file:
            del self._files[media_id, path]

    def move(self, media_id: str, old_path: str, path: str) -> None:
        """Rename the file at `old_path`."""
        if (file := self._files.pop((media_id, old_path), None)) is not None:
            self._files.setdefault((media_id, path), {}).update(file)

    def copy(self, media_id: str, source: str, question: QuestionKey | None, path: str) -> None:
        """Copy rows for one question or all to the file at `path`, which has no rows for them."""
        for one, rows in list(self._files.get((media_id, source), {}).items()):
            if question in (None, one):
                copied = SegmentRows(rows.n_segments, set(rows.answered), set(rows.failed), rows.rest_failed)
                self._files.setdefault((media_id, path), {})[one] = copied

    def _add(
        self,
        media_id: str,
        path: str,
        question: QuestionKey,
        n_segments: int,
        answered: Iterable[float],
        failed: Iterable[float],
    ) -> None:
        file = self._files.setdefault((media_id, path), {})
        rows = file.setdefault(question, SegmentRows(n_segments))
        rows.n_segments = n_segments  # of the newest row
        rows.answered.update(answered)
        rows.failed.update(failed)
        if rows.is_complete and not rows.has_failed:
            self.drop(media_id, path, question, only_failed=False)
