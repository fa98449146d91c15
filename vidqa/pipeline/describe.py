"""`describe`: files and questions -> a table with one row per file, segment and question."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from vidqa.common.disk_space import free_disk_bytes
from vidqa.common.display import display_path, human_bytes, plural
from vidqa.common.file_lock import FileLock
from vidqa.common.output_paths import check_output_parent
from vidqa.errors import TableError, UsageError
from vidqa.media.files import Paths
from vidqa.pipeline.monitor.progress_display import Progress
from vidqa.pipeline.monitor.reporter import QUIET, Reporter
from vidqa.pipeline.monitor.summary import Summary
from vidqa.pipeline.monitor.throughput_history import record_rates
from vidqa.pipeline.run.answer_stage import Answered, answer_items
from vidqa.pipeline.run.bookkeeping import RunBookkeeper
from vidqa.pipeline.run.feature_stages import encode_files
from vidqa.pipeline.run.hardware_limit import measure_hardware
from vidqa.pipeline.run.loaded_model import LoadedModel
from vidqa.pipeline.run.pending import PendingAnswers
from vidqa.pipeline.run.pruning import prune_table
from vidqa.pipeline.run.retry_policy import RetryPolicy
from vidqa.pipeline.run.run_context import RunContext
from vidqa.pipeline.run.run_options import RunOptions
from vidqa.pipeline.run.scanning import find_media
from vidqa.pipeline.table.run_provenance import provenance_of_run
from vidqa.prompts.questions import QuestionSources, gather_questions
from vidqa.records import MediaItem, Question, type_name
from vidqa.tables.table import Table


def describe(
    paths: Paths,
    out: str | Path,
    *,
    questions: QuestionSources = "caption",
    model: LoadedModel | str = "demo",
    options: RunOptions | None = None,
    reporter: Reporter = QUIET,
    progress: Callable[[Progress], object] | None = None,
) -> Summary:
    """Ask questions about every video and image, and write one row each into a table.

    Rows that the table already has are kept and not computed again.

    Args:
        paths: one or several files, folders or globs.
        out: the table. The suffix selects Parquet, CSV, JSONL or Arrow; a trailing slash selects a Parquet dataset.
        questions: one or several of: the text of a question, the name of a question set, a TOML file, a `Question`. A
            string of more than letters, digits, `-`, `_` and `.` is the text of a question, unless it ends in .toml or
            is a path without spaces.
        model: name or folder of a bundle, or an open model.
        options: of the run; None for the defaults.
        reporter: receives progress, messages and events.
        progress: called in the calling thread with a `Progress`: at the start and end of each phase, and in between
            when a file or a part of a long one is finished, at most twice a second. If it raises an exception, the run
            stops, the finished rows are in the table, and the exception is raised here. The same call continues later.

    Returns:
        Counts of the run.

    Raises:
        UsageError: `out` has an unknown suffix or its folder does not exist, or paths or questions are invalid.
        LockedError: another run is writing the table.
        VidqaError: there is no media, or the model, the cache or the table cannot be used.
    """
    start = time.perf_counter()
    run = RunContext.create(model, options, reporter, progress)
    reporter = run.reporter
    run.model.require_packages()
    question_list = gather_questions(questions)
    _warn_about_types(question_list, reporter)
    table = open_table(out, for_spreadsheets=run.options.spreadsheet)
    searched = run.options.files.paths(paths)
    run.summary.table = str(out)
    with FileLock(table.path) as lock:
        if lock.stale_holder is not None:
            _report_stale_lock(str(out), str(lock.stale_holder), reporter)
        with run.clock.stage("read"):
            _recover(table.load(), reporter)
        found = find_media(run, searched)
        n_files = min(len(found.items), run.options.files.limit or len(found.items))
        _warn_about_space(table, n_files * len(question_list), reporter)
        pending = PendingAnswers(table, question_list, run, RetryPolicy(table.path).load())
        ids = {pending.cells[question.text]: question.id for question in question_list}
        run.summary.renamed_questions = table.update_question_ids(ids)
        table.set_provenance(provenance_of_run(run.model, run.options, question_list))
        bookkeeper = RunBookkeeper(pending, run)
        with reporter.stop.deferred():
            try:
                _process(run, found.items, pending, bookkeeper)
                if run.options.prune_missing:
                    prune_table(run, bookkeeper, searched, found)
            except KeyboardInterrupt:
                reporter.message(f"stopping: writing finished rows to {display_path(str(out))}")
                raise
            finally:  # finished rows are kept, whatever ended the run
                bookkeeper.close()
    run.summary.close(run.clock, time.perf_counter() - start)
    measure_hardware(run.summary.meter, run.model)
    record_rates(run.options.cache_dir, run.model.history_key, run.summary)
    return run.summary


def _process(run: RunContext, items: Sequence[MediaItem], pending: PendingAnswers, bookkeeper: RunBookkeeper) -> None:
    """Take every file through all stages."""
    with (
        run.reporter.progress(len(items), "file", phase="answer"),
        # After an error all threads must stop before the bookkeeper is closed: `closing` does not leave it to the
        # garbage collector.
        closing(answer_items(encode_files(run, items, pending), run.model, run.options, run.clock)) as rows,
    ):
        statuses: dict[MediaItem, Counter[str]] = {}  # of the new rows of each file in progress
        for answered in rows:
            bookkeeper.record(answered)
            item = answered.work.item
            statuses.setdefault(item, Counter()).update(row.status for row in answered.rows)
            _log_answered(run, answered, statuses[item])
            has_failed = statuses[item]["failed"] > 0
            run.reporter.advance_file(item.path, answered.share, is_last=answered.is_last, failed=has_failed)
            if answered.is_last:
                del statuses[item]


def _log_answered(run: RunContext, answered: Answered, statuses: Counter[str]) -> None:
    """Log a file when the LLM has answered its questions, and print at level 2 which of them failed."""
    item = answered.work.item
    if answered.seconds is not None:
        outcome = "failed" if statuses["failed"] else "ok"
        note = ", ".join(f"{number} {status}" for status, number in statuses.items())
        run.reporter.event("answer", outcome, media=item.path, seconds=answered.seconds, note=note)
    for text in dict.fromkeys(f"{row.error_kind}: {row.error}" for row in answered.rows if row.status == "failed"):
        run.reporter.message(f"failed: {display_path(item.rel)}: {text}", level=2)


def open_table(out: str | Path, *, for_spreadsheets: bool = False) -> Table:
    """Return the table at `out`, which is not loaded yet.

    Args:
        out: path of the table, which need not exist.
        for_spreadsheets: escape formulas in CSV.

    Raises:
        TypeError: `out` is not a path.
        UsageError: the suffix is unknown, or the folder does not exist.
    """
    if not isinstance(out, str | os.PathLike):
        raise TypeError(f"out must be a path, not {type_name(out)}")
    try:
        table = Table(out, for_spreadsheets=for_spreadsheets)
    except TableError as error:  # the name is wrong, not the file
        raise UsageError(error.what, hint=error.hint) from error
    check_output_parent(out)
    return table


def _warn_about_types(questions: Sequence[Question], reporter: Reporter) -> None:
    if types := sorted({question.type for question in questions} - {"text"}):
        reporter.message_once(
            f"note: questions of type {', '.join(types)} are asked as free text in this version: "
            "the model does not see `choices`, and the columns value and confidence stay empty"
        )


def _warn_about_space(table: Table, n_rows: int, reporter: Reporter) -> None:
    """Compare the free space with what at least `n_rows` rows need, of which the table may have some."""
    n_new, free = n_rows - len(table), free_disk_bytes(table.path.parent)
    needed = table.bytes_needed(n_new)
    if n_new > 0 and needed > free:
        where = display_path(str(table.path.parent))
        reporter.message(
            f"warning: the table may need about {human_bytes(needed)}, and {human_bytes(free)} are free in {where}"
        )


def _recover(table: Table, reporter: Reporter) -> None:
    """Merge rows that a killed run had finished."""
    if number := table.recover():
        text = f"recovered {plural(number, 'row')} of an interrupted run into {display_path(str(table.path))}"
        reporter.message(text)
        reporter.event("write", "recovered", note=text)


def _report_stale_lock(out: str, holder: str, reporter: Reporter) -> None:
    text = f"removed a stale lock on {display_path(out)} (held by {holder}, which no longer runs)"
    reporter.message(text)
    reporter.event("run", "removed a stale lock", note=text)
