"""A text and files -> the files (or their segments) by how well they fit it, the best first.

PooledEntry embeddings come from the feature cache; what is not there is decoded, encoded and stored first. Knows the text
tower and the stages up to the encoder; the LLM is not loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import numpy as np

from vidqa.cache.entry import PooledEntry
from vidqa.cache.feature_store import FeatureStore
from vidqa.cache.key import CacheKey
from vidqa.cache.media_index import MediaIndex
from vidqa.common.display import message_without_path
from vidqa.errors import ItemError, UsageError
from vidqa.media.files import Paths, as_path_list
from vidqa.media.segments import plan_segments
from vidqa.pipeline.monitor.reporter import QUIET, Reporter
from vidqa.pipeline.run.loaded_model import LoadedModel
from vidqa.pipeline.run.run_context import RunContext
from vidqa.pipeline.run.run_options import RunOptions
from vidqa.records import EncodedItem, MediaItem, MediaKind, WorkItem


@dataclass(frozen=True)
class Hit:
    """One clip, or one segment of it, at its rank. The order of the fields is that of a table's columns."""

    rank: int  # from 1
    score: float  # cosine of text and clip, -1 to 1
    text: str
    path: str
    root: str
    start_s: float
    end_s: float
    duration_s: float | None
    kind: MediaKind
    media_id: str
    model: str
    encoder_id: str
    vidqa_version: str
    created_at: datetime  # UTC


@dataclass(frozen=True)
class Found:
    """What a search gave."""

    hits: tuple[Hit, ...]
    failed: tuple[tuple[str, ItemError], ...]  # path and reason of each file that could not be ranked
    n_files: int
    n_encoded: int  # files that the cache did not have


def search(
    text: str,
    paths: Paths,
    *,
    top: int | None = None,
    model: LoadedModel | str = "demo",
    options: RunOptions | None = None,
    reporter: Reporter = QUIET,
) -> Found:
    """Rank clips and pictures by how well they fit a text.

    Args:
        text: what is looked for, in a few words or a sentence.
        paths: a file, folder or glob, or several.
        top: how many hits are wanted; None for all.
        model: name or folder of a bundle, or an opened one; it must have a text tower.
        options: how it is done; `segment_s` ranks windows of clips. None takes the user's cache and the defaults.
        reporter: hears progress and messages.

    Returns:
        The hits, the best first; equal scores in the order of paths.

    Raises:
        UsageError: the model has no text tower, or the text is empty or too long for it.
        VidqaError: there is no media, or the model or the cache cannot be used.
    """
    if top is not None and top < 1:
        raise UsageError(f"top must be at least 1, got {top}")
    run = RunContext.begin(model, options, reporter)
    wanted = _normal(run.model.text_encoder.encode([text]))[0]
    items = run.find(as_path_list(paths)).items
    shelf = _Shelf(run)
    with reporter.progress(len(items), "file"), closing(shelf):
        missing = [item for item in items if not shelf.take(item)]
        shelf.encode(missing)
    if not shelf.pooled:
        return Found((), tuple(shelf.failed), len(items), len(missing))
    scores = _normal(np.stack([p.embedding for _, _, p in shelf.pooled])) @ wanted
    place = {id(item): number for number, item in enumerate(items)}
    order = sorted(
        range(len(scores)),
        key=lambda i: (-scores[i], place[id(shelf.pooled[i][0])], shelf.pooled[i][2].start_s),
    )
    who, now = run.model.identity, datetime.now(UTC)
    hits = []
    for rank, i in enumerate(order[:top], start=1):
        item, media_id, p = shelf.pooled[i]
        where = (item.rel, item.root, p.start_s, p.end_s, p.facts.duration_s, p.facts.kind, media_id)
        hits.append(
            Hit(rank, float(scores[i]), text, *where, who.model, who.encoder_id, who.vidqa_version, now),
        )
    return Found(tuple(hits), tuple(shelf.failed), len(items), len(missing))


class _Shelf:
    """Gathers the pooled embedding of every segment."""

    def __init__(self, run: RunContext) -> None:
        self._run = run
        self._store, self._index = FeatureStore(run.options.cache_dir), MediaIndex(run.options.cache_dir)
        self.pooled: list[tuple[MediaItem, str, PooledEntry]] = []
        self.failed: list[tuple[str, ItemError]] = []

    def close(self) -> None:
        """Let go of the cache."""
        self._index.close()

    def take(self, item: MediaItem) -> bool:
        """Take what the cache has of a file; False where a segment is missing there."""
        try:
            media_id = self._index.media_id(item)
        except ItemError as error:
            self._fail(item, error)
            return True
        facts = self._index.facts(media_id)
        if facts is None:
            return False
        found = []
        for segment in plan_segments(facts, self._run.options.segment_s):
            one = self._store.get_pooled(CacheKey(media_id, segment.key, self._run.model.bundle.encoder_id))
            if one is None:
                return False
            found.append((item, media_id, one))
        self.pooled += found
        self._run.reporter.advance()
        return True

    def encode(self, items: Sequence[MediaItem]) -> None:
        """Decode and encode what is missing."""
        if not items:
            return
        self._run.reporter.say(f"{len(items)} of the files are not in the cache and are encoded now")
        with closing(self._run.encoded(items, partial(WorkItem, read_features=False), ())) as encoded:
            for one in encoded:
                self._take_encoded(one)

    def _take_encoded(self, one: EncodedItem) -> None:
        item, media_id = one.work.item, one.work.media_id
        if one.error is not None or media_id is None:
            self._fail(item, one.error or ItemError("unreadable", "the content could not be read"))
        elif one.segments:
            self.pooled += [
                (item, media_id, PooledEntry(s.features.embedding, s.start_s, s.end_s, s.facts)) for s in one.segments
            ]
            self._run.reporter.advance()
        elif not self.take(item):  # another file with the same content was first, and is gone from the cache again
            self._fail(item, ItemError("unreadable", "its features are gone from the cache: search again"))

    def _fail(self, item: MediaItem, error: ItemError) -> None:
        self.failed.append((item.rel, ItemError(error.kind, message_without_path(error, item.path), hint=error.hint)))
        self._run.reporter.advance()


def _normal(rows: np.ndarray) -> np.ndarray:
    """Rows [n, E] at length 1."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, np.finfo(np.float32).tiny))
