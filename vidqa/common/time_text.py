"""Ages, durations and dates as users write them: `1d`, `1h30m`, `2026-11-01`."""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta

from vidqa.errors import UsageError

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(min|[smhdw])\s*")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def parse_age(text: str) -> float:
    """Parse an age such as `30d`, `12h`, `10min`, `2w`, `45s` or `1h30m`.

    Args:
        text: the age, always with units.

    Returns:
        The number of seconds.

    Raises:
        UsageError: not an age.
    """
    seconds = _sum_of_parts(text)
    if seconds is None:
        raise UsageError(f"not an age: {text!r}", hint="use a number with s, m or min, h, d or w, such as 30d or 10min")
    return seconds


def parse_duration(text: str) -> float:
    """Parse a duration: a number of seconds, or numbers with units such as `90s`, `10min` or `1h30m`.

    Args:
        text: the duration.

    Returns:
        The number of seconds.

    Raises:
        UsageError: not a duration.
    """
    seconds = float(text) if _NUMBER.fullmatch(text.strip()) else _sum_of_parts(text)
    if seconds is None or seconds == float("inf"):
        raise UsageError(f"not a duration: {text!r}", hint="use seconds, such as 90, or units, such as 90s or 1h30m")
    return seconds


def parse_moment(text: str) -> timedelta | datetime:
    """Parse an age, or a date with or without a time.

    Args:
        text: an age as for `parse_age`, or an ISO date. Without an offset, dates and times are local; without a time, a
            date stands for its midnight.

    Returns:
        The age, or the moment with a time zone.

    Raises:
        UsageError: neither, or beyond the years 1 to 9999.
    """
    hint = "examples: 90s, 10min, 2h, 1d, 3w, 2026-11-01, '2026-11-01 18:30', 2026-11-01T18:30+01:00"
    try:
        seconds = _sum_of_parts(text)
        return as_moment(datetime.fromisoformat(text.strip())) if seconds is None else timedelta(seconds=seconds)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"neither an age nor a date: {text!r}", hint=hint) from error


def as_moment(value: date | datetime) -> datetime:
    """Return a date or time with a time zone: the local one if it has none.

    Args:
        value: a date stands for its midnight.

    Raises:
        OverflowError, ValueError: the local time is beyond the years 1 to 9999.
    """
    moment = value if isinstance(value, datetime) else datetime.combine(value, time())
    return moment if moment.tzinfo else moment.astimezone()


def _sum_of_parts(text: str) -> float | None:
    """Return the seconds of numbers with different units, the largest unit first; None for any other text."""
    parts, position = [], 0
    text = text.strip()
    while position < len(text):
        match = _PART.match(text, position)
        if match is None:
            return None
        parts.append((float(match[1]), _UNITS[match[2]]))
        position = match.end()
    units = [unit for _, unit in parts]
    if not parts or units != sorted(set(units), reverse=True):
        return None
    return sum(number * unit for number, unit in parts)
