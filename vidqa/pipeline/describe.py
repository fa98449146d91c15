"""The whole run: files -> features -> answers -> table, and the same without questions (`encode`).

Reads as the list of stages. Each stage is a generator over the one before it, so a file goes through all of them
before the run needs room for many more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from vidqa.cache.index import MediaIndex
from vidqa.cache.store import FeatureStore
from vidqa.errors import ItemError, TableError, UsageError, VidqaError
from vidqa.media.scan import ScanResult, scan
from vidqa.pipeline.answer import answer_works
from vidqa.pipeline.encode import encode_works
from vidqa.pipeline.feed import Feed
from vidqa.pipeline.ledger import Ledger
from vidqa.pipeline.loaded import LoadedModel, load_model
from vidqa.pipeline.options import Encoded, RunOptions, Work, default_options
from vidqa.pipeline.progress import QUIET, Reporter, StageClock
from vidqa.pipeline.summary import Summary
from vidqa.prompts.questions import load_questions
from vidqa.records import MediaItem, Question
from vidqa.tables.lock import TableLock
from vidqa.tables.store import Table

#: Media id of a file, and the work that it needs; None when it needs none.
Owed = Callable[[MediaItem, str], Work | None]


@dataclass
class Run:
    """What the stages of one run share."""

    model: LoadedModel
    options: RunOptions
    reporter: Reporter
    summary: Summary
    clock: StageClock

    @classmethod
    def begin(cls, model: LoadedModel | str, options: RunOptions | None, reporter: Reporter) -> Run:
        """Open the model, if it is a name, and start the books."""
        loaded = model if isinstance(model, LoadedModel) else load_model(model, reporter=reporter)
        return cls(loaded, options or default_options(), reporter, Summary(), StageClock())

    def find(self, paths: Sequence[str]) -> ScanResult:
        """Scan, count, and say what is left out.

        Raises:
            VidqaError: there is no media at all.
        """
        with self.clock.stage("read"):
            found = scan(paths)
        for out in found.left_out:
            self.reporter.say(f"left out: {out.path}: {out.reason}", level=2)
        self.summary.files, self.summary.left_out = len(found.items), found.counts()
        if not found.items:
            reasons = ", ".join(f"{number} {reason}" for reason, number in found.counts().items())
            where = ", ".join(paths)
            raise VidqaError(f"no media found in {where}" + (f" (left out: {reasons})" if reasons else ""))
        return found

    def encoded(self, items: Iterable[MediaItem], owed: Owed, questions: Sequence[Question]) -> Generator[Encoded]:
        """Files with their features or their error, as they become ready; none for files that need nothing."""
        store, index = FeatureStore(self.options.cache_dir), MediaIndex(self.options.cache_dir)
        works = self._works(items, index, owed, tuple(questions))
        try:
            with Feed(lambda: works, self.model.bundle, store, index, self.options) as feed:
                for one in encode_works(feed, self.model, store, self.clock, self.options.batch_size):
                    self._count(one)
                    yield one
        finally:
            index.close()

    def _works(
        self, items: Iterable[MediaItem], index: MediaIndex, owed: Owed, questions: tuple[Question, ...]
    ) -> Iterator[Work | Encoded]:
        """Hash each file and ask what it needs. Runs in the feed's thread."""
        for item in items:
            try:
                work = owed(item, index.media_id(item))
            except ItemError as error:  # gone or not readable: the row will say so
                yield Encoded(Work(item, None, questions), error=error)
                continue
            if work is None:
                self.reporter.advance()
            else:
                yield work

    def _count(self, one: Encoded) -> None:
        summary = self.summary
        summary.clips_done += 1
        summary.clips_cached += one.cached
        if one.error is not None:
            summary.clips_failed += 1
            self.reporter.say(f"failed: {one.work.item.rel}: {one.error.kind}: {one.error.what}", level=2)
        elif one.segments:
            summary.video_s += one.segments[0].facts.duration_s or 0.0


def describe(
    paths: str | Sequence[str],
    out: str | Path,
    *,
    questions: Sequence[Question] | None = None,
    model: LoadedModel | str = "demo",
    options: RunOptions | None = None,
    reporter: Reporter = QUIET,
) -> Summary:
    """Ask every question of every clip, and write one row each into a table.

    What the table has already is kept and not asked again.

    Args:
        paths: files, folders and globs.
        out: the table; the suffix picks Parquet, CSV, JSONL or Arrow.
        questions: None for the built-in set `caption`.
        model: name or folder of a bundle, or an opened one.
        options: how the run is done.
        reporter: hears progress and messages.

    Returns:
        What was done, in numbers.

    Raises:
        UsageError: `out` has an unknown suffix or no folder.
        LockedError: another run writes the same table.
        VidqaError: there is no media, or the model, the cache or the table cannot be used.
    """
    start = time.perf_counter()
    run = Run.begin(model, options, reporter)
    asked = tuple(load_questions("caption") if questions is None else questions)
    table = open_table(out)
    run.summary.table = str(out)
    with TableLock(table.path):
        with run.clock.stage("read"):
            table.load()
        found = run.find([paths] if isinstance(paths, str | Path) else paths)
        ledger = Ledger(table, asked, run.model.identity, run.options, run.summary, run.clock)
        try:
            with (
                reporter.progress(len(found.items), "file"),
                # Closed by name: an error below must stop the feed before the ledger is closed.
                closing(run.encoded(found.items, ledger.owed, asked)) as encoded,
            ):
                for answered in answer_works(encoded, run.model, run.options, run.clock):
                    ledger.record(answered)
                    reporter.advance()
        except KeyboardInterrupt:
            reporter.say(f"stopping: what is finished goes into {out}")
            raise
        finally:  # what is finished stays, whatever ended the run
            ledger.close()
    run.summary.close(run.clock, time.perf_counter() - start)
    return run.summary


def encode(
    paths: str | Sequence[str],
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
    run = Run.begin(model, options, reporter)
    found = run.find([paths] if isinstance(paths, str | Path) else paths)
    seen: set[str] = set()

    def owed(item: MediaItem, media_id: str) -> Work | None:
        first = media_id not in seen
        seen.add(media_id)
        return Work(item, media_id) if first else None

    with reporter.progress(len(found.items), "file"), closing(run.encoded(found.items, owed, ())) as encoded:
        for one in encoded:
            reporter.advance()
            if one.error is not None:
                reporter.say(f"failed: {one.work.item.rel}: {one.error.kind}: {one.error.what}")
    run.summary.clips_done -= run.summary.clips_cached  # what was there already was not worked on
    run.summary.close(run.clock, time.perf_counter() - start)
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
