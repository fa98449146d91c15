import json
import pickle

import numpy as np
import pytest

from vidqa.errors import TrainError, UsageError
from vidqa.training.data.corpus import Corpus, FileFacts, Source
from vidqa.training.data.rejects import Rejected
from vidqa.training.data.sample import SampleError


def record(question: str = "What is it?", answer: str = "red", **media: object) -> dict[str, object]:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}], **media}


@pytest.fixture
def write(tmp_path):
    def write(name: str, records: list[object]) -> str:
        path = tmp_path / name
        path.write_text(json.dumps(records), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def corpus_of(tmp_path):
    return lambda *sources, **more: Corpus(sources, cache_dir=tmp_path / "cache", **more)


def test_samples_of_all_sources_have_consecutive_numbers(write, corpus_of):
    a = write("a.json", [record(answer=f"a{i}") for i in range(3)])
    b = write("b.json", [record(answer=f"b{i}") for i in range(2)])
    corpus = corpus_of(Source(a), Source(b))
    assert len(corpus) == 5
    assert [s.turns[0][1] for s in corpus] == ["a0", "a1", "a2", "b0", "b1"]
    assert (corpus[4].source, corpus[4].record, corpus[4].id) == (b, 1, "1")
    for wrong in (-1, 5):
        with pytest.raises(IndexError):
            corpus[wrong]


def test_an_epoch_without_weights_sees_every_record_once_in_its_own_order(write, corpus_of):
    sources = Source(write("a.json", [record()] * 30)), Source(write("b.json", [record()] * 20))
    corpus = corpus_of(*sources, seed=7)
    orders = [corpus.epoch_order(e) for e in range(3)]
    assert all(sorted(o) == list(range(50)) for o in orders)
    assert all(o.dtype == np.int64 for o in orders)
    assert len({tuple(o) for o in orders}) == 3
    same = corpus_of(*sources, seed=7)
    assert all(np.array_equal(same.epoch_order(e), o) for e, o in enumerate(orders))
    assert not np.array_equal(corpus_of(*sources, seed=8).epoch_order(0), orders[0])


@pytest.mark.parametrize(("weight", "epochs", "each"), [(0.25, 4, 1), (0.25, 8, 2), (2.0, 1, 2), (1.5, 2, 3)])
def test_a_weight_is_how_often_an_epoch_sees_a_record(write, corpus_of, weight, epochs, each):
    heavy, other = write("h.json", [record()] * 40), write("o.json", [record()] * 10)
    corpus = corpus_of(Source(heavy, weight=weight), Source(other))
    seen = np.concatenate([corpus.epoch_order(e) for e in range(epochs)])
    counts = np.bincount(seen, minlength=50)
    assert set(counts[:40]) == {each}  # no record is skipped while another is seen twice
    assert set(counts[40:]) == {epochs}
    assert len(corpus.epoch_order(0)) == 40 * weight + 10


def test_sources_are_mixed_within_an_epoch(write, corpus_of):
    corpus = corpus_of(Source(write("a.json", [record()] * 500)), Source(write("b.json", [record()] * 500)))
    from_a = corpus.epoch_order(0) < 500
    quarters = [part.mean() for part in np.array_split(from_a, 4)]
    assert all(0.35 < share < 0.65 for share in quarters)


def test_a_bad_record_is_an_error_or_a_value(write, corpus_of):
    path = write("a.json", [record(), record(answer=" ") | {"id": "poor"}])
    corpus = corpus_of(Source(path))
    with pytest.raises(SampleError, match="empty") as caught:
        corpus[1]
    assert caught.value.kind == "answerless"
    assert corpus.get(1) == Rejected(path, 1, "poor", "answerless", "answer 1 is empty")
    assert corpus.get(0) == corpus[0]
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.kind, copy.what) == ("answerless", "answer 1 is empty")


def test_the_id_of_a_rejected_record_is_its_id_or_its_number(write, corpus_of):
    bad = {"conversations": []}
    records = [bad | {"id": 7}, bad | {"id": None}, bad | {"id": None, "video_id": "v"}, bad, bad | {"id": 0}]
    corpus = corpus_of(Source(write("a.json", records)))
    assert [corpus.get(n).id for n in range(5)] == ["7", "1", "v", "3", "0"]


def test_a_corpus_can_be_pickled(write, corpus_of):
    corpus = corpus_of(Source(write("a.json", [record(answer="é")] * 3)))
    copy = pickle.loads(pickle.dumps(corpus))
    assert list(copy) == list(corpus)
    assert np.array_equal(copy.epoch_order(1), corpus.epoch_order(1))


def test_the_fingerprint_depends_on_contents_and_weights_not_on_names(write, corpus_of):
    records = [record(), record()]
    a, b = write("a.json", records), write("b.json", records)
    changed = write("c.json", [record(), record(answer="blue")])
    fingerprints = {corpus_of(s).fingerprint for s in (Source(a), Source(changed), Source(a, weight=2.0))}
    assert len(fingerprints) == 3
    assert corpus_of(Source(a)).fingerprint == corpus_of(Source(b)).fingerprint
    (facts,) = corpus_of(Source(a)).files
    assert isinstance(facts, FileFacts)
    assert (facts.n_records, len(facts.sha256)) == (2, 64)


def test_all_unusable_sources_are_reported_at_once(write, tmp_path, corpus_of):
    good = write("a.json", [record()])
    sources = [
        Source(str(tmp_path / "gone.json")),
        Source(write("none.json", [])),
        Source(good, media_root=str(tmp_path / "no folder")),
        Source(good, weight=-1),
        Source(good, format="other"),  # type: ignore[arg-type]
        Source(good, weight=0.1),
    ]
    with pytest.raises(UsageError) as caught:
        corpus_of(*sources)
    lines = caught.value.what.splitlines()
    assert len(lines) == len(sources)
    words = ["cannot be read", "no records", "media folder", "weight", "unknown format", "leaves no record"]
    for line, word in zip(lines, words, strict=True):
        assert word in line
    with pytest.raises(UsageError, match="no file"):
        corpus_of()


def test_a_file_that_changes_during_training_is_an_error(write, corpus_of, tmp_path):
    corpus = corpus_of(Source(write("a.json", [record()] * 3)))
    write("a.json", [record(answer="other")] * 4)
    with pytest.raises(TrainError, match="changed"):
        corpus[0]
    (tmp_path / "a.json").unlink()
    with pytest.raises(TrainError, match="no longer"):
        corpus[0]
