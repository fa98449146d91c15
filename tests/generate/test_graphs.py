"""Recording of steps, with a device that is played: what it is asked for, and what happens where it fails."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

from vidqa.generate.graphs import _RECORD_AFTER, StepGraphs


class Played:
    """What `torch.cuda` is asked for; `fails` is raised at the end of a recording, as CUDA does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: Exception | None = None) -> None:
        self.modes: list[str] = []
        self.streams: list[Any] = []
        self.replays = 0

        @contextmanager
        def graph(one: Any, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
            self.modes.append(capture_error_mode)
            yield
            if fails:
                raise fails

        def replay(_: Any) -> None:
            self.replays += 1

        stream = type("Stream", (), {"wait_stream": lambda *_: None, "name": "beside"})
        usual = type("Stream", (), {"wait_stream": lambda *_: None, "name": "usual"})()
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream())
        monkeypatch.setattr(torch.cuda, "stream", lambda one: nullcontext())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: usual)
        monkeypatch.setattr(torch.cuda, "set_stream", self.streams.append)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: 0)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: type("Graph", (), {"replay": replay})())
        monkeypatch.setattr(torch.cuda, "graph", graph)


def run(graphs: StepGraphs, n: int) -> list[torch.Tensor]:
    return [graphs.run("shape", lambda ids: ids * 2.0, torch.tensor([3])) for _ in range(n)]


def test_a_step_that_comes_again_is_recorded_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only this thread's calls count while it is recorded: others decode and encode on the same device."""
    played = Played(monkeypatch)
    assert [one.item() for one in run(StepGraphs(), _RECORD_AFTER + 3)] == [6.0] * (_RECORD_AFTER + 3)
    assert played.modes == ["thread_local"]
    assert played.replays == 1 + 3


def test_where_recording_fails_steps_go_on_on_the_usual_stream(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    played = Played(monkeypatch, RuntimeError("CUDA error: operation failed due to a previous error during capture"))
    with caplog.at_level(logging.WARNING, logger="vidqa"):
        assert [one.item() for one in run(StepGraphs(), _RECORD_AFTER + 3)] == [6.0] * (_RECORD_AFTER + 3)
    assert len(played.modes) == 1 and played.replays == 0
    assert [one.name for one in played.streams] == ["usual"]
    assert "not recorded" in caplog.text


def test_a_full_device_is_for_the_engine_to_hear(monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        run(StepGraphs(), _RECORD_AFTER)
    assert [one.name for one in played.streams] == ["usual"]
