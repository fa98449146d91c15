"""The objects that all stages of one run share."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from vidqa.pipeline.monitor.progress_display import Progress
from vidqa.pipeline.monitor.reporter import Reporter, StageClock
from vidqa.pipeline.monitor.summary import Summary
from vidqa.pipeline.run.loaded_model import LoadedModel, load_model
from vidqa.pipeline.run.run_options import RunOptions
from vidqa.records import type_name


@dataclass(frozen=True)
class RunContext:
    """Model, options, progress output, counts and clock of one run."""

    model: LoadedModel
    options: RunOptions
    reporter: Reporter
    summary: Summary
    clock: StageClock

    @classmethod
    def create(
        cls,
        model: LoadedModel | str,
        options: RunOptions | None,
        reporter: Reporter,
        progress: Callable[[Progress], object] | None = None,
    ) -> RunContext:
        """Return the context of a new run, with empty counts and a stopped clock.

        Args:
            model: an open model, or the name or folder of a bundle to open.
            options: None for the defaults.
            reporter: receives progress, messages and events.
            progress: called with the progress, in addition to what the reporter shows.

        Raises:
            TypeError: an argument has the wrong type.
            BundleError: there is no such bundle, or it is damaged.
            DeviceError: the requested device is not available.
        """
        if not isinstance(model, LoadedModel | str | os.PathLike):
            raise TypeError(f"model must be an open model, or a name or folder, not {type_name(model)}")
        if options is not None and not isinstance(options, RunOptions):
            raise TypeError(f"options must be a RunOptions or None, not {type_name(options)}")
        if not isinstance(reporter, Reporter):
            raise TypeError(f"reporter must be a Reporter, not {type_name(reporter)}")
        reporter = reporter.calling(progress)
        loaded = model if isinstance(model, LoadedModel) else load_model(os.fspath(model), reporter=reporter)
        return cls(loaded, options or RunOptions(), reporter, Summary(), StageClock(stop=reporter.stop))
