"""Files -> features: the stages hashing, pending, prefetch and encoding, connected.

Each stage is a generator over the previous one, so a file passes through all of them before memory is needed for many
more.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import replace

from vidqa.cache.feature_store import FeatureStore
from vidqa.cache.media_index import MediaIndex
from vidqa.common.display import display_path, message_without_path
from vidqa.errors import MediaError
from vidqa.pipeline.run.encode_stage import encode_items
from vidqa.pipeline.run.hashing import hash_files
from vidqa.pipeline.run.pending import PendingStage
from vidqa.pipeline.run.prefetch import Prefetcher
from vidqa.pipeline.run.run_context import RunContext
from vidqa.records import EncodedItem, MediaItem


def encode_files(
    run: RunContext, items: Iterable[MediaItem], pending: PendingStage, *, failure_level: int = 2, note_level: int = 2
) -> Generator[EncodedItem]:
    """Yield files with their features, or with the error that stopped them, as they become ready.

    Close the generator to stop the stages; an interrupted run must do so before it writes its last rows.

    Args:
        run: its counts, clock and event log are updated.
        items: the files.
        pending: the stage that selects the files with pending work; it runs in the thread of the prefetcher.
        failure_level: verbosity from which each failed file is printed. Commands that write rows keep it at 2.
        note_level: verbosity from which each file with notes is printed. Commands that print a summary keep it at 2.
    """
    store, index = FeatureStore(run.options.cache_dir), MediaIndex(run.options.cache_dir)
    try:
        work = pending(hash_files(index, items))
        with Prefetcher(work, run.model.bundle, store, index, run.options) as prefetched:
            for encoded in encode_items(prefetched, run.model, store, run.clock, run.options.batch_size):
                checked = _without_notes(encoded) if run.options.strict else encoded
                _record(run, checked, failure_level, note_level)
                yield checked
    finally:
        index.close()


def _without_notes(encoded: EncodedItem) -> EncodedItem:
    """Return the file as a failed one if it has notes. Its features stay in the cache."""
    if encoded.error is not None or encoded.facts is None or not encoded.facts.notes:
        return encoded
    what = f"{display_path(encoded.work.item.path)}: {'; '.join(encoded.facts.notes)}"
    error = MediaError("partial", what, hint="repair or replace the file, or run without --strict")
    return replace(encoded, segments=(), error=error, cached=False)


def _record(run: RunContext, encoded: EncodedItem, failure_level: int, note_level: int) -> None:
    """Count and log a file that has left the encode stage."""
    summary, path = run.summary, encoded.work.item.path
    summary.clips_done += 1
    summary.clips_cached += encoded.cached
    if encoded.error is not None:
        summary.clips_failed += 1
        text = f"{encoded.error.kind}: {message_without_path(encoded.error, path)}"
        run.reporter.message(f"failed: {display_path(encoded.work.item.rel)}: {text}", level=failure_level)
        run.reporter.event("read" if encoded.work.media_id is None else "decode", "failed", media=path, note=text)
        return
    if encoded.segments:
        summary.video_s += encoded.segments[0].facts.duration_s or 0.0
    summary.segments += 0 if encoded.cached else len(encoded.segments)
    notes = encoded.facts.notes if encoded.facts is not None else ()
    if notes:
        summary.record_notes(encoded.work.item.rel, notes)
        run.reporter.message(f"problem: {display_path(encoded.work.item.rel)}: {'; '.join(notes)}", level=note_level)
    stage, seconds = ("cache", None) if encoded.cached else ("decode", encoded.decode_s)
    run.reporter.event(stage, "ok", media=path, seconds=seconds, note="; ".join(notes))
