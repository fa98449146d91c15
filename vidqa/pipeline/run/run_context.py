"""The objects that all stages of one run share."""

from __future__ import annotations

from dataclasses import dataclass

from vidqa.pipeline.monitor.reporter import Reporter, StageClock
from vidqa.pipeline.monitor.summary import Summary
from vidqa.pipeline.run.loaded_model import LoadedModel, load_model
from vidqa.pipeline.run.run_options import RunOptions


@dataclass(frozen=True)
class RunContext:
    """Model, options, progress output, counts and clock of one run."""

    model: LoadedModel
    options: RunOptions
    reporter: Reporter
    summary: Summary
    clock: StageClock

    @classmethod
    def create(cls, model: LoadedModel | str, options: RunOptions | None, reporter: Reporter) -> RunContext:
        """Return the context of a new run, with empty counts and a stopped clock.

        Args:
            model: an open model, or the name or folder of a bundle to open.
            options: None for the defaults.
            reporter: receives progress, messages and events.

        Raises:
            BundleError: there is no such bundle, or it is damaged.
            DeviceError: the requested device is not available.
        """
        loaded = model if isinstance(model, LoadedModel) else load_model(model, reporter=reporter)
        return cls(loaded, options or RunOptions(), reporter, Summary(), StageClock(stop=reporter.stop))
