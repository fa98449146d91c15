"""Which rows are still current, and which are superseded: about older content of a path, or by a replaced model.

Rows are judged together that answer one question about one file with one model and one set of settings (an answer set):

- A path has its *current content*: that of its newest row. Rows about other content of the path are superseded. Rows
  from a time when the file could not be read are superseded once there are newer ones about its content.
- A model is *replaced* if a newer answer set of another model, for the same file, question and settings, has at least
  as many rows that did not fail. A failed attempt with a new model therefore never supersedes answers.

`created_at` decides what is newer; among equals, the order of the table. Other settings never supersede rows.
Scope: frames; no files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import polars as pl

from vidqa.tables.schema import FILE_PATH

#: Columns that all rows of an answer set have in common.
SET_COLUMNS = ["media_id", "root", "path", "question", "model_id", "settings_id"]
#: Columns that `answer_sets` reads.
READ_COLUMNS = [*SET_COLUMNS, "status", "created_at"]


def answer_sets(batches: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Return the answer sets of a table. Memory holds one row for each.

    Args:
        batches: all rows in order, with at least the columns `READ_COLUMNS`.

    Returns:
        `SET_COLUMNS`, then `n_rows`, `reason`: `content` or `model` if the rows are superseded, else null.
    """
    return _with_reason(_grouped(_summarized(batches)))


def with_current(batches: Iterable[pl.DataFrame], sets: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Yield batches with one more column, `current`: false for superseded rows.

    Args:
        batches: rows of the table, with at least the columns `SET_COLUMNS`.
        sets: from `answer_sets`.
    """
    superseded = sets.filter(pl.col("reason").is_not_null()).select(*SET_COLUMNS, pl.lit(False).alias("current"))
    for batch in batches:
        joined = batch.join(superseded, on=SET_COLUMNS, how="left", nulls_equal=True, maintain_order="left")
        yield joined.with_columns(pl.col("current").fill_null(True))


def _summarized(batches: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    start = 0
    for batch in batches:
        numbered = batch.select(READ_COLUMNS).with_row_index("last", start)
        start += batch.height
        yield numbered.group_by(SET_COLUMNS, maintain_order=True).agg(
            pl.len().alias("n_rows").cast(pl.Int64),
            (pl.col("status") != "failed").sum().cast(pl.Int64).alias("n_answered"),
            pl.col("created_at").max(),
            pl.col("last").max().cast(pl.Int64),
        )


def _grouped(parts: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Combine the parts of sets whose rows are in several batches."""
    schema = {**dict.fromkeys(SET_COLUMNS, pl.String()), "n_rows": pl.Int64(), "n_answered": pl.Int64()}
    empty = pl.DataFrame(schema=schema | {"created_at": pl.Datetime("us", "UTC"), "last": pl.Int64()})
    return (
        pl.concat([empty, *(part.select(empty.columns) for part in parts)])
        .group_by(SET_COLUMNS, maintain_order=True)
        .agg(pl.col("n_rows", "n_answered").sum(), pl.col("created_at", "last").max())
    )


def _with_reason(sets: pl.DataFrame) -> pl.DataFrame:
    file = FILE_PATH.alias("file")
    # Rows of tables that do not have the time count as the oldest.
    ordered = sets.with_columns(file).sort("created_at", "last", nulls_last=False, maintain_order=True)
    newest = (
        ordered.filter(pl.col("media_id").is_not_null())
        .group_by("file")
        .agg(pl.col("media_id").last().alias("content"), pl.col("created_at", "last").last().name.prefix("content_"))
    )
    joined = ordered.join(newest, on="file", how="left", maintain_order="left")
    epoch = pl.lit(0).cast(pl.Datetime("us", "UTC"))
    time, content_time = pl.col("created_at").fill_null(epoch), pl.col("content_created_at").fill_null(epoch)
    was_unread = pl.col("media_id").is_null() & (
        (time < content_time) | ((time == content_time) & (pl.col("last") < pl.col("content_last")))
    )
    other_content = (pl.col("media_id") != pl.col("content")).fill_null(False) | was_unread.fill_null(False)
    later_best = pl.col("n_answered").reverse().cum_max().shift(1).reverse()
    replaced = (later_best >= pl.col("n_answered")).fill_null(False)
    return (
        joined.with_columns(
            replaced.over("file", "media_id", "question", "settings_id").alias("replaced"), other_content.alias("other")
        )
        .with_columns(pl.when("other").then(pl.lit("content")).when("replaced").then(pl.lit("model")).alias("reason"))
        .sort("last")
        .select(*SET_COLUMNS, "n_rows", "reason")
    )
