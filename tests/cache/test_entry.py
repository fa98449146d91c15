"""Size of a cache entry, and the facts in it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from vidqa.cache.entry import entry_bytes, facts_from_dict, facts_to_dict, pack
from vidqa.cache.key import CacheKey
from vidqa.records import EncodedSegment, Features, MediaFacts


@pytest.mark.parametrize(
    ("n_frames", "n_tokens", "hidden_size", "embedding_size"), [(1, 257, 64, 32), (100, 17, 64, 8)]
)
def test_entry_bytes_is_a_close_upper_bound(
    n_frames: int, n_tokens: int, hidden_size: int, embedding_size: int
) -> None:
    features = Features(
        np.zeros((n_frames, n_tokens, hidden_size), np.float16), np.zeros(embedding_size, np.float32), True, "video"
    )
    facts = MediaFacts("video", "h264", 1920, 1080, 12345.678901234, 29.97, n_frames_from_header=12345)
    times = tuple(123.4567890123456 * i for i in range(n_frames))
    value = EncodedSegment(facts, 1234.5678901234, 2345.6789012345, times, (False,) * n_frames, features)
    n_bytes = len(pack(CacheKey("a" * 32, "1234.567-2345.678", "b" * 16), value))
    assert n_bytes <= entry_bytes(n_frames, n_tokens, hidden_size, embedding_size) < n_bytes + 300


def test_notes_of_a_file_are_stored_and_entries_without_them_have_the_bytes_of_earlier_versions() -> None:
    plain = MediaFacts("video", "h264", 640, 480, 9.5, 25.0)
    assert "notes" not in facts_to_dict(plain)
    assert facts_from_dict(facts_to_dict(plain)) == plain
    noted = replace(plain, notes=("truncated: 5.2 of 20.0 s readable",))
    assert facts_from_dict(json.loads(json.dumps(facts_to_dict(noted)))) == noted


def test_times_that_plan_segments_are_stored_in_the_index_only() -> None:
    plain = MediaFacts("video", "h264", 640, 480, 9.5, 25.0)
    timed = replace(plain, last_frame_s=9.46, pauses=((1.0, 4.25), (5.0, 7.1)))
    assert facts_from_dict(json.loads(json.dumps(facts_to_dict(timed)))) == timed
    features = Features(np.zeros((1, 4, 8), np.float16), np.zeros(8, np.float32), False, "video")
    key = CacheKey("a" * 32, "whole", "b" * 16)
    entries = [pack(key, EncodedSegment(facts, 0.0, 9.5, (0.0,), (False,), features)) for facts in (plain, timed)]
    assert entries[0] == entries[1]


def test_facts_of_earlier_versions_can_be_read() -> None:
    old = {
        "kind": "video", "codec": "h264", "width": 640, "height": 480, "duration_s": 9.5, "fps": 25.0,
        "rotation_deg": 0, "pixel_aspect": "1", "n_frames_from_header": None,
        "n_frames_from_content": 237, "stream_index": 0,
    }  # fmt: skip
    assert facts_from_dict(old) == MediaFacts("video", "h264", 640, 480, 9.5, 25.0, n_frames_from_content=237)
