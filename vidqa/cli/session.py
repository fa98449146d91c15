"""Flags -> what a command works with: settings, options of the run, model, reporter. And how a run is concluded.

The only place where commands meet `vidqa.toml` and the VIDQA_ variables.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import click

from vidqa.cache.key import default_cache_dir
from vidqa.cli.shown import as_json
from vidqa.config import load_settings
from vidqa.pipeline.loaded import LoadedModel, load_model
from vidqa.pipeline.options import RunOptions
from vidqa.pipeline.plan import Plan
from vidqa.pipeline.progress import Reporter
from vidqa.pipeline.summary import Summary
from vidqa.prompts.questions import load_questions, merge_questions
from vidqa.records import Question


class Session:
    """One command at work.

    Args:
        flags: the shared options as click gives them; None and empty mean that the user did not say.

    Raises:
        UsageError: a variable or the settings file says something wrong.
    """

    def __init__(self, flags: Mapping[str, Any]) -> None:
        self.as_json = bool(flags.get("as_json"))
        self.settings = load_settings(flags)
        self.reporter = Reporter(level=self.settings.level)
        _route_warnings(self.reporter)

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> Session:
        """The session of a command's flags."""
        return cls(flags)

    @property
    def cache_dir(self) -> Path:
        """Folder of the feature cache."""
        return Path(self.settings.cache_dir) if self.settings.cache_dir else default_cache_dir()

    @property
    def model_name(self) -> str:
        """Name or folder of the bundle."""
        return str(self.settings.model)

    @cached_property
    def model(self) -> LoadedModel:
        """The bundle, opened; its engines load when they are needed."""
        return load_model(self.model_name, self.settings.device, reporter=self.reporter)

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        """All questions of the sets that were asked for."""
        return merge_questions([load_questions(name) for name in self.settings.questions])

    @cached_property
    def options(self) -> RunOptions:
        """How the run is done."""
        settings = self.settings
        return RunOptions(cache_dir=self.cache_dir, segment_s=settings.segment_s)

    def show(self, plan: Plan) -> None:
        """Print what a run would do; that is the result of a dry run."""
        click.echo(as_json(plan) if self.as_json else plan.as_text())

    def conclude(self, summary: Summary) -> None:
        """Say what the run did: on stderr for people, on stdout for machines."""
        self.reporter.say(summary.as_text())
        if self.as_json:
            click.echo(as_json(summary.as_dict()))


class _ToReporter(logging.Handler):
    """Warnings of the stages (a damaged cache entry) become messages, so that they do not tear the progress bar."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.WARNING)
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self._reporter.say(f"warning: {record.getMessage()}")


def _route_warnings(reporter: Reporter) -> None:
    logger = logging.getLogger("vidqa")
    logger.handlers = [_ToReporter(reporter)]
    logger.propagate = False
    if sys.stderr is None:  # a service without any terminal
        logger.handlers = [logging.NullHandler()]
