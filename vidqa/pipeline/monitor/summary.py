"""Counts of a run -> text, one line, or JSON at its end."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vidqa.common.display import counts, display_path, human_duration, plural
from vidqa.errors import note_kind
from vidqa.pipeline.monitor.reporter import STAGES, StageClock
from vidqa.pipeline.monitor.throughput import ThroughputMeter

#: Paths in a message. `--json` lists all quarantined files, and -v every failed one.
_MAX_PATHS = 3


@dataclass
class Summary:
    """Counts of one run. `rows` and `video_s` are work of this run, `existing` that of earlier ones."""

    table: str | None = None  # None: the run only filled the cache
    files: int = 0  # media files that the scan found
    clips_done: int = 0  # files that this run processed
    clips_cached: int = 0  # files whose features were cached; part of clips_done, unless there is no table
    clips_failed: int = 0  # part of clips_done: files that could not be decoded
    rows: Counter[str] = field(default_factory=Counter)  # new rows by status
    existing: Counter[str] = field(default_factory=Counter)  # rows that the files had before, by status
    errors: Counter[str] = field(
        default_factory=Counter
    )  # new failed rows by error kind; without a table, failed files
    failed_paths: list[str] = field(default_factory=list)  # the first files with new errors
    noted_files: int = 0  # processed files that could be read, but have problems; they are not part of clips_failed
    notes: Counter[str] = field(default_factory=Counter)  # of these files, by kind of note
    noted_paths: list[str] = field(default_factory=list)  # the first of them
    existing_noted: int = 0  # part of existing: rows about files with problems, without failed ones
    ignored: dict[str, int] = field(default_factory=dict)  # files that are not media, by reason
    excluded: Counter[str] = field(default_factory=Counter)  # number of files and folders by option
    path_problems: dict[str, str] = field(default_factory=dict)  # path without media, or unreadable -> reason
    failed_again: int = 0  # new failed rows whose file and question had failed in an earlier run
    renamed: int = 0  # files whose rows only needed a new path
    renamed_questions: int = 0  # questions whose rows only needed a new id
    copied: int = 0  # files that got copies of the rows that a duplicate had before this run
    quarantined: dict[str, int] = field(
        default_factory=dict
    )  # skipped path -> failed runs in a row, in order of the scan
    pruned: int = 0  # removed files, and replaced ones that had a problem, whose rows were dropped
    segments: int = 0  # decoded and encoded by this run
    video_s: float = 0.0  # duration of the processed videos
    wall_s: float = 0.0  # seconds that the run took
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))  # by stage, see StageClock
    start_s: float = 0.0  # part of the seconds of `decode`, see StageClock
    bottleneck: str | None = None  # the stage that took most time
    meter: ThroughputMeter = field(default_factory=ThroughputMeter)  # work and busy time of each stage

    def __repr__(self) -> str:
        """Return the line of `as_line`; `as_dict` has everything."""
        return f"<Summary: {self.as_line().removeprefix('vidqa: ')}>"

    @property
    def n_failed(self) -> int:
        """Failed rows at the end of the run, including those of earlier runs; failed files if there is no table."""
        return self.rows["failed"] + self.existing["failed"] + (0 if self.rows or self.existing else self.clips_failed)

    @property
    def is_partial(self) -> bool:
        """Whether something that the run was asked for is missing: rows failed, or a path led to no media."""
        return bool(self.n_failed or self.path_problems)

    @property
    def nothing_done(self) -> bool:
        """Whether no file had to be processed."""
        return self.clips_done == 0

    def record_error(self, path: str, kind: str) -> None:
        """Count a failed row, or a failed file if there is no table.

        Args:
            path: of the file.
            kind: of the error.
        """
        self.errors[kind] += 1
        if len(self.failed_paths) < _MAX_PATHS and path not in self.failed_paths:
            self.failed_paths.append(path)

    def record_notes(self, path: str, notes: Sequence[str]) -> None:
        """Count a file that could be read, but has problems.

        Args:
            path: of the file.
            notes: at least one.
        """
        self.noted_files += 1
        self.notes.update(set(map(note_kind, notes)))
        if len(self.noted_paths) < _MAX_PATHS:
            self.noted_paths.append(path)

    def exclude_rest(self, n_files: int) -> None:
        """Count the files after the last one that `--limit` allows.

        Args:
            n_files: their number, which may be 0.
        """
        if n_files:
            self.files -= n_files
            self.excluded["--limit"] += n_files

    def close(self, clock: StageClock, wall_s: float) -> None:
        """Take over the times at the end of the run.

        Args:
            clock: of the run.
            wall_s: seconds that the run took.
        """
        self.seconds, self.start_s = dict(clock.seconds), clock.start_s
        self.bottleneck = clock.bottleneck() if self.clips_done else None
        self.wall_s = wall_s
        self.meter = clock.meter

    def as_dict(self) -> dict[str, object]:
        """Return plain values for `--json`; seconds are rounded to milliseconds."""
        return {
            "table": self.table,
            "files": self.files,
            "clips": {"done": self.clips_done, "cached": self.clips_cached, "failed": self.clips_failed},
            "rows": dict(self.rows),
            "existing": dict(self.existing),
            "errors": dict(self.errors),
            "failed_again": self.failed_again,
            "noted_files": self.noted_files,
            "notes": dict(self.notes),
            "existing_noted": self.existing_noted,
            "ignored": dict(self.ignored),
            "excluded": dict(self.excluded),
            "path_problems": [{"path": path, "reason": reason} for path, reason in self.path_problems.items()],
            "renamed": self.renamed,
            "renamed_questions": self.renamed_questions,
            "copied": self.copied,
            "quarantined": list(self.quarantined),
            "pruned": self.pruned,
            "hours_of_video": round(self.video_s / 3600, 6),
            "wall_s": round(self.wall_s, 3),
            "seconds": {stage: round(value, 3) for stage, value in self.seconds.items()},
            "bottleneck": self.bottleneck,
            "line": self.as_line(),
            "rates": self.meter.as_dict(self.wall_s),
        }

    def as_line(self) -> str:
        """Return one line of ASCII for the subject of an e-mail: `vidqa: t.csv: 118 new rows, 3 failed; ...`."""
        parts = [
            plural(sum(self.rows.values()), "new row") if self.table else f"{plural(self._n_encoded, 'file')} encoded"
        ]
        if self.table and self.existing:
            parts.append(f"{sum(self.existing.values()):,} existing")
        if not self.table and self.clips_cached:
            parts.append(f"{self.clips_cached:,} already cached")
        first_time = self.rows["failed"] - self.failed_again
        parts.append(
            f"{self.n_failed:,} failed" + (f" ({first_time:,} of them new)" if self.n_failed and self.table else "")
        )
        if self.quarantined:
            parts.append(f"{len(self.quarantined):,} in quarantine")
        if self.path_problems:
            parts.append(plural(len(self.path_problems), "path problem"))
        basename = os.path.basename((self.table or "").rstrip("/" + os.sep))  # a dataset may end in a slash
        name = ascii(basename).strip("'\"")[-40:] if self.table else "cache"
        return f"vidqa: {name}: {', '.join(parts)}; {plural(self.files, 'file')} in {human_duration(self.wall_s)}"

    def as_text(self, *, verbose: bool = False) -> str:
        """Return a few lines for people.

        Args:
            verbose: add the throughput of each stage, compared with the hardware's limits.
        """
        lines = [self._first_line()]
        if self.rows:
            again = f"; {self.failed_again:,} of the failed ones had failed before" if self.failed_again else ""
            lines.append(f"new rows: {counts(self.rows)}{again}")
        if self.existing:
            retry = (
                "; --retry failed tries failed ones again" if self.existing["failed"] and not self.quarantined else ""
            )
            noted = f" ({self.existing_noted:,} about files with problems)" if self.existing_noted else ""
            lines.append(f"existing rows: {counts(self.existing)}{noted}{retry}")
        if self.renamed:
            lines.append(f"updated paths: {plural(self.renamed, 'file')} renamed since the last run")
        if self.renamed_questions:
            lines.append(f"updated ids: {plural(self.renamed_questions, 'question')} renamed since the last run")
        if self.copied:
            lines.append(f"copied rows: {plural(self.copied, 'file')} with the same content as another file")
        if self.pruned:
            lines.append(f"dropped rows: {plural(self.pruned, 'removed or replaced file')}")
        if self.quarantined:
            files, n_runs = plural(len(self.quarantined), "file"), min(self.quarantined.values())
            lines.append(
                f"quarantined: {files} that failed in at least {n_runs} runs in a row; --retry all tries again"
            )
            lines.append(f"  {_paths(list(self.quarantined))}")
        if self.errors:
            n_more = max(0, sum(self.errors.values()) - len(self.failed_paths))
            where = f" in {_paths(self.failed_paths)}{', ...' if n_more else ''}; see -v" if self.failed_paths else ""
            lines.append(f"failures: {counts(self.errors)}{'' if verbose else where}")
        if self.noted_files:
            more = ", ..." if self.noted_files > len(self.noted_paths) else ""
            where = "" if verbose else f" in {_paths(self.noted_paths)}{more}; see -v"
            files = plural(self.noted_files, "file")
            lines.append(f"{files} with problems: {counts(self.notes)}{where}; --strict makes them fail")
        if self.ignored:
            lines.append(f"ignored files: {counts(self.ignored)}")
        if self.excluded:
            lines.append(excluded_line(self.excluded))
        if self.path_problems:
            number, paths = plural(len(self.path_problems), "path"), _paths(list(self.path_problems))
            lines.append(f"path problems: {number} without readable media: {paths}")
        if self.bottleneck:
            spent = ", ".join(f"{stage} {self.seconds[stage]:.1f}" for stage in STAGES)
            lines.append(f"seconds: {spent}; bottleneck: {self.bottleneck}")
        if verbose and not self.nothing_done and (throughput := self.meter.as_text(self.wall_s, hardware=True)):
            lines.append(throughput)
        lines.append(self.as_line())
        return "\n".join(lines)

    @property
    def _n_encoded(self) -> int:
        return self.clips_done - self.clips_failed

    def _first_line(self) -> str:
        if self.nothing_done:
            if not self.files:
                return "nothing to do: no file is left" if self.excluded else "nothing to do: there are no files"
            files = plural(self.files, "file")
            return f"nothing to do: {f'all rows of {files} exist' if self.table else f'{files} already cached'}"
        if self.table:
            files, cached = f"{plural(self.clips_done, 'file')} processed", f", {self.clips_cached:,} from the cache"
        else:
            files, cached = f"{plural(self._n_encoded, 'file')} encoded", f", {self.clips_cached:,} already cached"
        cached = cached if self.clips_cached else ""
        return f"{files}{cached}, {human_duration(self.video_s)} of video in {human_duration(self.wall_s)}"


def excluded_line(excluded: Mapping[str, int]) -> str:
    """Return a line such as `excluded files and folders: 12 by --exclude, 3 by --newer-than`.

    Args:
        excluded: numbers by option.
    """
    return f"excluded files and folders: {counts({f'by {option}': n for option, n in excluded.items()})}"


def _paths(paths: Sequence[str]) -> str:
    shown = ", ".join(map(display_path, paths[:_MAX_PATHS]))
    return f"{shown} and {len(paths) - _MAX_PATHS:,} more" if len(paths) > _MAX_PATHS else shown
