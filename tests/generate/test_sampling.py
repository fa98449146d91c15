"""Draws from the nucleus, and stop strings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vidqa.generate.sampling import RandomStream, pick_greedy, pick_sampled
from vidqa.generate.stop_strings import Stopper

PROBABILITIES = torch.tensor([0.1, 0.5, 0.15, 0.25])
LOGITS = PROBABILITIES.log()


def sample(draws: list[float], temperature: float = 1.0, top_p: float = 1.0) -> list[int]:
    d = torch.tensor(draws, dtype=torch.float64)
    return pick_sampled(LOGITS.expand(len(draws), -1), temperature, top_p, d).tolist()


def test_each_token_has_its_share() -> None:
    n = 10_000
    counts = np.bincount(sample([(i + 0.5) / n for i in range(n)]), minlength=4)
    assert counts / n == pytest.approx(PROBABILITIES.numpy(), abs=1e-3)


def test_temperature_sharpens() -> None:
    n = 1000
    draws = [(i + 0.5) / n for i in range(n)]
    assert sample(draws, temperature=0.25).count(1) > sample(draws).count(1) > sample(draws, temperature=4).count(1)


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, {1}), (0.6, {1, 3}), (0.8, {1, 3, 2}), (1.0, {0, 1, 2, 3})])
def test_the_nucleus_is_the_smallest_that_holds_enough(top_p: float, kept: set[int]) -> None:
    assert set(sample([i / 1000 for i in range(1000)], top_p=top_p)) == kept


def test_the_ends_of_the_draw() -> None:
    last = float(np.nextafter(1.0, 0.0))
    assert sample([0.0, last]) == [1, 0]
    assert sample([0.0, last], top_p=0.6) == [1, 3]


def test_greedy() -> None:
    assert pick_greedy(torch.stack([LOGITS, -LOGITS])).tolist() == [1, 0]


def test_draws_repeat_and_differ() -> None:
    def first(seed: int, content: bytes) -> list[float]:
        draws = RandomStream(seed, content)
        return [draws.next() for _ in range(5)]

    assert first(1, b"a") == first(1, b"a")
    assert len({tuple(first(s, c)) for s in (0, 1, -1) for c in (b"a", b"b")}) == 6
    assert all(0 <= x < 1 for x in first(0, b""))


class Letters:
    """A tokenizer whose token is one character."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(map(chr, ids))


def ids(text: str) -> list[int]:
    return [ord(c) for c in text]


def test_stop_strings() -> None:
    stopper = Stopper(Letters(), ("###", "\nUSER", ""))
    assert stopper.stops(ids("a red ball###"))
    assert not stopper.stops(ids("a red ball##"))
    assert stopper.text(ids(" a red ball ### and more\nUSER")) == "a red ball"
    assert stopper.text(ids("a red ball\nUSER###")) == "a red ball"
    long = ids("x" * 500 + "\nUSER")
    assert [stopper.stops(long[:n]) for n in (504, 505)] == [False, True]


def test_without_stop_strings() -> None:
    assert not Stopper(Letters()).stops(ids("###"))
    assert Stopper(Letters()).text(ids(" a ### b\n")) == "a ### b"
