"""Every fixture of tests/golden through the comparisons of tools/check_golden.py: what vidqa computes is what the
published models' own code recorded."""

from __future__ import annotations

from pathlib import Path

import pytest
from check_golden import FIXTURES, check

GOLDEN = Path(__file__).resolve().parent.parent / "golden"

pytestmark = pytest.mark.parity

#: At least so many arrays, exact comparisons and tokens: a comparison that is lost does not pass in silence.
AT_LEAST = {
    "frame_indices": (0, 1200, 0),
    "languagebind_image": (27, 0, 0),
    "languagebind_video": (28, 0, 0),
    "preprocess": (130, 0, 0),
    "prompts": (0, 280, 7000),
    "valley": (27, 0, 168),
    "video_chatgpt": (21, 62, 144),
    "video_llava_forward": (32, 9, 144),
    "video_llava_hf": (21, 0, 216),
}


def test_every_fixture_has_its_numbers() -> None:
    assert set(AT_LEAST) == set(FIXTURES)


@pytest.mark.parametrize("name", sorted(FIXTURES))
def test_equal_to_the_recorded(name: str) -> None:
    report = check(GOLDEN, name)
    assert not report.misses, "\n".join(report.misses[:20])
    assert report.ok
    counted = (report.n_arrays, report.n_exact, report.n_tokens)
    assert all(a >= b for a, b in zip(counted, AT_LEAST[name], strict=True)), report.line()
    assert report.n_tokens_equal == report.n_tokens
    if name not in ("preprocess", "prompts"):
        assert report.max_error <= 1e-4
