"""Kernels are used only after their check. The CUDA device is a mere name here; nothing is computed."""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Callable, Iterator

import pytest
import torch

from vidqa.model.llama import kernel_check
from vidqa.model.llama.kernel_check import checked_kernels

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def fresh_cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    kernel_check.check_kernels.cache_clear()
    yield
    kernel_check.check_kernels.cache_clear()


def kernels(monkeypatch: pytest.MonkeyPatch, difference: Callable[..., float]) -> str:
    """A module of kernels with this `max_difference`."""
    module = types.ModuleType("fake_kernels")
    module.max_difference = difference  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.__name__


def test_correct_kernels_are_used_and_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []
    name = kernels(monkeypatch, lambda *what: calls.append(what) or 0.01)  # type: ignore[func-returns-value]
    assert checked_kernels(name, CUDA, torch.bfloat16, 64) is sys.modules[name]
    assert checked_kernels(name, CUDA, torch.bfloat16, 64) is sys.modules[name]
    assert calls == [(CUDA, torch.bfloat16, 64)]


@pytest.mark.parametrize("difference", [0.5, float("nan"), float("inf")])
def test_wrong_kernels_are_not_used(
    difference: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name = kernels(monkeypatch, lambda *what: difference)
    with caplog.at_level(logging.WARNING, logger="vidqa"):
        assert checked_kernels(name, CUDA, torch.float16, 64) is None
        assert checked_kernels(name, CUDA, torch.float16, 64) is None
    assert [r.getMessage() for r in caplog.records] == [
        f"{name} is not used, so answers take longer: its results differ by {difference:.2g}"
    ]


def test_kernels_that_do_not_compile_are_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*what: object) -> float:
        raise RuntimeError("no compiler\nat all")

    with caplog.at_level(logging.WARNING, logger="vidqa"):
        assert checked_kernels(kernels(monkeypatch, fails), CUDA, torch.float16, 64) is None
        assert checked_kernels("vidqa.no_such_kernels", CUDA, torch.float16, 64) is None
    assert "fake_kernels is not used, so answers take longer: no compiler" in caplog.text
    assert "no_such_kernels" not in caplog.text, "a missing Triton is not worth a warning"
    assert "No module named" in kernel_check.check_kernels("vidqa.no_such_kernels", CUDA, torch.float16, 64)[1]


def test_out_of_memory_does_not_disable_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are checked again when there is memory, so that the rest of the run can use them."""
    full = [True]

    def difference(*what: object) -> float:
        if full.pop() if full else False:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.0

    name = kernels(monkeypatch, difference)
    with pytest.raises(torch.OutOfMemoryError):
        checked_kernels(name, CUDA, torch.bfloat16, 64)
    assert checked_kernels(name, CUDA, torch.bfloat16, 64) is sys.modules[name]


def test_float32_other_head_dims_and_other_devices_use_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    name = kernels(monkeypatch, lambda *what: 0.0)
    assert checked_kernels(name, CUDA, torch.float32, 64) is None
    assert checked_kernels(name, CUDA, torch.bfloat16, 80) is None
    assert checked_kernels(name, torch.device("cpu"), torch.bfloat16, 64) is None
    assert checked_kernels(name, torch.device("cuda", 1), torch.bfloat16, 64) is None, (
        "another device than the thread's"
    )
