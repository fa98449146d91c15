"""vidqa equals the recorded outputs of the published models' code: all of tests/golden with tools/check_golden.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from check_golden import FIXTURES, check

GOLDEN = Path(__file__).resolve().parent.parent / "golden"

pytestmark = pytest.mark.parity

#: Minimum number of arrays, exact comparisons and tokens, so that a lost comparison fails.
AT_LEAST = {
    "frame_indices": (0, 1200, 0),
    "languagebind_image": (27, 0, 0),
    "languagebind_video": (28, 0, 0),
    "preprocess": (130, 0, 0),
    "prompts": (0, 260, 6600),
    "valley": (27, 0, 168),
    "video_chatgpt": (21, 62, 144),
    "video_llava_forward": (32, 9, 144),
    "video_llava_hf": (21, 0, 216),
}


def test_every_fixture_has_minimum_counts() -> None:
    assert set(AT_LEAST) == set(FIXTURES)


@pytest.mark.parametrize("name", sorted(FIXTURES))
def test_equals_the_recorded_outputs(name: str) -> None:
    report = check(GOLDEN, name)
    assert not report.misses, "\n".join(report.misses[:20])
    assert report.ok
    counted = (report.n_arrays, report.n_exact, report.n_tokens)
    assert all(a >= b for a, b in zip(counted, AT_LEAST[name], strict=True)), report.line()
    assert report.n_tokens_equal == report.n_tokens
    if name not in ("preprocess", "prompts"):
        assert report.max_error <= 1e-4
