"""Reading the embedding of an entry without its tokens: same values, and damage is an error."""

from __future__ import annotations

import io
import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from vidqa.cache import entry
from vidqa.cache.feature_store import FeatureStore
from vidqa.cache.key import CacheKey
from vidqa.errors import CacheError
from vidqa.records import EncodedSegment, Features, MediaFacts

KEY = CacheKey("f" * 32, "0.000-2.000", "e" * 16)


def segment(n_tokens: int = 3000) -> EncodedSegment:
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((8, n_tokens, 4)).astype(np.float16)
    features = Features(tokens, rng.standard_normal(12).astype(np.float32), True, "video")
    times = tuple(0.25 * i for i in range(8))
    return EncodedSegment(
        MediaFacts("video", "h264", 96, 96, 2.5, 8.0, 0, Fraction(4, 3)), 0.0, 2.0, times, (False,) * 8, features
    )


class CountingReader(io.BytesIO):
    """Counts the bytes that were read."""

    n_read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.n_read += len(data)
        return data


def test_same_values_and_few_bytes() -> None:
    data, whole = entry.pack(KEY, segment()), segment()
    f = CountingReader(data)
    found = entry.read_pooled(f, KEY)
    np.testing.assert_array_equal(found.embedding, whole.features.embedding)
    assert (found.start_s, found.end_s, found.facts) == (whole.start_s, whole.end_s, whole.facts)
    assert f.n_read < 2000 < len(data) / 50


def test_another_key() -> None:
    with pytest.raises(CacheError):
        entry.read_pooled(io.BytesIO(entry.pack(KEY, segment(3))), CacheKey("a" * 32, "whole", "e" * 16))


def test_damage_raises_a_cache_error_or_changes_values() -> None:
    """Damage raises CacheError and nothing else, or goes unnoticed because it only changes values."""
    data, rng = entry.pack(KEY, segment(3)), random.Random(0)
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 1, 8))):
            damaged[rng.randrange(min(len(data), 1200))] = rng.randrange(256)
        for variant in (bytes(damaged), bytes(damaged[: rng.randrange(len(data))])):
            try:
                found = entry.read_pooled(io.BytesIO(variant), KEY)
            except CacheError:
                continue
            assert found.embedding.shape == (12,) and np.isfinite(found.embedding).all()


def test_huge_lengths_allocate_nothing() -> None:
    data = entry.pack(KEY, segment(3))
    with pytest.raises(CacheError, match="header"):
        entry.read_pooled(io.BytesIO((1 << 60).to_bytes(8, "little") + data[8:]), KEY)
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length]
    for offsets in (b'"data_offsets":[0,99999999999999]', b'"data_offsets":[-9,39]', b'"data_offsets":["a","b"]'):
        start = header.index(b'"data_offsets"')
        damaged = header[:start] + offsets + header[header.index(b"]", start) + 1 :]
        with pytest.raises(CacheError):
            entry.read_pooled(io.BytesIO(len(damaged).to_bytes(8, "little") + damaged + data[8 + length :]), KEY)


def test_store(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    assert store.get_pooled(KEY) is None
    store.put(KEY, segment(3))
    found = store.get_pooled(KEY)
    assert found is not None and found.end_s == 2.0
    path = store.path(KEY)
    path.write_bytes(path.read_bytes()[:-40])
    assert store.get_pooled(KEY) is None and not path.exists(), "a damaged entry is removed and encoded again"
    assert [d.path for d in store.damaged] == [path]
