"""Metadata of records is cached, and updated when the file, its media or its bad records change."""

import json
import os
import pickle

import numpy as np
import pytest

from vidqa.cache.key import RECORDS_FOLDER
from vidqa.training.data.corpus import Corpus, Source
from vidqa.training.data.metadata import group_of, length_of
from vidqa.training.data.sample import SampleError


def record(question, answer="red", **media):
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}], **media}


FIRST = [
    record("<video>\nWhat?", video="a.mp4"),
    record("A passage.\nWhat?"),
    record("<video>\nWho?", video="a.mp4", answer="he " * 40),
    record("<image>\nWhat?", image="late.png"),
    record("What?"),
    record("A passage.\nWho?"),
]


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "a.mp4").touch()
    for name, records in (("a.json", FIRST), ("b.json", [record("<video>\nWhere?", video="a.mp4")])):
        (tmp_path / name).write_text(json.dumps(records))
        os.utime(tmp_path / name, (1e9, 1e9))
    sources = [Source(str(tmp_path / name)) for name in ("a.json", "b.json")]
    return lambda: Corpus(sources, cache_dir=tmp_path / "cache")


@pytest.fixture
def reads(monkeypatch):
    """Numbers of the samples that are read."""
    seen, real = [], Corpus.__getitem__
    monkeypatch.setattr(Corpus, "__getitem__", lambda self, index: seen.append(index) or real(self, index))
    return seen


def test_the_second_time_only_bad_records_are_read(corpus, reads, tmp_path):
    advanced = []
    first = corpus().token_stats(advanced.append)
    assert reads == list(range(7)) and sum(advanced) == 7
    reads.clear(), advanced.clear()
    again = corpus().token_stats(advanced.append)
    assert reads == [3] and sum(advanced) == 7
    assert np.array_equal(again.groups, first.groups) and np.array_equal(again.lengths, first.lengths)
    assert again.media == first.media and [ref.path for ref in first.media] == [str(tmp_path / "a.mp4")]
    (tmp_path / "late.png").touch()
    reads.clear()
    fixed = corpus().token_stats()
    assert reads == [3] and {ref.kind for ref in fixed.media} == {"image", "video"}
    reads.clear()
    assert corpus().token_stats().lengths[3] == 256 + len("<image>\nWhat?" + "red") // 4
    assert reads == []


def test_metadata_agrees_with_the_samples(corpus):
    found = corpus()
    stats = found.token_stats()
    groups = {}
    for number in range(len(found)):
        try:
            sample = found[number]
        except SampleError:
            assert (stats.groups[number], stats.lengths[number]) == (0, 0)
            continue
        assert stats.lengths[number] == length_of(sample)
        groups[number] = group_of(sample)
    for i, group in groups.items():
        assert (stats.groups[i] == 0) == (group is None)
        for j, other in groups.items():
            assert (stats.groups[i] == stats.groups[j]) == (group == other)
    assert stats.groups[0] == stats.groups[2] == stats.groups[6]  # the same video, in two files


def test_a_changed_file_or_a_damaged_cache_is_read_again(corpus, reads, tmp_path, caplog):
    corpus().token_stats()
    cached = [path for path in (tmp_path / "cache" / RECORDS_FOLDER).iterdir() if path.stem.count("-") == 2]
    assert len(cached) == 2
    for path in cached:
        path.write_bytes(b"broken")
    reads.clear()
    assert len(corpus().token_stats().groups) == 7
    assert reads == list(range(7)) and "damaged cache file" in caplog.text
    (tmp_path / "b.json").write_text(json.dumps([record("Why?"), record("Who?")]))
    reads.clear()
    assert len(corpus().token_stats().groups) == 8
    assert reads == [3, 6, 7]


def test_metadata_is_not_pickled(corpus):
    found = corpus()
    found.token_stats()
    assert pickle.loads(pickle.dumps(found))._token_stats is None
