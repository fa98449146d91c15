"""A run in numbers -> a file for the textfile collector of Prometheus' node exporter. Knows the format of the file
(https://prometheus.io/docs/instrumenting/exposition_formats/), not who reads it.

The file is whole or absent: the collector may read at any moment. Its temporary name does not end in `.prom`, so the
collector does not see that one.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from vidqa import __version__
from vidqa.common import atomic_io
from vidqa.common.path_text import escape_surrogates
from vidqa.pipeline.monitor.summary import Summary

#: Name -> what it says. All are gauges of the last run: the numbers start anew with each.
METRICS = {
    "vidqa_run_info": "What ran: always 1.",
    "vidqa_run_exit_code": "Exit code of the last run.",
    "vidqa_run_success": "1 if the last run came to its end, failed items or not; else 0.",
    "vidqa_run_end_timestamp_seconds": "When the last run ended.",
    "vidqa_run_last_success_timestamp_seconds": "When a run last came to its end.",
    "vidqa_run_duration_seconds": "How long the last run took.",
    "vidqa_files": "Files of the last run: found, worked on, of these cached and failed; in quarantine; renamed.",
    "vidqa_rows": "Rows of the last run by status: new, failed again, and known ones of the files that were found.",
    "vidqa_errors": "New failed rows of the last run by kind of error.",
    "vidqa_left_out_files": "Files that are no media, by reason.",
    "vidqa_video_seconds": "Length of the clips that the last run worked on.",
    "vidqa_stage_seconds": "Seconds of the last run by stage.",
}
_LAST_SUCCESS = "vidqa_run_last_success_timestamp_seconds"


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    exit_code: int
    end_s: float  # seconds since 1970
    wall_s: float

    @property
    def success(self) -> bool:
        """0 and 3: everything was looked at."""
        return self.exit_code in (0, 3)


def write_metrics(path: str | os.PathLike[str], table: str, ended: Ended, summary: Summary | None) -> None:
    """Replace the file.

    Args:
        path: ends in `.prom`, in the folder that the collector was told.
        table: tells the runs of several tables apart: the label of every number.
        ended: how the run ended.
        summary: None where the run did not get so far: its numbers are then left out.

    Raises:
        OSError: it cannot be written; the old one is untouched.
    """
    last = ended.end_s if ended.success else _last_success(Path(path), table)
    with atomic_io.atomic_write(path) as f:
        f.write(metrics_text(table, ended, summary, last).encode())


def metrics_text(table: str, ended: Ended, summary: Summary | None, last_success_s: float | None) -> str:
    """The content of the file."""
    values: list[tuple[str, dict[str, str], float]] = [
        ("vidqa_run_info", {"version": __version__}, 1),
        ("vidqa_run_exit_code", {}, ended.exit_code),
        ("vidqa_run_success", {}, int(ended.success)),
        ("vidqa_run_end_timestamp_seconds", {}, round(ended.end_s, 3)),
        ("vidqa_run_duration_seconds", {}, round(ended.wall_s, 3)),
    ]
    if last_success_s is not None:
        values.append((_LAST_SUCCESS, {}, round(last_success_s, 3)))
    if summary is not None:
        values += _of_summary(summary)
    lines = []
    for name, help_text in METRICS.items():
        mine = [(labels, value) for metric, labels, value in values if metric == name]
        if mine:
            lines += [f"# HELP {name} {help_text}", f"# TYPE {name} gauge"]
            lines += [f"{name}{_labels({'table': table} | labels)} {value:.15g}" for labels, value in mine]
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
    # Every status, also where there are none: a number that comes and goes makes poor alerts.
    statuses = ("ok", "truncated", "empty", "failed", "skipped")
    new = {s: summary.rows[s] - (summary.failed_again if s == "failed" else 0) for s in statuses}
    return [
        *(("vidqa_files", {"state": state}, n) for state, n in files.items()),
        *(("vidqa_rows", {"status": s, "age": "new"}, n) for s, n in new.items()),
        ("vidqa_rows", {"status": "failed", "age": "again"}, summary.failed_again),
        *(("vidqa_rows", {"status": s, "age": "known"}, summary.known[s]) for s in statuses),
        *(("vidqa_errors", {"kind": kind}, n) for kind, n in sorted(summary.errors.items())),
        *(("vidqa_left_out_files", {"reason": reason}, n) for reason, n in sorted(summary.left_out.items())),
        ("vidqa_video_seconds", {}, round(summary.video_s, 3)),
        *(("vidqa_stage_seconds", {"stage": stage}, round(s, 3)) for stage, s in summary.seconds.items()),
    ]


def _labels(labels: dict[str, str]) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    """A label: UTF-8, with the three escapes of the format."""
    text = escape_surrogates(value)
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _last_success(path: Path, table: str) -> float | None:
    """What the file said before: a failed run must not wipe out when the last good one was."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    start = re.escape(_LAST_SUCCESS + _labels({"table": table}))
    match = re.search(rf"^{start} (\d+(?:\.\d+)?)$", text, re.M)
    return float(match[1]) if match else None
