"""`encode`: files -> features in the cache, without asking questions."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from functools import partial

from vidqa.cache.feature_store import FeatureStore
from vidqa.cache.key import CacheKey
from vidqa.cache.media_index import MediaIndex
from vidqa.errors import ItemError
from vidqa.media.files import Paths
from vidqa.media.segments import plan_segments
from vidqa.pipeline.monitor.progress_display import Progress
from vidqa.pipeline.monitor.reporter import QUIET, Reporter
from vidqa.pipeline.monitor.summary import Summary
from vidqa.pipeline.monitor.throughput_history import record_rates
from vidqa.pipeline.run.feature_stages import encode_files, in_background
from vidqa.pipeline.run.loaded_model import LoadedModel
from vidqa.pipeline.run.pending import PendingStage, each_content_once
from vidqa.pipeline.run.run_context import RunContext
from vidqa.pipeline.run.run_options import RunOptions
from vidqa.pipeline.run.scanning import find_media
from vidqa.records import WorkItem


def encode(
    paths: Paths,
    *,
    model: LoadedModel | str = "demo",
    options: RunOptions | None = None,
    reporter: Reporter = QUIET,
    progress: Callable[[Progress], object] | None = None,
) -> Summary:
    """Decode and encode every video and image that the feature cache does not have.

    Args:
        paths: one or several files, folders or globs.
        model: name or folder of a bundle, or an open model.
        options: of the run; None for the defaults.
        reporter: receives progress, messages and events.
        progress: called with the progress while the run works; see `describe`.

    Returns:
        Counts of the run.

    Raises:
        UsageError: paths are invalid.
        VidqaError: there is no media, or the model or the cache cannot be used.
    """
    start = time.perf_counter()
    run = RunContext.create(model, options, reporter, progress)
    reporter = run.reporter
    items = find_media(run, run.options.files.paths(paths)).items
    with (
        closing(MediaIndex(run.options.cache_dir)) as index,
        reporter.stop.deferred(),
        reporter.progress(len(items), "file", phase="encode"),
        closing(
            in_background(encode_files(run, items, _pending_stage(run, index), failure_level=1), run.clock)
        ) as encoded,
    ):
        failed: set[str] = set()  # paths of files in progress
        for part in encoded:
            path = part.work.item.path
            if part.error is not None and path not in failed:
                failed.add(path)
                run.summary.record_error(part.work.item.rel, part.error.kind)
            share = len(part.segments) / (part.n_segments or 1)
            reporter.advance_file(path, share, is_last=part.is_last, failed=path in failed)
            if part.is_last:
                failed.discard(path)
    run.summary.clips_done -= run.summary.clips_cached  # cached files needed no work
    run.summary.close(run.clock, time.perf_counter() - start)
    record_rates(run.options.cache_dir, run.model.history_key, run.summary)
    return run.summary


def _pending_stage(run: RunContext, index: MediaIndex) -> PendingStage:
    store = FeatureStore(run.options.cache_dir)

    def is_cached(work: WorkItem) -> bool:
        media_id = str(work.media_id)
        facts = index.facts(media_id)
        try:
            segments = plan_segments(facts, run.options.segment_s) if facts is not None else ()
        except ItemError:
            return False
        encoder_id = run.model.bundle.encoder_id
        return bool(segments) and all(store.has(CacheKey(media_id, segment.key, encoder_id)) for segment in segments)

    return partial(each_content_once, reporter=run.reporter, limit=run.options.files.limit, is_cached=is_cached)
