"""What surrounds a long command however it ends: signal handling, the event log and the metrics file."""

from __future__ import annotations

import signal
import sys
import time
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from vidqa.cli.main import EXIT_TERMINATED, Terminated
from vidqa.common.output_paths import check_output_parent
from vidqa.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_PARTIAL, UsageError, VidqaError
from vidqa.pipeline.monitor.event_log import EventLog
from vidqa.pipeline.monitor.signals import SignalExceptions

if TYPE_CHECKING:
    from vidqa.pipeline.monitor.reporter import Reporter
    from vidqa.pipeline.monitor.summary import Summary

_OUTCOMES = {
    EXIT_OK: "ok",
    EXIT_PARTIAL: "items failed",
    EXIT_INTERRUPTED: "interrupted",
    EXIT_TERMINATED: "terminated",
}


class RunScope:
    """Context manager around the work of a command.

    Args:
        reporter: gets the event log, and receives signals.
        table: what the run writes.
        log: file that events are appended to; None for none.
        log_json: write events as JSON objects; to stderr if there is no `log`.
        metrics: file for the Prometheus textfile collector; None for none.

    Raises:
        UsageError: log or metrics cannot be written at that path. Raised before any work starts.
    """

    def __init__(
        self,
        reporter: Reporter,
        table: str = "cache",
        *,
        log: str | None = None,
        log_json: bool = False,
        metrics: str | None = None,
    ) -> None:
        self._reporter, self._table, self._metrics = reporter, table, metrics
        self._summary: Summary | None = None
        self._code = EXIT_OK
        self._stack = ExitStack()
        self._start = 0.0
        self._stream = self._open_log(log, log_json)
        self._log_json = log_json
        if metrics is not None:
            check_output_parent(metrics, "--metrics")
        if metrics is not None and Path(metrics).is_dir():
            raise UsageError(f"--metrics {metrics}: is a folder", hint=f"--metrics {Path(metrics, 'vidqa.prom')}")

    def finish(self, summary: Summary) -> int:
        """Record that the work is complete, and return the exit code.

        Args:
            summary: of the run.
        """
        self._summary = summary
        self._code = EXIT_PARTIAL if summary.is_partial else EXIT_OK
        return self._code

    def __enter__(self) -> Self:
        self._start = time.perf_counter()
        if self._stream is not None:
            self._reporter.log = EventLog(self._stream, as_json=self._log_json)
        self._stack.enter_context(handle_signals(self._reporter))
        self._reporter.event("run", "started", note=self._table)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        wall_s = time.perf_counter() - self._start
        if error is not None:
            self._code = exit_code_of(error)
        outcome = _OUTCOMES.get(self._code, f"failed ({self._code})")
        note = self._summary.as_line() if self._summary else f"{type(error).__name__}: {error}".rstrip(": ")
        self._reporter.event("run", outcome, seconds=wall_s, note=note)
        if self._metrics is not None:
            self._write_metrics(self._metrics, wall_s)
        self._reporter.log = None
        self._stack.close()

    def _write_metrics(self, path: str, wall_s: float) -> None:
        from vidqa.pipeline.monitor.prometheus import RunEnd, write_metrics

        try:
            write_metrics(path, self._table, RunEnd(self._code, time.time(), wall_s), self._summary)
        except OSError as error:  # the table is complete, so the run has not failed
            self._reporter.message(f"warning: cannot write --metrics {path}: {error.strerror or error}")

    def _open_log(self, log: str | None, log_json: bool) -> TextIO | None:
        if log is None:
            return sys.stderr if log_json else None
        check_output_parent(log, "--log")
        try:
            stream = open(log, "a", encoding="utf-8")  # noqa: SIM115 - closed by the stack
        except OSError as error:
            hint = "choose a file in a writable folder"
            raise UsageError(f"--log {log}: {error.strerror or error}", hint=hint) from error
        self._stack.callback(_close, stream)
        return stream


def handle_signals(reporter: Reporter, *, prints: bool = True) -> AbstractContextManager[None]:
    """Return a context manager in which Ctrl-C and SIGTERM end the work at a moment when nothing is lost.

    Args:
        reporter: has the stop signal, and prints what the signal does.
        prints: False in all but one of several processes that receive the same signal.
    """
    exceptions: SignalExceptions = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
    return reporter.stop.handled(exceptions, reporter.message if prints else None)


def exit_code_of(error: BaseException) -> int:
    """Return the exit code of a command that ends with an error.

    Args:
        error: that ends the command.
    """
    if isinstance(error, VidqaError):
        return error.exit_code
    if isinstance(error, Terminated):
        return EXIT_TERMINATED
    return EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else EXIT_FAILED


def _close(stream: TextIO) -> None:
    with suppress(OSError):  # disk full: the reporter has printed a warning
        stream.close()
