"""Options that select files, checked and normalized."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from numbers import Integral, Real

from vidqa.common.time_text import as_moment, parse_duration, parse_moment
from vidqa.errors import UsageError
from vidqa.media.files import Paths, as_path_list
from vidqa.media.selection.path_list import read_path_list
from vidqa.media.selection.path_patterns import PathPatterns

#: An age or a point in time, as the caller passes it.
Moment = str | date | timedelta


@dataclass(frozen=True)
class FileSelection:
    """Which of the files that a run finds it processes. The fields correspond to options of the command line.

    Filters apply in this order: patterns, modification time, duration, sample, limit. Patterns do not apply to files
    that the caller names.

    Raises:
        UsageError: lists all invalid values.
    """

    exclude: Sequence[str] = ()  # patterns of files and folders below the searched folders, as in .gitignore
    include: Sequence[str] = ()  # patterns of files to take although they are excluded; without `exclude`, only these
    newer_than: Moment | None = None  # modification time: `1d`, `2026-11-01`, a date, datetime or timedelta
    older_than: Moment | None = None  # a file that was modified at that moment is newer, not older
    min_duration: float | str | None = None  # of videos, in seconds or as `1h30m`; images have no duration and are kept
    max_duration: float | str | None = None  # as `min_duration`
    files_from: str | os.PathLike[str] | None = None  # file with more paths, one per line; `-` for stdin
    null: bool = False  # null bytes separate the paths in `files_from`
    limit: int | None = None  # process at most this many files, the first ones that have something to do
    sample: int | None = None  # a random sample of this many files; it changes little while an archive grows
    seed: int = 0  # another seed selects another sample

    def __post_init__(self) -> None:
        problems: list[str] = []
        for name in ("exclude", "include"):
            value = getattr(self, name)
            patterns = (value,) if isinstance(value, str) else tuple(value)
            if all(isinstance(pattern, str) for pattern in patterns):
                object.__setattr__(self, name, patterns)
            else:
                problems.append(f"{name} must be a list of patterns, got {value!r}")
        for name, least in (("limit", 1), ("sample", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is None and name != "seed":
                continue
            if isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least:
                object.__setattr__(self, name, int(value))
            else:
                problems.append(f"{name} must be a whole number of at least {least}, got {value!r}")
        checks = (
            ("newer_than", _moment),
            ("older_than", _moment),
            ("min_duration", _seconds),
            ("max_duration", _seconds),
        )
        for name, normalized in checks:
            if (value := getattr(self, name)) is None:
                continue
            try:
                object.__setattr__(self, name, normalized(value))
            except UsageError as error:
                problems.append(f"{_option(name)}: {error}")
        problems += self._contradictions() if not problems else []
        try:
            self.patterns() if not problems else None
        except UsageError as error:
            problems.append(str(error))
        if problems:
            raise UsageError("\n".join(problems))

    def patterns(self) -> PathPatterns:
        """Return the rules for a scan. `.vidqaignore` files are read again by each call's result."""
        return PathPatterns(self.exclude, self.include)

    def paths(self, paths: Paths, name: str = "paths") -> list[str]:
        """Return the paths of the caller and those of the list.

        Args:
            paths: files, folders and globs.
            name: of the argument, for errors.

        Raises:
            TypeError: an element of `paths` is not a path.
            UsageError: there is no path and no list, or the list cannot be read.
        """
        found = as_path_list(paths, name)
        if self.files_from is not None:
            return found + read_path_list(os.fspath(self.files_from), null=self.null)
        if not found:
            raise UsageError("a path is missing", hint="pass a file or folder")
        return found

    def window_ns(self, now: datetime | None = None) -> tuple[int | None, int | None]:
        """Return the first modification time that is selected, and the first that is too new, in ns since 1970.

        Args:
            now: ages count back from here; None for the present.
        """
        now = now or datetime.now(UTC)
        return _as_ns(self.newer_than, now), _as_ns(self.older_than, now)

    @property
    def durations_s(self) -> tuple[float, float] | None:
        """The shortest and the longest duration of a video in seconds; None if every duration is selected."""
        if self.min_duration is None and self.max_duration is None:
            return None
        return float(self.min_duration or 0), float("inf" if self.max_duration is None else self.max_duration)

    def _contradictions(self) -> list[str]:
        found = []
        low, high = self.window_ns()
        if low is not None and high is not None and low >= high:
            found.append("--newer-than is not before --older-than, so no file can match both")
        least_s, most_s = self.durations_s or (0, 0)
        if least_s > most_s:
            found.append("--min-duration is longer than --max-duration, so no video can match both")
        return found


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _moment(value: Moment) -> timedelta | datetime:
    try:
        if isinstance(value, timedelta):
            return timedelta(seconds=abs(value.total_seconds()))
        if isinstance(value, date):
            return as_moment(value)
        return parse_moment(value)
    except (TypeError, AttributeError, ValueError, OverflowError) as error:
        raise UsageError(f"neither an age nor a date: {value!r}", hint="examples: 1d, 2026-11-01") from error


def _seconds(value: float | str) -> float:
    if isinstance(value, str):
        return parse_duration(value)
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value < float("inf"):
        raise UsageError(f"not a duration: {value!r}", hint="use seconds, such as 90, or units, such as 1h30m")
    return float(value)


def _as_ns(moment: Moment | None, now: datetime) -> int | None:
    if moment is None:
        return None
    if isinstance(moment, timedelta):
        return _as_ns(now, now) - moment // timedelta(microseconds=1) * 1000  # type: ignore[operator]
    assert isinstance(moment, datetime)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)  # `timestamp` would round
    return (since.days * 86400 + since.seconds) * 10**9 + since.microseconds * 1000
