"""Nucleus sampling, RNG streams and stop strings."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch

from vidqa.generate.sampling import RandomStream, pick_greedy, pick_sampled
from vidqa.generate.stop_strings import Stopper

PROBABILITIES = torch.tensor([0.1, 0.5, 0.15, 0.25])
LOGITS = PROBABILITIES.log()


def sample(random_samples: list[float], temperature: float = 1.0, top_p: float = 1.0) -> list[int]:
    r = torch.tensor(random_samples, dtype=torch.float64)
    return pick_sampled(LOGITS.expand(len(random_samples), -1), temperature, top_p, r).tolist()


def test_tokens_are_sampled_by_their_probability() -> None:
    n = 10_000
    counts = np.bincount(sample([(i + 0.5) / n for i in range(n)]), minlength=4)
    assert counts / n == pytest.approx(PROBABILITIES.numpy(), abs=1e-3)


def test_temperature_sharpens() -> None:
    n = 1000
    samples = [(i + 0.5) / n for i in range(n)]
    assert (
        sample(samples, temperature=0.25).count(1) > sample(samples).count(1) > sample(samples, temperature=4).count(1)
    )


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, {1}), (0.6, {1, 3}), (0.8, {1, 3, 2}), (1.0, {0, 1, 2, 3})])
def test_the_nucleus_is_the_smallest_that_holds_enough(top_p: float, kept: set[int]) -> None:
    assert set(sample([i / 1000 for i in range(1000)], top_p=top_p)) == kept


def test_smallest_and_largest_random_sample() -> None:
    last = float(np.nextafter(1.0, 0.0))
    assert sample([0.0, last]) == [1, 0]
    assert sample([0.0, last], top_p=0.6) == [1, 3]


def test_greedy() -> None:
    assert pick_greedy(torch.stack([LOGITS, -LOGITS])).tolist() == [1, 0]


def test_streams_repeat_and_differ() -> None:
    def first(seed: int, content: bytes) -> list[float]:
        stream = RandomStream(seed, content)
        return [stream.next() for _ in range(5)]

    assert first(1, b"a") == first(1, b"a")
    assert len({tuple(first(s, c)) for s in (0, 1, -1) for c in (b"a", b"b")}) == 6
    assert all(0 <= x < 1 for x in first(0, b""))


class Letters:
    """A tokenizer with one token per character."""

    added_tokens_decoder: ClassVar = {}

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(map(chr, ids))


def ids(text: str) -> list[int]:
    return [ord(c) for c in text]


def test_stop_strings() -> None:
    stopper = Stopper(Letters(), ("###", "\nUSER", ""))
    assert stopper.has_stop_string(ids("a red ball###"))
    assert not stopper.has_stop_string(ids("a red ball##"))
    assert stopper.text(ids(" a red ball ### and more\nUSER")) == "a red ball"
    assert stopper.text(ids("a red ball\nUSER###")) == "a red ball"
    long = ids("x" * 500 + "\nUSER")
    assert [stopper.has_stop_string(long[:n]) for n in (504, 505)] == [False, True]


def test_without_stop_strings() -> None:
    assert not Stopper(Letters()).has_stop_string(ids("###"))
    assert Stopper(Letters()).text(ids(" a ### b\n")) == "a ### b"
