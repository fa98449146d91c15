"""What the stages of one run share, and the first of them: scan, hash, features. The stages after it are describe's.

Each stage is a generator over the one before it, so a file goes through all of them before the run needs room for many
more.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from vidqa.cache.feature_store import FeatureStore
from vidqa.cache.media_index import MediaIndex
from vidqa.common.display import display_path, message_without_path
from vidqa.errors import ItemError, VidqaError
from vidqa.media.scan import ScanResult, scan
from vidqa.pipeline.monitor.reporter import Reporter, StageClock
from vidqa.pipeline.monitor.summary import Summary
from vidqa.pipeline.run.answer_stage import Answered
from vidqa.pipeline.run.encode_stage import encode_works
from vidqa.pipeline.run.hashing import identify_all
from vidqa.pipeline.run.loaded_model import LoadedModel, load_model
from vidqa.pipeline.run.prefetch import Prefetcher
from vidqa.pipeline.run.run_options import RunOptions
from vidqa.records import EncodedItem, MediaItem, Question, WorkItem

#: Media id of a file, and the work that it needs; None when it needs none.
Owed = Callable[[MediaItem, str], WorkItem | None]


@dataclass
class RunContext:
    """What the stages of one run share."""

    model: LoadedModel
    options: RunOptions
    reporter: Reporter
    summary: Summary
    clock: StageClock
    _ready: dict[str, float] = field(default_factory=dict)  # path -> when its features were there

    @classmethod
    def begin(cls, model: LoadedModel | str, options: RunOptions | None, reporter: Reporter) -> RunContext:
        """Open the model, if it is a name, and start the books."""
        loaded = model if isinstance(model, LoadedModel) else load_model(model, reporter=reporter)
        return cls(loaded, options or RunOptions(), reporter, Summary(), StageClock(stop=reporter.stop))

    def find(self, paths: Sequence[str]) -> ScanResult:
        """Scan, count, and say what is left out.

        Raises:
            UsageError: no path at all, or an empty one.
            VidqaError: there is no media at all.
        """
        began = time.perf_counter()
        with self.clock.stage("read"):
            found = scan(paths)
        for out in found.ignored:
            self.reporter.say(f"left out: {display_path(out.path)}: {out.reason}", level=2)
            self.reporter.event("scan", "left out", media=out.path, note=out.reason)
        self.reporter.event("scan", "ok", seconds=time.perf_counter() - began, note=f"{len(found.items)} files")
        self.summary.files, self.summary.left_out = len(found.items), found.counts()
        if not found.items:
            reasons = ", ".join(f"{number} {reason}" for reason, number in found.counts().items())
            where = ", ".join(display_path(os.fspath(path)) for path in paths)
            what = f"no media found in {where}" + (f" (left out: {reasons})" if reasons else "")
            raise VidqaError(what, hint="another path; or is the archive not mounted?")
        return found

    def encoded(
        self, items: Iterable[MediaItem], owed: Owed, questions: Sequence[Question], *, say_failures: int = 2
    ) -> Generator[EncodedItem]:
        """Files with their features or their error, as they become ready; none for files that need nothing.

        Args:
            items: the files.
            owed: what each of them needs.
            questions: of files that cannot be read.
            say_failures: from which level on the reporter says each error. Where rows tell of them, few want to hear.
        """
        store, index = FeatureStore(self.options.cache_dir), MediaIndex(self.options.cache_dir)
        works = self._works(items, index, owed, tuple(questions))
        try:
            with Prefetcher(lambda: works, self.model.bundle, store, index, self.options) as feed:
                for one in encode_works(feed, self.model, store, self.clock, self.options.batch_size):
                    self._count(one, say_failures)
                    yield one
        finally:
            index.close()

    def answered(self, one: Answered) -> None:
        """Log the rows of a file."""
        began = self._ready.pop(one.work.item.path, None)
        if began is None:  # it never came so far; that was logged
            return
        statuses = Counter(row.status for row in one.rows)
        outcome = "failed" if statuses["failed"] else "ok"
        note = ", ".join(f"{number} {status}" for status, number in statuses.items())
        self.reporter.event("answer", outcome, media=one.work.item.path, seconds=time.perf_counter() - began, note=note)

    def _works(
        self, items: Iterable[MediaItem], index: MediaIndex, owed: Owed, questions: tuple[Question, ...]
    ) -> Iterator[WorkItem | EncodedItem]:
        """Hash each file and ask what it needs. Runs in the feed's thread."""
        for item, found in identify_all(index, items):
            if isinstance(found, ItemError):  # gone or not readable: the row will say so
                yield EncodedItem(WorkItem(item, None, questions), error=found)
            elif (work := owed(item, found)) is None:
                self.reporter.advance()
            else:
                yield work

    def _count(self, one: EncodedItem, say_failures: int) -> None:
        summary, path = self.summary, one.work.item.path
        summary.clips_done += 1
        summary.clips_cached += one.cached
        if one.error is not None:
            summary.clips_failed += 1
            said = f"{one.error.kind}: {message_without_path(one.error, path)}"
            self.reporter.say(f"failed: {display_path(one.work.item.rel)}: {said}", level=say_failures)
            self.reporter.event("read" if one.work.media_id is None else "decode", "failed", media=path, note=said)
            return
        if one.segments:
            summary.video_s += one.segments[0].facts.duration_s or 0.0
        summary.segments += 0 if one.cached else len(one.segments)
        self._ready[path] = time.perf_counter()
        if one.cached:
            self.reporter.event("cache", "ok", media=path)
        else:
            self.reporter.event("decode", "ok", media=path, seconds=one.decode_s)
