"""The whole run: files -> features -> answers -> table, and the same without questions (`encode`). Reads as the list of
stages; `run.py` has what they share.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from vidqa.common.display import display_path
from vidqa.common.file_lock import FileLock
from vidqa.errors import TableError, UsageError
from vidqa.media.files import Paths, as_path_list
from vidqa.pipeline.monitor.reporter import QUIET, Reporter
from vidqa.pipeline.monitor.summary import Summary
from vidqa.pipeline.monitor.throughput_history import remember
from vidqa.pipeline.run.answer_stage import answer_works
from vidqa.pipeline.run.bookkeeping import RunBookkeeper
from vidqa.pipeline.run.hardware_limit import hold_against_hardware
from vidqa.pipeline.run.loaded_model import LoadedModel
from vidqa.pipeline.run.pruning import vanished
from vidqa.pipeline.run.retry_policy import RetryPolicy
from vidqa.pipeline.run.run_context import RunContext
from vidqa.pipeline.run.run_options import RunOptions
from vidqa.prompts.questions import QuestionSources, gather_questions
from vidqa.records import MediaItem, Question, WorkItem
from vidqa.tables.table import Table


def describe(
    paths: Paths,
    out: str | Path,
    *,
    questions: QuestionSources = "caption",
    model: LoadedModel | str = "demo",
    options: RunOptions | None = None,
    reporter: Reporter = QUIET,
) -> Summary:
    """Ask every question of every clip, and write one row each into a table.

    What the table has already is kept and not asked again.

    Args:
        paths: a file, folder or glob, or several.
        out: the table; the suffix picks Parquet, CSV, JSONL or Arrow; a slash at the end makes a data set of Parquet.
        questions: name of a set, a TOML file, a `Question`, or several of these.
        model: name or folder of a bundle, or an opened one.
        options: how the run is done.
        reporter: hears progress, messages and events.

    Returns:
        What was done, in numbers.

    Raises:
        UsageError: `out` has an unknown suffix or no folder, or something is wrong with paths or questions.
        LockedError: another run writes the same table.
        VidqaError: there is no media, or the model, the cache or the table cannot be used.
    """
    start = time.perf_counter()
    run = RunContext.begin(model, options, reporter)
    asked = gather_questions(questions)
    _say_if_typed(asked, reporter)
    table = open_table(out)
    searched = as_path_list(paths)
    run.summary.table = str(out)
    with FileLock(table.path) as lock:
        if lock.stale_holder is not None:
            _report_stale_lock(str(out), str(lock.stale_holder), reporter)
        with run.clock.stage("read"):
            _recover(table.load(), reporter)
        found = run.find(searched)
        ledger = RunBookkeeper(table, asked, run, RetryPolicy(table.path).load())
        with reporter.stop.held():
            try:
                _work(run, ledger, found.items, asked)
                if run.options.prune_missing:
                    ledger.prune(vanished(searched))
            except KeyboardInterrupt:
                reporter.say(f"stopping: what is finished goes into {out}")
                raise
            finally:  # what is finished stays, whatever ended the run
                ledger.close()
    run.summary.close(run.clock, time.perf_counter() - start)
    hold_against_hardware(run.summary.meter, run.model)
    remember(run.options.cache_dir, run.model, run.summary)
    return run.summary


def _work(run: RunContext, ledger: RunBookkeeper, items: Sequence[MediaItem], asked: Sequence[Question]) -> None:
    """Take every file through all stages."""
    with (
        run.reporter.progress(len(items), "file"),
        # Closed by name: an error below must stop the feed before the ledger is closed.
        closing(run.encoded(items, ledger.owed, asked)) as encoded,
    ):
        for answered in answer_works(encoded, run.model, run.options, run.clock):
            ledger.record(answered)
            run.answered(answered)
            run.reporter.advance()


def encode(
    paths: Paths,
    *,
    model: LoadedModel | str = "demo",
    options: RunOptions | None = None,
    reporter: Reporter = QUIET,
) -> Summary:
    """Fill the feature cache and ask nothing.

    Args and Raises as for `describe`.

    Returns:
        What was done, in numbers.
    """
    start = time.perf_counter()
    run = RunContext.begin(model, options, reporter)
    found = run.find(as_path_list(paths))
    seen: set[str] = set()

    def owed(item: MediaItem, media_id: str) -> WorkItem | None:
        first = media_id not in seen
        seen.add(media_id)
        return WorkItem(item, media_id, read_features=False) if first else None

    with (
        reporter.stop.held(),
        reporter.progress(len(found.items), "file"),
        closing(run.encoded(found.items, owed, (), say_failures=1)) as encoded,
    ):
        for one in encoded:
            reporter.advance()
            if one.error is not None:
                run.summary.errors[one.error.kind] += 1
    run.summary.clips_done -= run.summary.clips_cached  # what was there already was not worked on
    run.summary.close(run.clock, time.perf_counter() - start)
    remember(run.options.cache_dir, run.model, run.summary)
    return run.summary


def open_table(out: str | Path) -> Table:
    """The table at `out`, not loaded yet.

    Raises:
        UsageError: unknown suffix, or no such folder.
    """
    try:
        table = Table(out)
    except TableError as error:  # the name is wrong, not the file
        raise UsageError(error.what, hint=error.hint) from error
    if not table.path.parent.is_dir():
        raise UsageError(f"{out}: the folder {table.path.parent} does not exist", hint=f"mkdir -p {table.path.parent}")
    return table


def _say_if_typed(asked: Sequence[Question], reporter: Reporter) -> None:
    """Who gives an answer a type must not think that it is bound by it."""
    if kinds := sorted({question.type for question in asked} - {"text"}):
        reporter.say_once(
            f"note: questions of type {', '.join(kinds)} are asked as free text in this version: "
            "`choices` are not shown to the model, and the columns value and confidence stay empty"
        )


def _recover(table: Table, reporter: Reporter) -> None:
    """Bring home what a run that was killed had finished."""
    if number := table.recover():
        text = f"{number} rows that an interrupted run had finished are now in {display_path(str(table.path))}"
        reporter.say(text)
        reporter.event("write", "recovered", note=text)


def _report_stale_lock(out: str, holder: str, reporter: Reporter) -> None:
    text = f"removed a stale lock on {display_path(out)} (held by {holder}, which no longer runs)"
    reporter.say(text)
    reporter.event("run", "removed a stale lock", note=text)
