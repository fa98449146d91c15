"""`search`: a text and files -> the files, or their segments, ranked by how well they match the text.

Embeddings come from the feature cache; files that are not cached are encoded first. The LLM is not loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from numbers import Integral

import numpy as np

from vidqa.cache.entry import PooledEntry
from vidqa.cache.feature_store import FeatureStore
from vidqa.cache.key import CacheKey
from vidqa.cache.media_index import MediaIndex
from vidqa.common.display import message_without_path, plural
from vidqa.errors import ItemError, UsageError
from vidqa.media.files import Paths
from vidqa.media.segments import plan_segments
from vidqa.pipeline.monitor.progress_display import Progress
from vidqa.pipeline.monitor.reporter import QUIET, Reporter
from vidqa.pipeline.run.feature_stages import encode_files
from vidqa.pipeline.run.loaded_model import LoadedModel
from vidqa.pipeline.run.pending import every_file
from vidqa.pipeline.run.run_context import RunContext
from vidqa.pipeline.run.run_options import RunOptions
from vidqa.pipeline.run.scanning import find_media, first_files
from vidqa.prompts.plain_text import check_text
from vidqa.records import EncodedItem, MediaItem, MediaKind, Segment, type_name


@dataclass(frozen=True)
class SearchHit:
    """A file, or one segment of it, with its rank. The fields are in the order of a table's columns."""

    rank: int  # from 1
    score: float  # cosine similarity of text and segment, -1 to 1
    text: str  # that was searched for
    path: str  # relative to root
    root: str  # absolute
    start_s: float  # of the segment
    end_s: float  # of the segment
    duration_s: float | None  # of the file; None for images
    kind: MediaKind  # image or video
    media_id: str  # digest of the content
    model: str  # name of the model
    encoder_id: str  # digest of everything in the model that changes features
    vidqa_version: str  # that computed the score
    created_at: datetime  # UTC

    def __repr__(self) -> str:
        """Return what a person looks for first; `dataclasses.asdict` has all fields."""
        names = ("rank", "score", "path", "start_s", "end_s")
        return f"SearchHit({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"


@dataclass(frozen=True)
class SearchResult:
    """Hits of a search, and the files that could not be searched."""

    hits: tuple[SearchHit, ...]  # best first
    failed: tuple[tuple[str, ItemError], ...]  # path and error of each file that could not be ranked
    n_files: int  # media files that were found
    n_encoded: int  # files that were not cached
    path_problems: Mapping[str, str]  # path that does not exist, cannot be read or contains no media -> reason
    excluded: Mapping[str, int]  # number of files and folders by option


