"""A run with the tiny model; the module run_values can be imported."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vidqa.pipeline.monitor.reporter import Reporter
from vidqa.pipeline.run.loaded_model import LoadedModel, load_model
from vidqa.pipeline.run.run_context import RunContext
from vidqa.pipeline.run.run_options import RunOptions

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tiny_model(tiny_bundle: Path) -> LoadedModel:
    return load_model(str(tiny_bundle), "cpu")


@pytest.fixture
def make_run(tiny_model: LoadedModel, tmp_path: Path) -> Callable[..., RunContext]:
    """`make_run(retry="failed", ...)`: context of a run with its own cache."""

    def make(**options: object) -> RunContext:
        return RunContext.create(tiny_model, RunOptions(tmp_path / "cache", **options), Reporter(level=0))  # type: ignore[arg-type]

    return make
