"""What a run did, in numbers: counted while it goes, said when it ends.

Knows rows and files as counts; knows no stage.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field

from vidqa.common.display import display_path, human_duration
from vidqa.pipeline.monitor.reporter import STAGES, StageClock
from vidqa.pipeline.monitor.throughput import ThroughputMeter
from vidqa.pipeline.run.retry_policy import QUARANTINE_AFTER

#: Names in a message; the log and `--json` have all.
_SHOWN = 5


@dataclass
class Summary:
    """Counts of one run. `rows` and `hours` speak of this run, `known` of what an earlier one had done."""

    table: str | None = None
    files: int = 0  # found as media, or claiming to be
    clips_done: int = 0  # files that this run worked on
    clips_cached: int = 0  # of these, no frame had to be decoded; where nothing is asked, those beside them
    clips_failed: int = 0  # of these, nothing could be decoded
    rows: Counter[str] = field(default_factory=Counter)  # new rows by status
    known: Counter[str] = field(default_factory=Counter)  # rows of these files that were there before, by status
    errors: Counter[str] = field(default_factory=Counter)  # by kind: new failed rows, or files where nothing was asked
    left_out: dict[str, int] = field(default_factory=dict)  # files that are plainly no media, by reason
    failed_again: int = 0  # of the new failed rows, those whose file and question had failed in an earlier run
    renamed: int = 0  # files whose rows only needed a new path
    copied: int = 0  # files that got the rows that another file with the same content had before this run
    quarantined: dict[str, None] = field(default_factory=dict)  # paths passed over, in the order found
    pruned: int = 0  # files that vanished and whose rows were removed
    segments: int = 0  # decoded and encoded by this run
    video_s: float = 0.0  # length of the clips that were worked on
    wall_s: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))  # by stage, see StageClock
    start_s: float = 0.0  # of the seconds of `decode`, see StageClock
    limit: str | None = None  # the stage that took most
    meter: ThroughputMeter = field(default_factory=ThroughputMeter)  # what the stages did, side by side

    @property
    def n_failed(self) -> int:
        """Failed rows (or files, where nothing was asked) that stand at the end of the run, old ones too."""
        return self.rows["failed"] + self.known["failed"] + (0 if self.rows or self.known else self.clips_failed)

    @property
    def nothing_done(self) -> bool:
        """True when everything was there already."""
        return self.clips_done == 0

    def close(self, clock: StageClock, wall_s: float) -> None:
        """Take over the clock at the end of the run."""
        self.seconds, self.start_s = dict(clock.seconds), clock.start_s
        self.limit = clock.limit() if self.clips_done else None
        self.wall_s = wall_s
        self.meter = clock.meter

    def as_dict(self) -> dict[str, object]:
        """For `--json`: plain values, seconds rounded to the millisecond."""
        return {
            "table": self.table,
            "files": self.files,
            "clips": {"done": self.clips_done, "cached": self.clips_cached, "failed": self.clips_failed},
            "rows": dict(self.rows),
            "known": dict(self.known),
            "errors": dict(self.errors),
            "failed_again": self.failed_again,
            "left_out": dict(self.left_out),
            "renamed": self.renamed,
            "copied": self.copied,
            "quarantined": list(self.quarantined),
            "pruned": self.pruned,
            "hours_of_video": round(self.video_s / 3600, 6),
            "wall_s": round(self.wall_s, 3),
            "seconds": {stage: round(value, 3) for stage, value in self.seconds.items()},
            "limit": self.limit,
            "line": self.as_line(),
            "rates": self.meter.as_dict(self.wall_s),
        }

    def as_line(self) -> str:
        """One line of ASCII, fit for the subject of a mail: `3 failed: 118 new rows, ...`."""
        known = sum(self.known.values()) if self.table else self.clips_cached
        said = [_n(sum(self.rows.values()), "new row") if self.table else f"{_n(self._encoded, 'clip')} encoded"]
        if known:
            said.append(f"{known} known")
        first_time = self.rows["failed"] - self.failed_again
        news = f" ({first_time} of them new)" if self.n_failed and self.table else ""
        said.append(f"{self.n_failed} failed{news}")
        if self.quarantined:
            said.append(f"{len(self.quarantined)} in quarantine")
        last = os.path.basename((self.table or "").rstrip("/" + os.sep))  # a data set may end in a slash
        name = ascii(last).strip("'\"")[-40:] if self.table else "cache"
        return f"vidqa: {name}: {', '.join(said)}; {_n(self.files, 'file')} in {_took(self.wall_s)}"

    def as_text(self) -> str:
        """For people: a few lines."""
        lines = [self._first_line()]
        if self.rows:
            again = f"; {self.failed_again} of the failed ones had failed before" if self.failed_again else ""
            lines.append(f"new rows: {_counts(self.rows)}{again}")
        if self.known:
            retry = "; --retry failed asks those again" if self.known["failed"] and not self.quarantined else ""
            lines.append(f"rows already there: {_counts(self.known)}{retry}")
        if self.renamed:
            lines.append(f"new paths: {_n(self.renamed, 'file')} renamed since the last run")
        if self.copied:
            lines.append(f"copied rows: {_n(self.copied, 'file')} with the same content as others")
        if self.pruned:
            lines.append(f"removed: the rows of {_n(self.pruned, 'file')} that vanished")
        if self.quarantined:
            shown = ", ".join(map(display_path, list(self.quarantined)[:_SHOWN]))
            more = f" and {len(self.quarantined) - _SHOWN} more" if len(self.quarantined) > _SHOWN else ""
            lines.append(
                f"in quarantine: {_n(len(self.quarantined), 'file')} that failed {QUARANTINE_AFTER} nights in a row; "
                f"--retry all asks them again: {shown}{more}"
            )
        if self.errors:
            lines.append(f"failures: {_counts(self.errors)}")
        if self.left_out:
            lines.append(f"left out: {_counts(self.left_out)}")
        if self.limit:
            spent = ", ".join(f"{stage} {self.seconds[stage]:.1f}" for stage in STAGES)
            lines.append(f"seconds: {spent}; limited by {self.limit}")
        if not self.nothing_done and (rates := self.meter.as_text(self.wall_s)):
            lines.append(rates)
        lines.append(self.as_line())
        return "\n".join(lines)

    @property
    def _encoded(self) -> int:
        return self.clips_done - self.clips_failed

    def _first_line(self) -> str:
        if self.nothing_done:
            files = _n(self.files, "file")
            return "nothing to do: " + (
                f"all rows of {files} are there already" if self.table else f"{files} in the cache already"
            )
        if self.table:
            clips, cached = _n(self.clips_done, "clip"), f", {self.clips_cached} from the cache"
        else:
            clips, cached = f"{_n(self._encoded, 'clip')} encoded", f", {self.clips_cached} in the cache already"
        cached = cached if self.clips_cached else ""
        return f"{clips}{cached}, {human_duration(self.video_s)} of video in {self.wall_s:.1f} s"


def _n(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _counts(counts: Counter[str] | dict[str, int]) -> str:
    return ", ".join(
        f"{number} {name}" for name, number in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    )


def _took(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
