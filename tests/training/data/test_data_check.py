"""The data check finds everything that would fail in training."""

import json
import os
from contextlib import closing
from typing import ClassVar

import pytest
from PIL import Image

from vidqa.cache.media_index import MediaIndex
from vidqa.media.workers.decode_pool import DecodePool
from vidqa.prompts.chat_formats import FORMATS
from vidqa.records import MediaShape
from vidqa.training.data.corpus import Corpus, Source
from vidqa.training.data.data_check import check_corpus
from vidqa.training.data.media_facts import Prober
from vidqa.training.data.media_shapes import SpecShapes
from vidqa.training.data.rejects import Rejected, RejectLog
from vidqa.training.data.tokenize import RecordTokenizer, tokenize_corpus


def record(question, answer="yes", **fields):
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}], **fields}


SEGMENT = {"source": "VATEX", "video": "good.mp4"}
RECORDS = [
    (record("<video>\nWhat?", id="v", video="good.mp4"), None),
    (record("<image>\nWhat?", image="good.png"), None),
    (record("<image><video>\nWhat?", image="good.png", video="good.mp4"), None),
    (record("What?"), None),
    (record("<video>\nWhat?", **SEGMENT, v_id="abcdefghijk_000001_000009"), None),
    (record("<video>\nWhat?", **SEGMENT, v_id="abcdefghijk_000002_000009"), "bad_span"),  # the video has 1.2 s
    (record("<video>\nWhat?", id="g", video="gone.mp4"), "media_missing"),
    (record("<video>\nWhat?", video="broken.mp4"), "media_unreadable"),
    (record("<image>\nWhat?", image="good.mp4"), "media_unreadable"),  # a video named as an image
    (record("<video>\nWhat?"), "placeholder_mismatch"),
    (record("What?", answer=" "), "answerless"),
    (record("What?", answer="a " * 300), "too_long"),
    (record("<video>\nWhat?", answer="a " * 300, video="broken.mp4"), "too_long"),  # the first reason is kept
    ("no object", "bad_json"),
]


@pytest.fixture
def corpus(tmp_path, make_clip):
    folder = tmp_path / "media"
    make_clip(folder / "good.mp4", n_frames=12, rate=10)
    (folder / "broken.mp4").write_bytes((folder / "good.mp4").read_bytes()[:200])
    Image.new("RGB", (8, 8), "red").save(folder / "good.png")
    path = tmp_path / "a.json"
    path.write_text(json.dumps([record for record, _ in RECORDS]))
    return Corpus([Source(str(path), str(folder))], cache_dir=tmp_path / "cache")


class Words:
    """Every word is a token."""

    bos_token_id = 1
    added_tokens_decoder: ClassVar = {}

    def encode(self, text, *, add_special_tokens):
        ids = [len(word) for word in text.replace("</s>", " </s>").split()]
        return [1, *ids] if add_special_tokens else ids


def shape_of(ref):
    return MediaShape(ref.kind, 4 if ref.kind == "video" else 1, 5)


def test_every_kind_of_problem_is_found_before_training(corpus):
    opened = []

    class Counting(Prober):
        def __call__(self, paths):
            for path, found in super().__call__(paths):
                opened.append(path)
                yield path, found

    checked = check_corpus(corpus, RecordTokenizer(Words(), FORMATS["v1"], shape_of, 200), prober=Counting(n_workers=1))
    expected = {i: kind for i, (_, kind) in enumerate(RECORDS) if kind}
    assert {r.record: r.kind for r in checked.rejected} == expected
    assert [r.id for r in checked.rejected if r.kind == "media_missing"] == ["g"]
    assert len(opened) == 3  # each file once: good.mp4, good.png, broken.mp4
    assert checked.n_media == {"image": 1, "video": 1}
    assert checked.video_s == pytest.approx(1.2, abs=0.11)
    assert checked.media_counts == {(0, 1): 2, (1, 0): 1, (1, 1): 1, (0, 0): 1}
    assert checked.n_visual == 20 + 5 + 25 + 0 + 20
    assert checked.n_targets == 5 * 2  # `yes` and `</s>` in each good sample
    assert len(checked.tokens) == 10
    assert not checked.passes
    assert [r.record for r in checked.rejected] == sorted(expected)
    assert min(len(r.message) for r in checked.rejected) > 10
    text = "\n".join(checked.lines())
    for words in (
        f"{len(RECORDS)} records, {len(expected)} rejected",
        "media: 1 image, 1 video (0.0 hours)",
        "limit 200",
        "above",
    ):
        assert words in text
    assert "2 rejected, media_unreadable" in text


