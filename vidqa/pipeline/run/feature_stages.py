"""Files -> features: the stages hashing, pending, prefetch and encoding, connected.

Each stage is a generator over the previous one, so a file passes through all of them before memory is needed for many
more. `encode` and `train` run them in a thread, so that a signal ends the command in the middle of a batch; `describe`
and `ask` have such a thread of their own, see answer_stage.py.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace

from vidqa.cache.feature_store import FeatureStore
from vidqa.cache.media_index import MediaIndex
from vidqa.common.display import display_path, message_without_path
from vidqa.errors import ItemError, MediaError
from vidqa.pipeline.monitor.reporter import StageClock
from vidqa.pipeline.monitor.signals import GRACE_S, WORK_THREADS
from vidqa.pipeline.run.encode_stage import encode_items
from vidqa.pipeline.run.hashing import hash_files
from vidqa.pipeline.run.pending import HashedFile, PendingStage
from vidqa.pipeline.run.prefetch import Prefetcher
from vidqa.pipeline.run.run_context import RunContext
from vidqa.records import EncodedItem, MediaFacts, MediaItem, WorkItem

_POLL_S = 0.1


def encode_files(
    run: RunContext, items: Sequence[MediaItem], pending: PendingStage, *, failure_level: int = 2, note_level: int = 2
) -> Generator[EncodedItem]:
    """Yield files with their features, or with the error that stopped them, as they become ready.

    A file arrives in parts of one or several segments; `is_last` marks the last one. Close the generator to stop the
    stages, or cancel the clock of the run from another thread.

    Args:
        run: its counts, clock and event log are updated.
        items: the files.
        pending: the stage that selects the files with pending work; it runs in the thread of the prefetcher.
        failure_level: verbosity from which each failed file is printed. Commands that write rows keep it at 2.
        note_level: verbosity from which each file with notes is printed. Commands that print a summary keep it at 2.
    """
    store, index = FeatureStore(run.options.cache_dir), MediaIndex(run.options.cache_dir)
    log = _FileLog(run, failure_level, note_level)
    refused: set[MediaItem] = set()  # files with notes in a strict run, of which more parts follow
    try:
        work = _pending_work(run, items, pending, index)
        with Prefetcher(work, run.model.bundle, store, index, run.options, run.clock.cancelled) as prefetched:
            for part in encode_items(prefetched, run.model, store, run.clock, run.options.batch_size):
                checked = _without_notes(part, refused) if run.options.strict else part
                log.add(checked)
                yield checked
    finally:
        index.close()


def _pending_work(
    run: RunContext, items: Sequence[MediaItem], pending: PendingStage, index: MediaIndex
) -> Iterator[WorkItem | EncodedItem]:
    """Yield the pending work. Once a stage has as many files as `--limit` allows, the others are not even hashed."""
    n_hashed = 0

    def hashed() -> Iterator[HashedFile]:
        nonlocal n_hashed
        for file in hash_files(index, items):
            n_hashed += 1
            yield file

    yield from pending(hashed())
    if not run.clock.cancelled.is_set():
        run.summary.exclude_rest(len(items) - n_hashed)
        run.reporter.advance(len(items) - n_hashed)


def _without_notes(part: EncodedItem, refused: set[MediaItem]) -> EncodedItem:
    """Return a part of a file as failed if the file has notes. Its features stay in the cache.

    Args:
        part: of a file. The first part has the error of the file, and the others are empty.
        refused: files with notes; updated.
    """
    item = part.work.item
    if item in refused:
        part = replace(part, segments=(), error=None, failed=(), cached=False)
    elif part.error is None and part.facts is not None and part.facts.notes:
        refused.add(item)
        what = f"{display_path(item.path)}: {'; '.join(part.facts.notes)}"
        error = MediaError("partial", what, hint="repair or replace the file, or run without --strict")
        part = replace(part, segments=(), error=error, cached=False)
    if part.is_last:
        refused.discard(item)
    return part


@dataclass
class _FileSoFar:
    """Results of the parts of a file so far; more parts follow."""

    errors: list[ItemError] = field(default_factory=list)
    facts: MediaFacts | None = None
    decode_s: float = 0.0
    n_segments: int = 0  # with features


class _FileLog:
    """Counts and logs the files that leave the encode stage, each when its last part does."""

    def __init__(self, run: RunContext, failure_level: int, note_level: int) -> None:
        self._run, self._failure_level, self._note_level = run, failure_level, note_level
        self._files: dict[MediaItem, _FileSoFar] = {}

    def add(self, part: EncodedItem) -> None:
        """Count one part of a file."""
        file = self._files.setdefault(part.work.item, _FileSoFar())
        file.decode_s += part.decode_s
        file.facts = part.facts or file.facts
        file.n_segments += len(part.segments)
        self._run.summary.segments += 0 if part.cached else len(part.segments)
        if part.error is not None:
            file.errors.append(part.error)
            self._log_error(part, part.error)
        if part.is_last:
            self._finish(part, self._files.pop(part.work.item))

    def _log_error(self, part: EncodedItem, error: ItemError) -> None:
        item = part.work.item
        text = f"{error.kind}: {message_without_path(error, item.path)}"
        if part.failed:
            text += f" ({len(part.failed)} of {part.n_segments} segments)"
        self._run.reporter.message(f"failed: {display_path(item.rel)}: {text}", level=self._failure_level)
        stage = "read" if part.work.media_id is None else "decode"
        self._run.reporter.event(stage, "failed", media=item.path, note=text)

    def _finish(self, last: EncodedItem, file: _FileSoFar) -> None:
        run, item = self._run, last.work.item
        run.summary.clips_done += 1
        run.summary.clips_cached += last.cached
        run.summary.clips_failed += bool(file.errors)
        if file.errors and not file.n_segments:
            return
        notes = file.facts.notes if file.facts is not None else ()
        if file.n_segments:
            run.summary.video_s += (file.facts.duration_s if file.facts is not None else None) or 0.0
        if notes:
            run.summary.record_notes(item.rel, notes)
            run.reporter.message(f"problem: {display_path(item.rel)}: {'; '.join(notes)}", level=self._note_level)
        if not file.errors:
            stage, seconds = ("cache", None) if last.cached else ("decode", file.decode_s)
            run.reporter.event(stage, "ok", media=item.path, seconds=seconds, note="; ".join(notes))


class _End:
    """Last entry of the queue of `in_background`."""


def in_background(parts: Generator[EncodedItem], clock: StageClock) -> Generator[EncodedItem]:
    """Yield what another generator yields, which runs in a thread. Close this one to end both.

    Args:
        parts: of files, from `encode_files`; closed in the thread.
        clock: of the run; cancelled when the run ends early.

    Raises:
        KeyboardInterrupt: a signal has arrived that `clock.stop` handles. The batch that is being encoded is finished
            if that takes no longer than `GRACE_S`.
    """
    entries: queue.Queue[EncodedItem | _End | BaseException] = queue.Queue(1)

    def put(entry: EncodedItem | _End | BaseException) -> None:
        while not clock.cancelled.is_set():
            try:
                return entries.put(entry, timeout=_POLL_S)
            except queue.Full:
                continue

    def run() -> None:
        try:
            for part in parts:
                put(part)
        except BaseException as error:  # noqa: BLE001 - raised in the main thread
            put(error)
        finally:
            parts.close()
        put(_End())

    thread = threading.Thread(target=run, name=WORK_THREADS[0], daemon=True)
    thread.start()
    try:
        while True:
            with clock.stop.interruptible():
                try:
                    entry = entries.get(timeout=_POLL_S)
                except queue.Empty:
                    continue
            if isinstance(entry, _End):
                thread.join()
                return
            if isinstance(entry, BaseException):
                raise entry
            yield entry
    finally:
        if thread.is_alive():
            clock.cancelled.set()
            thread.join(GRACE_S)
