"""Options that select files: normalization and errors."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from vidqa.errors import UsageError
from vidqa.media.selection.file_selection import FileSelection

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


def test_values_are_normalized() -> None:
    made = FileSelection(
        exclude="drafts/", include=["*.mp4"], min_duration="1h30m", max_duration=np.float32(6000), limit=np.int64(3)
    )
    assert made == FileSelection(
        exclude=("drafts/",), include=("*.mp4",), min_duration=5400, max_duration=6000.0, limit=3
    )
    assert made.durations_s == (5400.0, 6000.0) and FileSelection(min_duration=2).durations_s == (2.0, float("inf"))
    assert FileSelection().durations_s is None and type(made.limit) is int
    hash(made)


def test_the_window_of_modification_times() -> None:
    day_ns = 86400 * 10**9
    now_ns = int(NOW.timestamp()) * 10**9
    for newer in ("1d", timedelta(days=1), NOW - timedelta(days=1), "2026-11-29T12:00Z"):
        assert FileSelection(newer_than=newer, older_than="2h").window_ns(NOW) == (
            now_ns - day_ns,
            now_ns - day_ns // 12,
        )
    assert FileSelection().window_ns(NOW) == (None, None)
    assert FileSelection(newer_than="5000w", older_than="0.001s").window_ns(NOW)[1] == now_ns - 10**6
    assert FileSelection(newer_than="999999w").window_ns(NOW)[0] < 0, "19,000 years ago"
    local = datetime(2026, 11, 1).astimezone()
    assert FileSelection(newer_than=date(2026, 11, 1)).window_ns() == (int(local.timestamp()) * 10**9, None)


def test_all_invalid_values_are_reported_together() -> None:
    with pytest.raises(UsageError) as caught:
        FileSelection(
            exclude=[1],  # type: ignore[list-item]
            newer_than="soon",
            older_than=datetime(1, 1, 1),
            min_duration=-1,
            max_duration="long",
            limit=0,
            sample=2.5,  # type: ignore[arg-type]
            seed=-1,
        )
    for name in (
        "exclude",
        "--newer-than",
        "--older-than",
        "--min-duration",
        "--max-duration",
        "limit",
        "sample",
        "seed",
    ):
        assert name in caught.value.what
    for wrong in ({"exclude": ["[a"]}, {"include": ["!a"]}, {"newer_than": 5}, {"limit": True}, {"min_duration": True}):
        with pytest.raises(UsageError):
            FileSelection(**wrong)


@pytest.mark.parametrize(
    "values",
    [
        {"newer_than": "1d", "older_than": "2d"},
        {"newer_than": "2026-11-02", "older_than": "2026-11-01"},
        {"newer_than": "1d", "older_than": "1d"},
        {"min_duration": 10, "max_duration": "9s"},
    ],
)
def test_contradictions(values: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"no (file|video) can match both"):
        FileSelection(**values)  # type: ignore[arg-type]


def test_paths_and_lists(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("b.mp4\n")
    (tmp_path / "empty").write_text("")
    selection = FileSelection(files_from=tmp_path / "list")
    assert selection.paths("a.mp4") == ["a.mp4", "b.mp4"] and selection.paths([]) == ["b.mp4"]
    assert FileSelection(files_from=tmp_path / "empty").paths([]) == []
    with pytest.raises(UsageError, match="a path is missing"):
        FileSelection().paths([])