def test_readable_media_are_opened_again_only_when_they_change(corpus, tmp_path, monkeypatch):
    opened, real = [], DecodePool.run

    def run(self, jobs):
        jobs = list(jobs)
        opened.extend(job.path.rpartition("/")[2] for job in jobs)
        return real(self, jobs)

    monkeypatch.setattr(DecodePool, "run", run)
    folder = tmp_path / "media"
    for name in ("good.mp4", "good.png", "broken.mp4"):
        os.utime(folder / name, (1e9, 1e9))

    def check():
        opened.clear()
        with closing(MediaIndex(tmp_path / "cache")) as index:
            checked = check_corpus(
                corpus, RecordTokenizer(Words(), FORMATS["v1"], shape_of, 200), prober=Prober(1, index=index)
            )
        return sorted(opened), [(r.record, r.kind) for r in checked.rejected], checked.video_s

    first = check()
    assert first[0] == ["broken.mp4", "good.mp4", "good.png"]
    assert check() == (["broken.mp4"], *first[1:])
    os.utime(folder / "good.png", (2e9, 2e9))
    assert check()[0] == ["broken.mp4", "good.png"]


def test_good_data_passes(corpus, tmp_path):
    path = tmp_path / "b.json"
    path.write_text(json.dumps([record("What?")] * 3))
    checked = check_corpus(
        Corpus([Source(str(path))], cache_dir=tmp_path / "cache"), RecordTokenizer(Words(), FORMATS["v1"], shape_of)
    )
    assert checked.passes
    assert checked.rejected == ()
    assert checked.lines()[-1] == "rejected: 0.00% of 3 records, within max_reject_rate 1.00%"


def test_a_file_in_two_sources_has_each_reject_once_as_in_training(corpus, tmp_path):
    twice = Corpus(
        [Source(s.path, s.media_root, weight) for s in corpus.sources for weight in (0.5, 2.0)],
        cache_dir=tmp_path / "cache",
    )
    tokenizer = RecordTokenizer(Words(), FORMATS["v1"], shape_of, 200)
    once, both = check_corpus(corpus, tokenizer), check_corpus(twice, tokenizer)
    assert both.rejected == once.rejected and both.n_records == once.n_records == twice.n_records == len(RECORDS)
    assert both.lines()[-1] == once.lines()[-1]
    log = RejectLog(tmp_path / "r.parquet", twice.n_records, 1.0)
    for _ in range(2):
        log.add(*(found for n in range(len(twice)) if isinstance(found := twice.get(n), Rejected)))
    assert len(log) == sum(isinstance(corpus.get(n), Rejected) for n in range(len(corpus)))


@pytest.mark.slow
def test_several_processes_have_the_same_result(corpus, tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    from vidqa.model.bundle.bundle import load_bundle

    path = tmp_path / "many.json"
    path.write_text(json.dumps([record(f"Q{i}", "a" * i) for i in range(140)]))
    many = Corpus([Source(str(path)), *corpus.sources], cache_dir=tmp_path / "cache")
    bundle = load_bundle("demo")
    tokenizer = RecordTokenizer(
        AutoTokenizer.from_pretrained(bundle.llm_folder), FORMATS["v1"], SpecShapes(bundle.spec), 2000
    )
    single = list(tokenize_corpus(many, tokenizer))
    monkeypatch.setattr("vidqa.training.data.tokenize._MIN_PER_PROCESS", 64)
    hostile = tmp_path / "downloads"  # the processes import nothing from the working folder
    hostile.mkdir()
    for name in ("multiprocessing", "pickle", "struct", "numpy", "tokenizers"):
        (hostile / f"{name}.py").write_text("raise SystemExit(99)")
    monkeypatch.chdir(hostile)
    monkeypatch.setenv("PYTHONPATH", os.pathsep + os.environ.get("PYTHONPATH", ""))
    before = dict(os.environ)
    assert list(tokenize_corpus(many, tokenizer, n_processes=2)) == single
    assert os.environ == before
    assert [len(chunk.numbers) for chunk in single] == [127, 22]  # one empty answer, and those of RECORDS
    video, image = bundle.spec.encoders.video, bundle.spec.encoders.image
    visual = [video.n_frames * (video.n_patches + video.keep_cls), image.n_patches + image.keep_cls]
    assert single[1].visual[12:14] == visual
