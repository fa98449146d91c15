"""The one look at every record is kept, and follows the file, its media and the records that were bad."""

import json
import os
import pickle

import numpy as np
import pytest

from vidqa.cache.key import RECORDS_FOLDER
from vidqa.train.data import Corpus, Source
from vidqa.train.data.metadata import group_of, length_of
from vidqa.train.data.sample import SampleError


def told(question, answer="red", **media):
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}], **media}


FIRST = [
    told("<video>\nWhat?", video="a.mp4"),
    told("A passage.\nWhat?"),
    told("<video>\nWho?", video="a.mp4", answer="he " * 40),
    told("<image>\nWhat?", image="late.png"),
    told("What?"),
    told("A passage.\nWho?"),
]


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "a.mp4").touch()
    for name, records in (("a.json", FIRST), ("b.json", [told("<video>\nWhere?", video="a.mp4")])):
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


def test_a_second_look_reads_bad_records_alone(corpus, reads, tmp_path):
    advanced = []
    first = corpus().look(advanced.append)
    assert reads == list(range(7)) and sum(advanced) == 7
    reads.clear(), advanced.clear()
    again = corpus().look(advanced.append)
    assert reads == [3] and sum(advanced) == 7
    assert np.array_equal(again.groups, first.groups) and np.array_equal(again.lengths, first.lengths)
    assert again.media == first.media and [ref.path for ref in first.media] == [str(tmp_path / "a.mp4")]
    (tmp_path / "late.png").touch()
    reads.clear()
    mended = corpus().look()
    assert reads == [3] and {ref.kind for ref in mended.media} == {"image", "video"}
    reads.clear()
    assert corpus().look().lengths[3] == 256 + len("<image>\nWhat?" + "red") // 4
    assert reads == []


def test_what_was_looked_at_is_what_the_samples_say(corpus):
    found = corpus()
    looked = found.look()
    groups = {}
    for number in range(len(found)):
        try:
            sample = found[number]
        except SampleError:
            assert (looked.groups[number], looked.lengths[number]) == (0, 0)
            continue
        assert looked.lengths[number] == length_of(sample)
        groups[number] = group_of(sample)
    for i, mine in groups.items():
        assert (looked.groups[i] == 0) == (mine is None)
        for j, theirs in groups.items():
            assert (looked.groups[i] == looked.groups[j]) == (mine == theirs)
    assert looked.groups[0] == looked.groups[2] == looked.groups[6]  # the same clip, in two files


def test_another_content_is_looked_at_anew_and_damage_costs_time_alone(corpus, reads, tmp_path, caplog):
    corpus().look()
    kept = [path for path in (tmp_path / "cache" / RECORDS_FOLDER).iterdir() if path.stem.count("-") == 2]
    assert len(kept) == 2
    for path in kept:
        path.write_bytes(b"broken")
    reads.clear()
    assert len(corpus().look().groups) == 7
    assert reads == list(range(7)) and "damaged survey" in caplog.text
    (tmp_path / "b.json").write_text(json.dumps([told("Why?"), told("Who?")]))
    reads.clear()
    assert len(corpus().look().groups) == 8
    assert reads == [3, 6, 7]


def test_processes_that_read_do_not_carry_it(corpus):
    found = corpus()
    found.look()
    assert pickle.loads(pickle.dumps(found))._looked is None
