"""How a long command is watched: signals, the log and the metrics file, whatever way it ends.

Does not know what the command does.
"""

from __future__ import annotations

import signal
import sys
import time
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from vidqa.cli.main import EXIT_TERMINATED, Terminated
from vidqa.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_PARTIAL, UsageError, VidqaError
from vidqa.pipeline.monitor.event_log import EventLog
from vidqa.pipeline.monitor.signals import Kinds

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
    """Wraps the work of a command; to be used with `with`.

    Args:
        reporter: gets the log, and hears signals.
        table: what the run is about.
        log: file that gets lines at its end; None for none.
        log_json: lines as JSON objects; without `log` they go to stderr.
        metrics: file for Prometheus' textfile collector; None for none.

    Raises:
        UsageError: log or metrics cannot be where they are wanted. Said before any work.
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
        self._began = 0.0
        self._stream = self._opened(log, log_json)
        self._log_json = log_json
        if metrics is not None and not Path(metrics).absolute().parent.is_dir():
            raise UsageError(f"--metrics {metrics}: no such folder", hint="the folder of the textfile collector")
        if metrics is not None and Path(metrics).is_dir():
            raise UsageError(f"--metrics {metrics}: is a folder", hint=f"a file in it: {Path(metrics, 'vidqa.prom')}")

    def done(self, summary: Summary) -> int:
        """The work came to its end.

        Returns:
            The exit code.
        """
        self._summary = summary
        self._code = EXIT_PARTIAL if summary.n_failed else EXIT_OK
        return self._code

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        if self._stream is not None:
            self._reporter.log = EventLog(self._stream, as_json=self._log_json)
        self._stack.enter_context(heard(self._reporter))
        self._reporter.event("run", "started", note=self._table)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        wall_s = time.perf_counter() - self._began
        if error is not None:
            self._code = code_of(error)
        outcome = _OUTCOMES.get(self._code, f"failed ({self._code})")
        said = self._summary.as_line() if self._summary else f"{type(error).__name__}: {error}".rstrip(": ")
        self._reporter.event("run", outcome, seconds=wall_s, note=said)
        if self._metrics is not None:
            self._write_metrics(self._metrics, wall_s)
        self._reporter.log = None
        self._stack.close()

    def _write_metrics(self, path: str, wall_s: float) -> None:
        from vidqa.pipeline.monitor.prometheus import Ended, write_metrics

        try:
            write_metrics(path, self._table, Ended(self._code, time.time(), wall_s), self._summary)
        except OSError as error:  # the table is what counts
            self._reporter.say(f"warning: --metrics {path} cannot be written: {error.strerror or error}")

    def _opened(self, log: str | None, log_json: bool) -> TextIO | None:
        if log is None:
            return sys.stderr if log_json else None
        try:
            stream = open(log, "a", encoding="utf-8")  # noqa: SIM115 - closed by the stack
        except OSError as error:
            what = f"--log {log}: {error.strerror or error}"
            raise UsageError(what, hint="a file in a folder that is there and may be written") from error
        self._stack.callback(_close, stream)
        return stream


def heard(reporter: Reporter, speaks: bool = True) -> AbstractContextManager[None]:
    """Inside the block, Ctrl-C and SIGTERM end the work at a moment when nothing is lost.

    Args:
        reporter: says so, and has the wish to stop.
        speaks: False where one of several processes speaks for all.
    """
    kinds: Kinds = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
    return reporter.stop.heard(kinds, reporter.say if speaks else None)


def _close(stream: TextIO) -> None:
    with suppress(OSError):  # a full disk: the reporter has said so
        stream.close()


def code_of(error: BaseException) -> int:
    """The exit code of a command that an error ends."""
    if isinstance(error, VidqaError):
        return error.exit_code
    if isinstance(error, Terminated):
        return EXIT_TERMINATED
    return EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else EXIT_FAILED
