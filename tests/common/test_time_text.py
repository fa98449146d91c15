"""Ages, durations and dates in the forms that users write."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone

import pytest

from vidqa.common.time_text import parse_age, parse_duration, parse_moment
from vidqa.errors import UsageError


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("90s", 90), ("10min", 600), ("90m", 5400), ("2h", 7200), ("12h", 43200), ("1d", 86400), ("3w", 1814400)),
        *(("1h30m", 5400), ("1h30min", 5400), (" 1d 12h ", 129600), ("1.5h", 5400), ("45s", 45), ("0s", 0)),
    ],
)
def test_ages(text: str, seconds: float) -> None:
    assert parse_age(text) == parse_duration(text) == seconds
    assert parse_moment(text) == timedelta(seconds=seconds)


WRONG = [
    "",
    "d",
    "30 days",
    "-1d",
    "30y",
    "1mo",
    "1m2h",
    "1h1h",
    "1d-2h",
    "1:30",
    "1,5h",
    "nan",
    "inf",
    "1e3s",
    "\u0661d",
]


@pytest.mark.parametrize("text", [*WRONG, "30"])
def test_invalid_ages(text: str) -> None:
    with pytest.raises(UsageError, match="not an age") as caught:
        parse_age(text)
    assert repr(text) in caught.value.what and "30d" in str(caught.value)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("2.5", 2.5), ("0", 0), ("1h30m", 5400)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", [*WRONG, "9" * 400])
def test_invalid_durations(text: str) -> None:
    with pytest.raises(UsageError, match="not a duration"):
        parse_duration(text)


def test_dates_are_local_unless_they_have_an_offset(berlin: None) -> None:
    assert parse_moment("2026-11-01") == datetime(2026, 10, 31, 23, tzinfo=UTC)
    assert parse_moment("2026-07-01 18:30") == datetime(2026, 7, 1, 16, 30, tzinfo=UTC), "summer time"
    assert parse_moment("2026-11-01T18:30:15") == datetime(2026, 11, 1, 17, 30, 15, tzinfo=UTC)
    assert parse_moment("2026-11-01T18:30Z") == datetime(2026, 11, 1, 18, 30, tzinfo=UTC)
    assert parse_moment("2026-11-01T18:30-03:00") == datetime(2026, 11, 1, 18, 30, tzinfo=timezone(timedelta(hours=-3)))


@pytest.mark.parametrize(
    "text",
    [*WRONG, "30", "2026", "2026-13-01", "2026-02-30", "01.11.2026", "tomorrow", "9" * 400 + "d", "9" * 20 + "w"],
)
def test_invalid_moments(text: str) -> None:
    with pytest.raises(UsageError, match="neither an age nor a date") as caught:
        parse_moment(text)
    assert "2026-11-01" in str(caught.value) and "1d" in str(caught.value)