def search(
    text: str,
    paths: Paths,
    *,
    top: int | None = None,
    model: LoadedModel | str = "demo",
    options: RunOptions | None = None,
    reporter: Reporter = QUIET,
    progress: Callable[[Progress], object] | None = None,
) -> SearchResult:
    """Rank videos and images by how well they match a text.

    Args:
        text: a few words or a sentence.
        paths: one or several files, folders or globs.
        top: maximum number of hits; None for all.
        model: name or folder of a bundle, or an open model; it must have a text encoder.
        options: of the run; with `segment_s`, segments are ranked instead of files. None for the defaults.
        reporter: receives progress and messages.
        progress: called with the progress while the run works; see `describe`.

    Returns:
        The hits, best first; equal scores in order of paths and time.

    Raises:
        TypeError: an argument has the wrong type.
        UsageError: the model has no text encoder, or the text is empty, too long for it or not valid Unicode.
        VidqaError: there is no media, or the model or the cache cannot be used.
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, not {type_name(text)}")
    check_text(text)
    if top is not None and (not isinstance(top, Integral) or isinstance(top, bool)):
        raise TypeError(f"top must be an int or None, not {type_name(top)}")
    if top is not None and top < 1:
        raise UsageError(f"top must be at least 1, got {top}")
    run = RunContext.create(model, options, reporter, progress)
    reporter = run.reporter
    query = _normalized(run.model.text_encoder.encode([text]))[0]
    items = first_files(run, find_media(run, run.options.files.paths(paths)))
    embeddings = _Embeddings(run)
    with reporter.progress(len(items), "file", phase="search"), closing(embeddings):
        missing = [item for item in items if not embeddings.load(item)]
        embeddings.encode(missing)
    failed = tuple(embeddings.failed)
    if not embeddings.segments:
        return SearchResult((), failed, len(items), len(missing), run.summary.path_problems, run.summary.excluded)
    scores = _normalized(np.stack([pooled.embedding for _, _, pooled in embeddings.segments])) @ query
    position = {item.path: number for number, item in enumerate(items)}

    def sort_key(i: int) -> tuple[float, int, float]:
        item, _, pooled = embeddings.segments[i]
        return -scores[i], position[item.path], pooled.start_s

    identity, now = run.model.identity, datetime.now(UTC)
    hits = []
    for rank, i in enumerate(sorted(range(len(scores)), key=sort_key)[:top], start=1):
        item, media_id, pooled = embeddings.segments[i]
        hits.append(
            SearchHit(
                rank=rank,
                score=float(scores[i]),
                text=text,
                path=item.rel,
                root=item.root,
                start_s=pooled.start_s,
                end_s=pooled.end_s,
                duration_s=pooled.facts.duration_s,
                kind=pooled.facts.kind,
                media_id=media_id,
                model=identity.model,
                encoder_id=identity.encoder_id,
                vidqa_version=identity.vidqa_version,
                created_at=now,
            )
        )
    return SearchResult(tuple(hits), failed, len(items), len(missing), run.summary.path_problems, run.summary.excluded)


class _Embeddings:
    """Collects the embedding of every segment."""

    def __init__(self, run: RunContext) -> None:
        self._run = run
        self._store, self._index = FeatureStore(run.options.cache_dir), MediaIndex(run.options.cache_dir)
        self.segments: list[tuple[MediaItem, str, PooledEntry]] = []  # with the media_id
        self.failed: list[tuple[str, ItemError]] = []
        self._failed_items: set[MediaItem] = set()
        self._encoded: dict[MediaItem, dict[float, PooledEntry]] = {}  # new ones of files in progress, by start

    def close(self) -> None:
        self._index.close()

    def load(self, item: MediaItem) -> bool:
        """Load the embeddings of a file from the cache; return False if one is missing."""
        try:
            media_id = self._index.media_id(item)
        except ItemError as error:
            self._fail(item, error)
            self._run.reporter.advance(failed=1)
            return True
        facts = self._index.facts(media_id)
        if facts is None:
            return False
        loaded = []
        try:
            segments = plan_segments(facts, self._run.options.segment_s)
        except ItemError as error:
            self._fail(item, error)
            self._run.reporter.advance(failed=1)
            return True
        for segment in segments:
            if (pooled := self._pooled(media_id, segment)) is None:
                return False
            loaded.append((item, media_id, pooled))
        self.segments += loaded
        self._run.reporter.advance()
        return True

    def encode(self, items: Sequence[MediaItem]) -> None:
        """Encode files that are not cached."""
        if not items:
            return
        self._run.reporter.message(
            f"encoding {plural(len(items), 'file')} that {'is' if len(items) == 1 else 'are'} not cached"
        )
        pending = partial(every_file, read_features=False)
        with closing(encode_files(self._run, items, pending)) as encoded:
            for one in encoded:
                self._add(one)

    def _add(self, part: EncodedItem) -> None:
        """Take the embeddings of a part of a file, and those of its cached segments with the last part."""
        item, media_id = part.work.item, part.work.media_id
        new = self._encoded.setdefault(item, {})
        new |= {s.start_s: PooledEntry(s.features.embedding, s.start_s, s.end_s, s.facts) for s in part.segments}
        if part.error is not None:
            self._fail(item, part.error)
        if part.is_last:
            del self._encoded[item]
            if media_id is not None:
                cached = () if part.facts is None else plan_segments(part.facts, self._run.options.segment_s)
                for segment in cached:
                    if segment.start_s not in new and (pooled := self._pooled(media_id, segment)) is not None:
                        new[segment.start_s] = pooled
                self.segments += ((item, media_id, new[start_s]) for start_s in sorted(new))
            if not new and part.error is None:  # a duplicate was encoded first, and its entry has been removed since
                self._fail(item, ItemError("unreadable", "its features were removed from the cache: search again"))
        share = len(part.segments) / (part.n_segments or 1)
        self._run.reporter.advance_file(item.path, share, is_last=part.is_last, failed=item in self._failed_items)

    def _pooled(self, media_id: str, segment: Segment) -> PooledEntry | None:
        return self._store.get_pooled(CacheKey(media_id, segment.key, self._run.model.bundle.encoder_id))

    def _fail(self, item: MediaItem, error: ItemError) -> None:
        if item in self._failed_items:
            return
        self._failed_items.add(item)
        self.failed.append((item.rel, ItemError(error.kind, message_without_path(error, item.path), hint=error.hint)))


def _normalized(rows: np.ndarray) -> np.ndarray:
    """Scale finite rows [n, E] to length 1; rows of zeros stay as they are."""
    tiny = np.finfo(np.float32).tiny
    scaled = rows / np.maximum(np.abs(rows).max(axis=1, keepdims=True), tiny)  # squares of large values would overflow
    return np.asarray(scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), tiny))
