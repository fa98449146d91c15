"""Kernels are used where they are right, and nowhere else. The device only claims to be one: nothing is computed."""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Callable, Iterator

import pytest
import torch

from vidqa.model.llama import kernel_check
from vidqa.model.llama.kernel_check import proven

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    kernel_check.prove.cache_clear()
    yield
    kernel_check.prove.cache_clear()


def kernels(monkeypatch: pytest.MonkeyPatch, difference: Callable[..., float]) -> str:
    """A module with a difference of its own."""
    module = types.ModuleType("played_kernels")
    module.difference = difference  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.__name__


def test_right_ones_are_used_and_proved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []
    name = kernels(monkeypatch, lambda *what: asked.append(what) or 0.01)  # type: ignore[func-returns-value]
    assert proven(name, CUDA, torch.bfloat16, 64) is sys.modules[name]
    assert proven(name, CUDA, torch.bfloat16, 64) is sys.modules[name]
    assert asked == [(CUDA, torch.bfloat16, 64)]


@pytest.mark.parametrize("far", [0.5, float("nan"), float("inf")])
def test_wrong_ones_are_not(far: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    name = kernels(monkeypatch, lambda *what: far)
    with caplog.at_level(logging.WARNING, logger="vidqa"):
        assert proven(name, CUDA, torch.float16, 64) is None
        assert proven(name, CUDA, torch.float16, 64) is None
    assert [r.getMessage() for r in caplog.records] == [
        f"{name} is not used, so answers take longer: its results differ by {far:.2g}"
    ]


def test_nor_those_that_do_not_compile(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fails(*what: object) -> float:
        raise RuntimeError("no compiler\nat all")

    with caplog.at_level(logging.WARNING, logger="vidqa"):
        assert proven(kernels(monkeypatch, fails), CUDA, torch.float16, 64) is None
        assert proven("vidqa.no_such_kernels", CUDA, torch.float16, 64) is None
    assert "played_kernels is not used, so answers take longer: no compiler" in caplog.text
    assert "no_such_kernels" not in caplog.text, "nothing is wrong where there is no Triton"
    assert "No module named" in kernel_check.prove("vidqa.no_such_kernels", CUDA, torch.float16, 64)[1]


def test_a_full_device_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are tried again when there is room: a run must not do without them to its end."""
    full = [True]

    def difference(*what: object) -> float:
        if full.pop() if full else False:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.0

    name = kernels(monkeypatch, difference)
    with pytest.raises(torch.OutOfMemoryError):
        proven(name, CUDA, torch.bfloat16, 64)
    assert proven(name, CUDA, torch.bfloat16, 64) is sys.modules[name]


def test_exact_numbers_odd_heads_and_other_devices_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    name = kernels(monkeypatch, lambda *what: 0.0)
    assert proven(name, CUDA, torch.float32, 64) is None
    assert proven(name, CUDA, torch.bfloat16, 80) is None
    assert proven(name, torch.device("cpu"), torch.bfloat16, 64) is None
    assert proven(name, torch.device("cuda", 1), torch.bfloat16, 64) is None, "another device than the thread's"
