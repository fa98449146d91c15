"""The check of a whole recipe's data: what it finds is what training would trip over."""

import json
import os
from contextlib import closing

import numpy as np
import polars as pl
import pytest
from PIL import Image

from vidqa.cache.media_index import MediaIndex
from vidqa.media.workers.decode_pool import DecodePool
from vidqa.prompts.chat_formats import FORMATS
from vidqa.records import MediaShape
from vidqa.train.data import Corpus, Rejected, RejectLog, Source
from vidqa.train.data.data_check import check_data
from vidqa.train.data.histogram import bins, save_histogram
from vidqa.train.data.media_facts import Prober
from vidqa.train.data.media_shapes import SpecShapes
from vidqa.train.data.tokenize import RecordTokenizer, look_at


def told(question, answer="yes", **fields):
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}], **fields}


CUT = {"source": "VATEX", "video": "good.mp4"}
RECORDS = [
    (told("<video>\nWhat?", id="v", video="good.mp4"), None),
    (told("<image>\nWhat?", image="good.png"), None),
    (told("<image><video>\nWhat?", image="good.png", video="good.mp4"), None),
    (told("What?"), None),
    (told("<video>\nWhat?", **CUT, v_id="abcdefghijk_000001_000009"), None),
    (told("<video>\nWhat?", **CUT, v_id="abcdefghijk_000002_000009"), "bad_span"),  # the clip has 1.2 s
    (told("<video>\nWhat?", id="g", video="gone.mp4"), "media_missing"),
    (told("<video>\nWhat?", video="broken.mp4"), "media_unreadable"),
    (told("<image>\nWhat?", image="good.mp4"), "media_unreadable"),  # a clip called a picture
    (told("<video>\nWhat?"), "placeholder_mismatch"),
    (told("What?", answer=" "), "answerless"),
    (told("What?", answer="a " * 300), "too_long"),
    (told("<video>\nWhat?", answer="a " * 300, video="broken.mp4"), "too_long"),  # the first reason stays
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

    def encode(self, text, *, add_special_tokens):
        ids = [len(word) for word in text.replace("</s>", " </s>").split()]
        return [1, *ids] if add_special_tokens else ids


def room(ref):
    return MediaShape(ref.kind, 4 if ref.kind == "video" else 1, 5)


def test_every_kind_of_fault_is_found_before_training(corpus, tmp_path):
    opened = []

    class Counting(Prober):
        def __call__(self, paths):
            for path, found in super().__call__(paths):
                opened.append(path)
                yield path, found

    checked = check_data(corpus, RecordTokenizer(Words(), FORMATS["v1"], room, 200), prober=Counting(n_workers=1))
    wanted = {i: kind for i, (_, kind) in enumerate(RECORDS) if kind}
    assert {r.record: r.kind for r in checked.rejected} == wanted
    assert [r.id for r in checked.rejected if r.kind == "media_missing"] == ["g"]
    assert len(opened) == 3  # each file once: good.mp4, good.png, broken.mp4
    assert checked.n_media == {"image": 1, "video": 1}
    assert checked.video_s == pytest.approx(1.2, abs=0.11)
    assert checked.placeholders == {(0, 1): 2, (1, 0): 1, (1, 1): 1, (0, 0): 1}
    assert checked.n_visual == 20 + 5 + 25 + 0 + 20
    assert checked.n_learned == 5 * 2  # `yes` and `</s>` in each good sample
    assert len(checked.tokens) == 10
    assert not checked.passes
    rejects, picture = checked.save(tmp_path / "out")
    table = pl.read_parquet(rejects)
    assert table["record"].to_list() == sorted(wanted)
    assert table["message"].str.len_chars().min() > 10
    assert Image.open(picture).size == (960, 480)
    text = "\n".join(checked.lines())
    for words in (
        f"{len(RECORDS)} records, {len(wanted)} rejected",
        "1 pictures, 1 clips",
        "the limit is 200",
        "above",
    ):
        assert words in text
    assert "2 rejected, media_unreadable" in text


def test_media_that_were_good_are_opened_again_when_they_change(corpus, tmp_path, monkeypatch):
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
            checked = check_data(
                corpus, RecordTokenizer(Words(), FORMATS["v1"], room, 200), prober=Prober(1, index=index)
            )
        return sorted(opened), [(r.record, r.kind) for r in checked.rejected], checked.video_s

    first = check()
    assert first[0] == ["broken.mp4", "good.mp4", "good.png"]
    assert check() == (["broken.mp4"], *first[1:])
    os.utime(folder / "good.png", (2e9, 2e9))
    assert check()[0] == ["broken.mp4", "good.png"]


def test_good_data_pass(corpus, tmp_path):
    path = tmp_path / "b.json"
    path.write_text(json.dumps([told("What?")] * 3))
    checked = check_data(
        Corpus([Source(str(path))], cache_dir=tmp_path / "cache"), RecordTokenizer(Words(), FORMATS["v1"], room)
    )
    assert checked.passes
    assert checked.rejected == ()
    assert checked.lines()[-1] == "rejected: 0.00% of 3, within max_reject_rate 1.00%"


def test_a_file_in_two_sources_has_each_reject_once_as_in_training(corpus, tmp_path):
    twice = Corpus(
        [Source(s.path, s.media_root, weight) for s in corpus.sources for weight in (0.5, 2.0)],
        cache_dir=tmp_path / "cache",
    )
    reader = RecordTokenizer(Words(), FORMATS["v1"], room, 200)
    once, both = check_data(corpus, reader), check_data(twice, reader)
    assert both.rejected == once.rejected and both.n_records == once.n_records == twice.n_records == len(RECORDS)
    assert both.lines()[-1] == once.lines()[-1]
    log = RejectLog(tmp_path / "r.parquet", twice.n_records, 1.0)
    for _ in range(2):
        log.add(*(found for n in range(len(twice)) if isinstance(found := twice.get(n), Rejected)))
    assert len(log) == sum(isinstance(corpus.get(n), Rejected) for n in range(len(corpus)))


@pytest.mark.slow
def test_several_processes_find_the_same(corpus, tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    from vidqa.model.bundle.bundle import load_bundle

    path = tmp_path / "many.json"
    path.write_text(json.dumps([told(f"Q{i}", "a" * i) for i in range(140)]))
    many = Corpus([Source(str(path)), *corpus.sources], cache_dir=tmp_path / "cache")
    bundle = load_bundle("demo")
    reader = RecordTokenizer(
        AutoTokenizer.from_pretrained(bundle.llm_folder), FORMATS["v1"], SpecShapes(bundle.spec), 2000
    )
    alone = list(look_at(many, reader))
    monkeypatch.setattr("vidqa.train.data.tokenize._WORTH", 64)
    assert list(look_at(many, reader, n_processes=2)) == alone
    assert [len(look.numbers) for look in alone] == [127, 22]  # an empty answer; what stands in RECORDS
    video, image = bundle.spec.encoders.video, bundle.spec.encoders.image
    room = [video.n_frames * (video.n_patches + video.keep_cls), image.n_patches + image.keep_cls]
    assert alone[1].visual[12:14] == room


@pytest.mark.parametrize(("most", "limit"), [(7, None), (3000, None), (3000, 2048), (900, 2048), (2048, 2048), (5, 3)])
def test_bins_count_every_sample_and_none_reaches_over_the_limit(most, limit):
    tokens = np.random.default_rng(0).integers(1, most + 1, 500)
    tokens[0] = most
    counts, edges, n_beyond = bins(tokens, limit)
    assert counts.sum() == 500 and n_beyond == 0
    assert len(counts) <= 61
    if limit:
        assert counts[edges[:-1] >= limit].sum() == (tokens > limit).sum()


@pytest.mark.parametrize("limit", [None, 300])
@pytest.mark.parametrize("n", [60, 5000])
def test_one_extreme_sample_does_not_take_the_others_their_resolution(tmp_path, n, limit):
    tokens = np.random.default_rng(0).integers(100, 281, n)
    tokens[n // 2] = 1_000_000
    counts, edges, n_beyond = bins(tokens, limit)
    assert counts.sum() + n_beyond == n and n_beyond == (tokens > edges[-1]).sum()
    assert n_beyond <= max(1, n // 100) and len(counts) <= 61
    assert (counts > 0).sum() > 25  # all others would share one bar
    assert limit is None or limit in edges
    picture = np.asarray(Image.open(save_histogram(tmp_path / "a.png", tokens, limit)).convert("RGB"))
    bar = (196, 78, 82) if limit else (86, 128, 178)
    assert (picture[:, -60:] == bar).all(-1).any()  # what is longer has a bar of its own at the end,
    assert (picture[-30:, -200:].min(-1) < 100).any()  # and words below it
    without = np.asarray(
        Image.open(save_histogram(tmp_path / "b.png", np.delete(tokens, n // 2), limit)).convert("RGB")
    )
    assert not (without[-30:, -200:].min(-1) < 100).any()


@pytest.mark.parametrize(("limit", "is_right"), [(2000, False), (1600, False), (1400, True), (60, True)])
def test_the_label_of_the_limit_stands_inside_the_picture_beside_the_line(tmp_path, limit, is_right):
    """Red in the uppermost rows is the line and its label: 40 pixels or more, on the side with more room."""
    tokens = np.append(np.full(2000, 20), np.arange(20, 3001, 10))  # tall bars on the left only
    picture = np.asarray(Image.open(save_histogram(tmp_path / "a.png", tokens, limit)).convert("RGB"))
    red = (picture[48:64] == (196, 78, 82)).all(-1)
    line = np.flatnonzero(red.all(0))
    columns = np.flatnonzero(red.any(0))
    before, after = line[0] - columns[0], columns[-1] - line[-1]
    assert len(line) in (2, 3) and columns[0] > 2 and columns[-1] < 957
    assert (before == 0 and after > 40) if is_right else (before > 40 and after == 0), (before, after)


def test_the_picture_shows_samples_beyond_the_limit_in_red(tmp_path):
    red = (196, 78, 82)
    for tokens, is_red in ((np.full(1000, 100), False), (np.append(np.full(100_000, 100), 3000), True)):
        path = save_histogram(tmp_path / "a.png", tokens, 2048 if is_red else None)
        pixels = np.asarray(Image.open(path).convert("RGB"))
        right = pixels[:, -60:]
        assert (right == red).all(-1).any() == is_red  # one sample among 100,000 is seen
    assert save_histogram(tmp_path / "none.png", np.zeros(0, np.int64), 10).exists()
