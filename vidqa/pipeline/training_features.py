"""Features of training media: from the cache, after encoding the missing ones, or encoded on the fly."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

from vidqa.cache.feature_store import FeatureStore
from vidqa.cache.key import CacheKey
from vidqa.cache.media_index import MediaIndex
from vidqa.common.devices import cpu_threads
from vidqa.common.display import display_path, human_bytes, message_without_path
from vidqa.encoders.preprocess import preprocess
from vidqa.errors import ItemError, MediaError, TrainError
from vidqa.media.workers.decode_pool import DecodeJob, DecodePool
from vidqa.model.bundle.bundle import Bundle
from vidqa.pipeline.monitor.reporter import Reporter
from vidqa.pipeline.run.feature_stages import encode_files, in_background
from vidqa.pipeline.run.loaded_model import LoadedModel
from vidqa.pipeline.run.pending import every_file
from vidqa.pipeline.run.run_context import RunContext
from vidqa.pipeline.run.run_options import RunOptions
from vidqa.records import (
    WHOLE,
    EncodedItem,
    EncodedSegment,
    EncoderInput,
    Features,
    MediaFacts,
    MediaItem,
    Segment,
)
from vidqa.training.data.sample import MediaRef, SampleError
from vidqa.training.stage.checkpoints import require_disk_space

_ENCODE_HINT = "run the same command again: it encodes missing features first"


class CachedFeatures:
    """Features from the cache.

    Args:
        store: the cache.
        encoder_id: of the encoder that computed the features.
    """

    def __init__(self, store: FeatureStore, encoder_id: str) -> None:
        self.store, self.encoder_id = store, encoder_id
        self.media_ids: dict[str, str] = {}
        self.failed: dict[str, SampleError] = {}

    def __call__(self, ref: MediaRef) -> Features:
        """Read the features of a media item.

        Raises:
            SampleError: it could not be decoded, or the segment is outside the video.
            TrainError: they have been removed from the cache.
        """
        if ref.path in self.failed:
            raise self.failed[ref.path]
        media_id = self.media_ids.get(ref.path)
        if media_id is None:
            raise SampleError("media_unreadable", f"{ref.path}: did not exist when the features were encoded")
        entry = self.store.get(CacheKey(media_id, _segment(ref).key, self.encoder_id))
        if entry is None:
            raise TrainError(
                f"the features of {ref.path} are no longer in the cache {self.store.root}", hint=_ENCODE_HINT
            )
        return checked_features(ref, entry)

    def prefetch(self, refs: Sequence[MediaRef]) -> None:
        """Do nothing: reading from the cache is fast enough."""


def fill_cache(refs: Iterable[MediaRef], model: LoadedModel, options: RunOptions, reporter: Reporter) -> CachedFeatures:
    """Encode all media that are not in the cache.

    Args:
        refs: all media of the training data, each once.
        model: its encoder is loaded only if something is missing.
        options: cache folder, time limit, batch size.
        reporter: receives the number of missing features, and progress.

    Raises:
        TrainError: the disk does not have enough space.
        CacheError: the cache cannot be written.
    """
    store = FeatureStore(options.cache_dir)
    features = CachedFeatures(store, model.bundle.encoder_id)
    segments: dict[
        str, dict[Segment, None]
    ] = {}  # an ordered set per file: one segment may occur as image and as video
    for ref in refs:
        segments.setdefault(ref.path, {})[_segment(ref)] = None
    items = [item for path in segments if (item := _item(path, features)) is not None]
    _check_disk_space(items, segments, model.bundle, store, reporter)

    by_path = {path: tuple(found) for path, found in segments.items()}
    pending = partial(every_file, segments=by_path, read_features=False)
    run = RunContext.create(model, options, reporter)
    encoded = in_background(encode_files(run, items, pending), run.clock)
    with reporter.progress(len(items), "file", phase="encode"), closing(encoded):
        for one in encoded:
            _record(one, features)
            share = len(one.segments) / (one.n_segments or 1)
            has_failed = one.work.item.path in features.failed
            reporter.advance_file(one.work.item.path, share, is_last=one.is_last, failed=has_failed)
    return features


def _record(one: EncodedItem, features: CachedFeatures) -> None:
    path = one.work.item.path
    if one.error is not None:
        features.failed[path] = _rejection(path, one.error)
    elif one.work.media_id is not None:
        features.media_ids[path] = one.work.media_id


def _item(path: str, features: CachedFeatures) -> MediaItem | None:
    try:
        facts = os.stat(path)
    except OSError as error:
        features.failed[path] = SampleError("media_missing", f"{path}: {error.strerror or error}")
        return None
    return MediaItem(path, os.path.dirname(path), os.path.basename(path), facts.st_size, facts.st_mtime_ns, named=True)


def _check_disk_space(
    items: Sequence[MediaItem],
    segments: Mapping[str, Collection[Segment]],
    bundle: Bundle,
    store: FeatureStore,
    reporter: Reporter,
) -> None:
    """Report how much is missing, and fail if the disk is too small. A file that was never read counts as missing."""
    with closing(MediaIndex(store.root)) as index:
        missing = n_missing = 0
        for item in items:
            media_id = index.cached_media_id(item)
            for segment in segments[item.path]:
                if media_id is None or not store.has(CacheKey(media_id, segment.key, bundle.encoder_id)):
                    n_missing += 1
                    missing += bundle.spec.encoders.video.entry_bytes
    if n_missing:
        reporter.message(
            f"features: encoding {n_missing} of {sum(map(len, segments.values()))}, {human_bytes(missing)} on disk"
        )
        hint = "another --cache-dir, or --encode on-the-fly, which stores no features"
        require_disk_space(store.root, missing, "features", hint)


def checked_features(ref: MediaRef, entry: EncodedSegment) -> Features:
    """The features of a cache entry, if its segment is inside the video.

    Raises:
        SampleError: it starts after the end of the video.
    """
    if (error := _span_error(ref, entry.facts)) is not None:
        raise error
    return entry.features


def _span_error(ref: MediaRef, facts: MediaFacts) -> SampleError | None:
    if not ref.start_s or facts.duration_s is None or ref.start_s < facts.duration_s:
        return None
    what = f"{ref.path}: the segment starts at {ref.start_s:g} s, but the video ends at {facts.duration_s:g} s"
    return SampleError("bad_span", what)


def _segment(ref: MediaRef) -> Segment:
    return ref.segment if ref.kind == "video" else WHOLE


def _rejection(path: str, error: ItemError) -> SampleError:
    kind = "media_missing" if error.kind == "missing" else "media_unreadable"
    return SampleError(kind, f"{display_path(path)}: {message_without_path(error, path)}")


@dataclass
class LiveFeatures:
    """Features encoded on the fly, for machines without disk space for the cache.

    The media passed to `prefetch` are decoded together in worker processes, encoded in one batch, and held until the
    next call. Use it as a context manager.
    """

    model: LoadedModel
    options: RunOptions
    _held: dict[MediaRef, Features | SampleError] = field(default_factory=dict)
    _pool: DecodePool | None = None

    def __enter__(self) -> LiveFeatures:
        encoders, n = self.model.bundle.spec.encoders, self.options.n_workers or cpu_threads()
        prepared = partial(preprocess, image=encoders.image.preprocess, video=encoders.video.preprocess)
        self._pool = DecodePool(n, self.options.timeout_s, self.options.memory_bytes, transform=prepared)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.close()

    def __call__(self, ref: MediaRef) -> Features:
        """Return the features of a media item.

        Raises:
            SampleError: it cannot be decoded or encoded.
        """
        if ref not in self._held:
            self.prefetch([ref])
        found = self._held[ref]
        if isinstance(found, SampleError):
            raise found
        return found

    def prefetch(self, refs: Sequence[MediaRef]) -> None:
        """Decode and encode these media, and drop all previous features."""
        assert self._pool is not None, "use it as a context manager"
        self._held = {}
        sampling = self.model.bundle.spec.encoders.video.sampling
        jobs = [DecodeJob(ref.path, (_segment(ref),), sampling, tag=ref) for ref in dict.fromkeys(refs)]
        inputs: list[tuple[MediaRef, EncoderInput]] = []
        for job, outcome in self._pool.run(jobs):
            ref = job.tag
            assert isinstance(ref, MediaRef)
            if isinstance(outcome, MediaError):
                self._held[ref] = _rejection(ref.path, outcome)
            else:
                if (error := _span_error(ref, outcome.facts)) is not None:
                    self._held[ref] = error
                    continue
                frames = outcome.segments[0].frames
                assert isinstance(frames, EncoderInput)
                inputs.append((ref, frames))
        order = {ref: n for n, ref in enumerate(refs)}
        # Decoders finish in any order, but the batches of the encoder must be deterministic.
        inputs.sort(key=lambda one: order[one[0]])
        features = self.model.encoder.encode([frames for _, frames in inputs]) if inputs else []
        self._held |= dict(zip((ref for ref, _ in inputs), features, strict=True))
