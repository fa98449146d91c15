"""Option values of a command -> model, questions, options and reporter of a run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vidqa.cache.key import default_cache_dir
from vidqa.cli.output import as_json
from vidqa.pipeline.monitor.reporter import Reporter

if TYPE_CHECKING:  # not every command needs these, and `doctor` must work if they cannot be imported
    from vidqa.cli.run_scope import RunScope
    from vidqa.media.selection.file_selection import FileSelection
    from vidqa.pipeline.monitor.summary import Summary
    from vidqa.pipeline.run.loaded_model import LoadedModel
    from vidqa.pipeline.run.run_options import RunOptions
    from vidqa.records import Question


class CliContext:
    """Everything that a command derives from its options, created on first use.

    Args:
        flags: values of the shared options after click has consulted command line, variables and vidqa.toml. None and
            missing mean that an option is not set.
    """

    def __init__(self, flags: Mapping[str, Any]) -> None:
        self._flags = flags
        self.as_json = bool(flags.get("as_json"))
        level = 0 if flags.get("quiet") else 2 if flags.get("verbose") else 1
        self.reporter = Reporter(level, style=flags.get("progress") or "auto")
        _route_warnings(self.reporter)

    @property
    def cache_dir(self) -> Path:
        """Folder of the feature cache."""
        return Path(self._flags.get("cache_dir") or default_cache_dir()).expanduser()

    @property
    def model_name(self) -> str:
        """Name or folder of the bundle."""
        return self._flags.get("model") or "demo"

    @cached_property
    def model(self) -> LoadedModel:
        """The open model; encoder and LLM are loaded on first use."""
        from vidqa.pipeline.run.loaded_model import Precision, load_model

        precision = Precision(self._flags.get("dtype"), self._flags.get("quantize"))
        device = self._flags.get("device") or "auto"
        return load_model(self.model_name, device, precision=precision, reporter=self.reporter)

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        """All questions of the requested sets, and those given by their text."""
        from vidqa.prompts.questions import gather_questions, load_questions

        texts = self._flags.get("ask") or ()
        sets = self._flags.get("questions") or (() if texts else ("caption",))
        return gather_questions([question for name in sets for question in load_questions(name)], texts)

    @cached_property
    def options(self) -> RunOptions:
        """Options of the run."""
        from vidqa.pipeline.run.run_options import RunOptions

        flags = self._flags
        segment, batch_size, timeout_s = flags.get("segment"), flags.get("batch_size"), flags.get("timeout")
        return RunOptions(
            cache_dir=self.cache_dir,
            segment_s=None if segment in (None, "whole") else float(segment),
            max_new_tokens=flags.get("max_new_tokens"),
            batch_size=None if batch_size in (None, "auto") else int(batch_size),
            timeout_s=120.0 if timeout_s is None else float(timeout_s),
            retry=flags.get("retry"),
            prune_missing=bool(flags.get("prune_missing")),
            spreadsheet=bool(flags.get("spreadsheet")),
            strict=bool(flags.get("strict")),
            files=self._file_selection(),
        )

    def _file_selection(self) -> FileSelection:
        from vidqa.media.selection.file_selection import FileSelection

        given = {field.name: self._flags.get(field.name) for field in fields(FileSelection)}
        return FileSelection(**{name: value for name, value in given.items() if value is not None})

    def run_scope(self, table: str = "cache") -> RunScope:
        """Return the context manager for a long command: signals, event log, metrics.

        Args:
            table: what the run writes, for log and metrics.
        """
        from vidqa.cli.run_scope import RunScope

        flags = self._flags
        return RunScope(
            self.reporter,
            table,
            log=flags.get("log"),
            log_json=bool(flags.get("log_json")),
            metrics=flags.get("metrics"),
        )

    def print_summary(self, summary: Summary) -> None:
        """Print the counts of a run: as text on stderr, and with `--json` also on stdout.

        Args:
            summary: of the run.
        """
        self.reporter.message(summary.as_text(verbose=self.reporter.level >= 2))
        if self.as_json:
            click.echo(as_json(summary.as_dict()))


class _ReporterHandler(logging.Handler):
    """Prints warnings (such as a damaged cache entry) and errors so that they do not break the progress bar."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.WARNING)
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:  # printed with -q, too
            self._reporter.message(f"vidqa: {record.getMessage()}", level=0)
        else:
            self._reporter.message(f"warning: {record.getMessage()}")


def _route_warnings(reporter: Reporter) -> None:
    logger = logging.getLogger("vidqa")
    logger.handlers = [_ReporterHandler(reporter)]
    logger.propagate = False
    if sys.stderr is None:  # a service without a terminal
        logger.handlers = [logging.NullHandler()]
