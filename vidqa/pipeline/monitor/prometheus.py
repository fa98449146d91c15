"""Counts of a run -> a file for the textfile collector of the Prometheus node exporter.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/. The file is replaced atomically, because the
collector may read it at any moment. The temporary file does not end in `.prom`, so the collector ignores it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from vidqa import __version__
from vidqa.common import atomic_io
from vidqa.common.path_text import escape_surrogates
from vidqa.errors import NOTE_KINDS
from vidqa.pipeline.monitor.summary import Summary

#: Name -> help text. All are gauges of the last run: every run starts from zero.
METRICS = {
    "vidqa_run_info": "Version of vidqa in the last run; the value is always 1.",
    "vidqa_run_exit_code": "Exit code of the last run.",
    "vidqa_run_success": "1 if the last run finished, with or without failed items; else 0.",
    "vidqa_run_end_timestamp_seconds": "Time at which the last run ended.",
    "vidqa_run_last_success_timestamp_seconds": "Time at which a run last finished.",
    "vidqa_run_duration_seconds": "Duration of the last run.",
    "vidqa_files": "Files of the last run by state: found, done, cached, failed, quarantined, renamed.",
    "vidqa_rows": "Rows of the last run by status and age: new, failed again, existing.",
    "vidqa_errors": "New failed rows of the last run by error kind.",
    "vidqa_noted_files": "Files of the last run that could be read, but have problems, by kind of note.",
    "vidqa_ignored_files": "Files that are not media, by reason.",
    "vidqa_excluded_files": "Files and folders that the last run excluded, by option.",
    "vidqa_path_problems": "Paths of the last run that do not exist, cannot be read or contain no media.",
    "vidqa_video_seconds": "Duration of the videos that the last run processed.",
    "vidqa_stage_seconds": "Seconds of the last run by stage.",
}
_LAST_SUCCESS = "vidqa_run_last_success_timestamp_seconds"


@dataclass(frozen=True)
class RunEnd:
    """Exit code and times of a run."""

    exit_code: int
    end_s: float  # seconds since 1970
    wall_s: float

    @property
    def success(self) -> bool:
        """Whether all files were processed (exit code 0 or 3)."""
        return self.exit_code in (0, 3)


def write_metrics(path: str | os.PathLike[str], table: str, end: RunEnd, summary: Summary | None) -> None:
    """Write or replace the file.

    Args:
        path: a name that ends in `.prom`, in the folder of the collector.
        table: label of every metric, to distinguish the runs of several tables.
        end: exit code and times of the run.
        summary: of the run; None if it ended before it had one, so that its counts are omitted.

    Raises:
        OSError: the file cannot be written; the old one is kept.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a device such as /dev/null must not be replaced by a file
        path.write_text(metrics_text(table, end, summary, end.end_s if end.success else None), encoding="utf-8")
        return
    last = end.end_s if end.success else _last_success(path, table)
    with atomic_io.atomic_write(path) as f:
        f.write(metrics_text(table, end, summary, last).encode())


def metrics_text(table: str, end: RunEnd, summary: Summary | None, last_success_s: float | None) -> str:
    """Return the content of the file.

    Args:
        table: label of every metric.
        end: exit code and times of the run.
        summary: counts of the run, or None.
        last_success_s: time at which a run last finished, or None.
    """
    values: list[tuple[str, dict[str, str], float]] = [
        ("vidqa_run_info", {"version": __version__}, 1),
        ("vidqa_run_exit_code", {}, end.exit_code),
        ("vidqa_run_success", {}, int(end.success)),
        ("vidqa_run_end_timestamp_seconds", {}, round(end.end_s, 3)),
        ("vidqa_run_duration_seconds", {}, round(end.wall_s, 3)),
    ]
    if last_success_s is not None:
        values.append((_LAST_SUCCESS, {}, round(last_success_s, 3)))
    if summary is not None:
        values += _of_summary(summary)
    lines = []
    for name, help_text in METRICS.items():
        samples = [(labels, value) for metric, labels, value in values if metric == name]
        if samples:
            lines += [f"# HELP {name} {help_text}", f"# TYPE {name} gauge"]
            lines += [f"{name}{_labels({'table': table} | labels)} {value:.15g}" for labels, value in samples]
    return "\n".join(lines) + "\n"


def _of_summary(summary: Summary) -> list[tuple[str, dict[str, str], float]]:
    files = {
        "found": summary.files,
        "done": summary.clips_done,
        "cached": summary.clips_cached,
        "failed": summary.clips_failed,
        "quarantined": len(summary.quarantined),
        "renamed": summary.renamed,
    }
    # Every status, including those without rows: alerts need metrics that are always present.
    statuses = ("ok", "truncated", "empty", "failed", "skipped")
    new = {s: summary.rows[s] - (summary.failed_again if s == "failed" else 0) for s in statuses}
    return [
        *(("vidqa_files", {"state": state}, n) for state, n in files.items()),
        *(("vidqa_rows", {"status": s, "age": "new"}, n) for s, n in new.items()),
        ("vidqa_rows", {"status": "failed", "age": "again"}, summary.failed_again),
        *(("vidqa_rows", {"status": s, "age": "existing"}, summary.existing[s]) for s in statuses),
        *(("vidqa_errors", {"kind": kind}, n) for kind, n in sorted(summary.errors.items())),
        *(("vidqa_noted_files", {"kind": kind}, summary.notes[kind]) for kind in NOTE_KINDS),
        *(("vidqa_ignored_files", {"reason": reason}, n) for reason, n in sorted(summary.ignored.items())),
        *(("vidqa_excluded_files", {"by": option}, n) for option, n in sorted(summary.excluded.items())),
        ("vidqa_path_problems", {}, len(summary.path_problems)),
        ("vidqa_video_seconds", {}, round(summary.video_s, 3)),
        *(("vidqa_stage_seconds", {"stage": stage}, round(s, 3)) for stage, s in summary.seconds.items()),
    ]


def _labels(labels: dict[str, str]) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    """Return the value of a label, in UTF-8 with the three escapes of the format."""
    text = escape_surrogates(value)
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _last_success(path: Path, table: str) -> float | None:
    """Read the time from the old file, because a failed run must not lose it."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    start = re.escape(_LAST_SUCCESS + _labels({"table": table}))
    match = re.search(rf"^{start} (\d+(?:\.\d+)?)$", text, re.M)
    return float(match[1]) if match else None
