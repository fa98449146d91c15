"""Media of training samples -> their features: out of the cache, where missing ones are put first, or made each time.

Knows the cache, decoders and the encoder. Does not know samples, prompts or the language model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
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
from vidqa.pipeline.run.feature_stages import encode_files
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
from vidqa.train.data import MediaRef, SampleError
from vidqa.train.stage.checkpoints import need_room


class CachedFeatures:
    """Features out of the cache.

    Args:
        store: the cache.
        encoder_id: whose features.
    """

    def __init__(self, store: FeatureStore, encoder_id: str) -> None:
        self.store, self.encoder_id = store, encoder_id
        self.media_ids: dict[str, str] = {}
        self.failed: dict[str, SampleError] = {}

    def __call__(self, ref: MediaRef) -> Features:
        """Read the features of a medium.

        Raises:
            SampleError: it could not be decoded, or the stretch lies outside of it.
            TrainError: they were in the cache and are not any more.
        """
        if ref.path in self.failed:
            raise self.failed[ref.path]
        media_id = self.media_ids.get(ref.path)
        if media_id is None:
            raise SampleError("media_unreadable", f"{ref.path}: was not there when the features were made")
        entry = self.store.get(CacheKey(media_id, _segment(ref).key, self.encoder_id))
        if entry is None:
            raise TrainError(f"the features of {ref.path} are gone from the cache {self.store.root}", hint=_AGAIN)
        return checked(ref, entry)

    def prefetch(self, refs: Sequence[MediaRef]) -> None:
        """Reading from the cache is fast enough."""


_AGAIN = "run the same command again: missing features are made first"


def fill_cache(refs: Iterable[MediaRef], model: LoadedModel, options: RunOptions, reporter: Reporter) -> CachedFeatures:
    """Encode what the cache does not have.

    Args:
        refs: all media that training will ask for, each once.
        model: its encoder is loaded only if something is missing.
        options: folder of the cache, time limit, batch size.
        reporter: hears how much is missing, and the progress.

    Raises:
        TrainError: the disk has no room for what is missing.
        CacheError: the cache cannot be written.
    """
    store = FeatureStore(options.cache_dir)
    features = CachedFeatures(store, model.bundle.encoder_id)
    wanted: dict[str, list[Segment]] = {}
    for ref in refs:
        wanted.setdefault(ref.path, []).append(_segment(ref))
    items = [item for path in wanted if (item := _item(path, features)) is not None]
    _look_for_room(items, wanted, model.bundle, store, reporter)

    segments = {path: tuple(wanted_segments) for path, wanted_segments in wanted.items()}
    pending = partial(every_file, segments=segments, read_features=False)
    run = RunContext.create(model, options, reporter)
    with reporter.progress(len(items), "file"), closing(encode_files(run, items, pending)) as encoded:
        for one in encoded:
            _note(one, features)
            reporter.advance()
    return features


def _item(path: str, features: CachedFeatures) -> MediaItem | None:
    try:
        facts = os.stat(path)
    except OSError as error:
        features.failed[path] = SampleError("media_missing", f"{path}: {error.strerror or error}")
        return None
    return MediaItem(path, os.path.dirname(path), os.path.basename(path), facts.st_size, facts.st_mtime_ns, named=True)


def _note(one: EncodedItem, features: CachedFeatures) -> None:
    if one.error is not None:
        features.failed[one.work.item.path] = _as_reject(one.work.item.path, one.error)
    elif one.work.media_id is not None:
        features.media_ids[one.work.item.path] = one.work.media_id


def _look_for_room(
    items: Sequence[MediaItem],
    wanted: dict[str, list[Segment]],
    bundle: Bundle,
    store: FeatureStore,
    reporter: Reporter,
) -> None:
    """Say how much is missing, and stop if the disk does not hold it. A file never read before counts as missing."""
    with closing(MediaIndex(store.root)) as index:
        missing = n_missing = 0
        for item in items:
            media_id = index.cached_media_id(item)
            for segment in wanted[item.path]:
                if media_id is None or not store.has(CacheKey(media_id, segment.key, bundle.encoder_id)):
                    n_missing += 1
                    missing += bundle.spec.encoders.video.entry_bytes
    if n_missing:
        reporter.say(
            f"features: {n_missing} of {sum(map(len, wanted.values()))} are to be made, {human_bytes(missing)}"
        )
        need_room(store.root, missing, "features", "another --cache-dir, or --encode on-the-fly, which keeps none")


def checked(ref: MediaRef, entry: EncodedSegment) -> Features:
    """The features of an entry, if the stretch that they are of is one of the clip.

    Raises:
        SampleError: it begins behind the clip's end.
    """
    if (late := _begins_late(ref, entry.facts)) is not None:
        raise late
    return entry.features


def _begins_late(ref: MediaRef, facts: MediaFacts) -> SampleError | None:
    if not ref.start_s or facts.duration_s is None or ref.start_s < facts.duration_s:
        return None
    what = f"{ref.path}: the stretch begins at {ref.start_s:g} s, the clip ends at {facts.duration_s:g} s"
    return SampleError("bad_span", what)


def _segment(ref: MediaRef) -> Segment:
    return ref.segment if ref.kind == "video" else WHOLE


def _as_reject(path: str, error: ItemError) -> SampleError:
    kind = "media_missing" if error.kind == "missing" else "media_unreadable"
    return SampleError(kind, f"{display_path(path)}: {message_without_path(error, path)}")


@dataclass
class LiveFeatures:
    """Features made anew whenever they are asked for: for those who lack the disk.

    What was announced by `prefetch` is decoded together, in processes of their own, encoded in one batch, and held
    until the next announcement. Use it as a context manager.
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
        """Features of a medium.

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
        """Decode and encode these, and forget the ones before."""
        assert self._pool is not None, "use it as a context manager"
        self._held = {}
        sampling = self.model.bundle.spec.encoders.video.sampling
        jobs = [DecodeJob(ref.path, (_segment(ref),), sampling, tag=ref) for ref in dict.fromkeys(refs)]
        inputs: list[tuple[MediaRef, EncoderInput]] = []
        for job, outcome in self._pool.run(jobs):
            ref = job.tag
            assert isinstance(ref, MediaRef)
            if isinstance(outcome, MediaError):
                self._held[ref] = _as_reject(ref.path, outcome)
            else:
                if (late := _begins_late(ref, outcome.facts)) is not None:
                    self._held[ref] = late
                    continue
                frames = outcome.segments[0].frames
                assert isinstance(frames, EncoderInput)
                inputs.append((ref, frames))
        order = {ref: n for n, ref in enumerate(refs)}
        inputs.sort(
            key=lambda one: order[one[0]]
        )  # decoders finish in any order; the encoder's batches must not differ
        features = self.model.encoder.encode([frames for _, frames in inputs]) if inputs else []
        self._held |= dict(zip((ref for ref, _ in inputs), features, strict=True))
