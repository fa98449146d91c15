"""At which precisions a 7B model fits."""

from vidqa.common.devices import free_memory
from vidqa.pipeline.memory_estimate import describe_fit, required_bytes


def test_estimates_follow_the_published_sizes() -> None:
    gb = {name: required_bytes(name) / 1e9 for name in ("float32", "float16", "8bit", "4bit")}
    # LLaMA-7B has 6.738e9 values; to them come both towers in float32 (2.83 GB) and one prompt's cache.
    assert 6.738 * 2 + 2.83 < gb["float16"] < 6.738 * 2 + 2.83 + 1.5
    assert gb["4bit"] < gb["8bit"] < gb["float16"] < gb["float32"]


def test_precisions_that_fit_are_listed() -> None:
    assert describe_fit(0)[0] is False and "fits: nothing" in describe_fit(0)[1]
    fits, text = describe_fit(required_bytes("8bit"))
    assert fits and "fits: 8bit, 4bit" in text
    assert all(free > 0 for free in free_memory().values())
