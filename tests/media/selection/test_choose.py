"""Filters on age and duration, and samples."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from vidqa.media.selection.choose import ChosenFiles, choose_files
from vidqa.media.selection.file_selection import FileSelection
from vidqa.records import MediaItem

NOW = datetime(2026, 11, 30, tzinfo=UTC)
NOW_NS = int(NOW.timestamp()) * 10**9


def item(name: str, *, age_s: float = 0, root: str = "/archive") -> MediaItem:
    return MediaItem(f"{root}/{name}", root, name, 1, NOW_NS - int(age_s * 10**9))


def no_durations(items: Sequence[MediaItem]) -> Mapping[str, float | None]:
    raise AssertionError("durations are not needed")


def choose(items: Sequence[MediaItem], durations: Any = no_durations, **values: Any) -> ChosenFiles:
    return choose_files(items, FileSelection(**values), durations, NOW)


def names(chosen: ChosenFiles) -> list[str]:
    return [one.rel for one in chosen.items]


def excluded(chosen: ChosenFiles) -> dict[str, str]:
    return {one.item.rel: one.why.by for one in chosen.excluded}


def test_ages_form_a_partition() -> None:
    items = [item("a", age_s=0), item("b", age_s=3600), item("c", age_s=3600.000001), item("d", age_s=-60)]
    new, old = choose(items, newer_than="1h"), choose(items, older_than="1h")
    assert names(new) == ["a", "b", "d"] and excluded(new) == {"c": "--newer-than"}
    assert names(old) == ["c"] and set(excluded(old)) == {"a", "b", "d"}
    assert names(choose(items, newer_than="1h", older_than="0.5h")) == ["b"]
    assert names(choose([item("future", age_s=-(10**10)), item("past", age_s=1e12)], newer_than="3w")) == ["future"]


def test_durations_are_inclusive_and_files_without_one_are_kept() -> None:
    seconds = {"/archive/a": 4.9, "/archive/b": 5.0, "/archive/c": None, "/archive/d": 10.0, "/archive/e": 10.1}
    chosen = choose([item(name) for name in "abcde"], lambda items: seconds, min_duration=5, max_duration=10)
    assert names(chosen) == ["b", "c", "d"]
    assert [(one.item.rel, one.why.by, one.why.rule) for one in chosen.excluded] == [
        ("a", "--min-duration", "4.9 s"),
        ("e", "--max-duration", "10.1 s"),
    ]


def test_a_sample_depends_on_names_and_seed_only() -> None:
    items = [item(f"{number}.mp4") for number in range(1000)]
    first = choose(items, sample=50)
    assert len(first.items) == 50 and names(first) == [i.rel for i in items if i in first.items], "in order of the scan"
    assert set(excluded(first).values()) == {"--sample"} and len(first.excluded) == 950
    shuffled = random.Random(1).sample(items, len(items))
    assert set(names(choose(shuffled, sample=50))) == set(names(first))
    elsewhere = [item(one.rel, root="/mnt/other", age_s=5) for one in items]
    assert names(choose(elsewhere, sample=50)) == names(first)
    assert len(set(names(choose(items, sample=50, seed=1))) & set(names(first))) < 15
    assert set(names(choose(items, sample=49))) < set(names(first))
    assert len(choose(items, sample=2000).items) == 1000


def test_a_sample_changes_little_while_an_archive_grows() -> None:
    items = [item(f"{number}.mp4") for number in range(1000)]
    before, after = (set(names(choose(items[:n], sample=100))) for n in (900, 1000))
    new = {one.rel for one in items[900:]}
    assert before - after and len(before - after) == len(after & new) < 25
    assert after - before == after & new, "files that were sampled only make room for new ones"


def test_files_of_equal_names_in_several_roots_are_sampled_independently() -> None:
    items = [item(f"{number}.mp4", root=root) for root in ("/a", "/b") for number in range(200)]
    sampled = choose(items, sample=100).items
    assert len({one.rel for one in sampled}) > 60, "not 50 pairs"


@pytest.mark.parametrize("sample", [3, 300])
def test_only_files_that_may_be_sampled_are_opened(sample: int) -> None:
    items = [item(f"{number}.mp4") for number in range(2000)]
    opened: list[str] = []

    def durations(asked: Sequence[MediaItem]) -> Mapping[str, float | None]:
        opened.extend(one.path for one in asked)
        return {one.path: float(one.rel.partition(".")[0]) for one in asked}

    chosen = choose(items, durations, sample=sample, max_duration=999)
    assert len(chosen.items) == sample and len(opened) == len(set(opened)) < 1200
    everything = choose(items[:1000], sample=sample)
    assert names(chosen) == names(everything), "the same files as if the others did not exist"
    assert len(chosen.excluded) == len(items) - sample == len({one.item for one in chosen.excluded})
