"""Records in the published layouts: the samples they become, and why others are rejected."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidqa.training.data.corpus import Corpus, Source
from vidqa.training.data.media_paths import MediaFolder
from vidqa.training.data.record_formats import AsWritten, format_of, read_conversations, to_sample
from vidqa.training.data.rejects import read_rejects, write_rejects
from vidqa.training.data.sample import REJECT_KINDS, MediaRef, Sample, SampleError, by_media


def turns(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def sample_of(record, locator=None, **more):
    return to_sample(record, locator or AsWritten(), source="a.json", number=7, **more)


def rejected(record, locator=None):
    with pytest.raises(SampleError) as caught:
        sample_of(record, locator)
    return caught.value.kind, caught.value.what


@pytest.fixture
def media(tmp_path):
    """A function that creates empty files in a folder and returns the folder."""

    def make(*names):
        for name in names:
            path = tmp_path / "media" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path / "media"

    return make


@pytest.mark.parametrize(
    ("fields", "first", "expected"),
    [
        ({"image": "a.jpg"}, "<image>\nQ", [("a.jpg", "image")]),
        ({"video": "a.mp4"}, "<video>\nQ", [("a.mp4", "video")]),
        ({"image": ["a.jpg", "b.jpg"]}, "<image><image>\nQ", [("a.jpg", "image"), ("b.jpg", "image")]),
        ({"video": "a.mp4", "image": "b.jpg"}, "<video> <image>\nQ", [("a.mp4", "video"), ("b.jpg", "image")]),
        ({"video": "a.mp4", "image": "b.jpg"}, "<image> <video>\nQ", [("b.jpg", "image"), ("a.mp4", "video")]),
        ({}, "Q", []),
        ({"image": None, "video": []}, "Q", []),
    ],
)
def test_llava_records(fields, first, expected):
    sample = sample_of({"id": 3, "conversations": turns(first, "A"), **fields})
    assert sample == Sample("3", tuple(MediaRef(*m) for m in expected), ((first, "A"),), "a.json", 7)


def test_media_of_later_questions_and_a_dialogue_that_starts_with_an_answer():
    record = {"image": ["a.jpg", "b.jpg"], "conversations": turns("<image>\nQ1", "A1", "and <image>?", "A2")}
    assert [m.path for m in sample_of(record).media] == ["a.jpg", "b.jpg"]
    with_greeting = [{"from": "gpt", "value": "Hello"}, *turns("Q", "A")]
    assert sample_of({"conversations": with_greeting}).turns == (("Q", "A"),)


VALLEY = {"id": "1", "v_id": "abcdefghijk_000012_000022", "video": "abcdefghijk.mp4", "source": "VATEX"}


def test_valley_records_have_a_segment_of_the_video(media):
    folder = MediaFolder(media("VATEX/abcdefghijk.mp4"))
    record = VALLEY | {"conversations": turns("<video>\nQ", "A")}
    (ref,) = sample_of(record, folder).media
    assert (Path(ref.path).parent.name, ref.start_s, ref.end_s) == ("VATEX", 12.0, 22.0)
    assert ref.segment.key == "12.000-22.000"


@pytest.mark.parametrize(
    ("fields", "file"),
    [
        ({"source": "jukinmedia", "v_id": "77", "video": "77"}, "jukinmedia/77.mp4"),
        ({"v_id": "88", "video": "88.mp4"}, "webvid/88.mp4"),
        ({"v_id": "88", "video": "000/88.mp4"}, "000/88.mp4"),
        ({"v_id": "abcdefghijk_000012_000022", "video": "abcdefghijk_000012_000022.mp4"}, None),
    ],
)
def test_valley_records_with_separate_clips(media, fields, file):
    folder = media(file or f"webvid/{fields['video']}")
    (ref,) = sample_of({**fields, "conversations": turns("Q\n<video>", "A")}, MediaFolder(folder)).media
    assert Path(ref.path) == folder / (file or f"webvid/{fields['video']}")
    assert ref.segment.key == "whole"


@pytest.mark.parametrize("name", ["v_abc.mp4", "v_abc.mkv", "deep/er/v_abc.m4v", "abc.webm"])
def test_videoinstruct_finds_the_video_by_its_id(media, name):
    folder = media(name, "v_abc.jpg", "v_abc.txt", "v_abcd.mp4")
    sample = sample_of({"q": "What?", "a": "This.", "video_id": "v_abc"}, MediaFolder(folder))
    assert sample == Sample(
        "v_abc", (MediaRef(str(folder / name), "video"),), (("<video>\nWhat?", "This."),), "a.json", 7
    )


def test_video_chatgpt_puts_the_video_after_every_second_question(media):
    folder = MediaFolder(media("v_abc.mp4"))
    record = {"q": "What?", "a": "This.", "video_id": "v_abc"}
    first = [to_sample(record, folder, source="a.json", number=n, format="video_chatgpt").turns[0][0] for n in range(3)]
    assert first == ["What?\n<video>", "<video>\nWhat?", "What?\n<video>"]


def test_feature_files_in_the_training_file_of_video_chatgpt_resolve_to_videos(media):
    folder = media("v_abc.mp4")
    record = {"id": "v_abc", "video": "v_abc.pkl", "conversations": turns("Q\n<video>", "A")}
    assert sample_of(record, MediaFolder(folder)).media[0].path == str(folder / "v_abc.mp4")


def test_images_of_coco_are_found_with_their_prefix(media):
    folder = media("coco/COCO_train2014_0001.jpg")
    record = {"image": "coco/0001.jpg", "conversations": turns("<image>\nQ", "A")}
    assert sample_of(record, MediaFolder(folder)).media[0].path.endswith("COCO_train2014_0001.jpg")


def test_layouts_are_detected_by_keys():
    assert format_of({"conversations": []}) == "llava"
    assert format_of({"conversations": [], "video": "a", "source": "VATEX"}) == "valley"
    assert format_of({"q": "", "a": "", "video_id": ""}) == "videoinstruct"
    plain = {
        "conversations": turns("<video>\nQ", "A"),
        "video": "a.mp4",
        "source": "mine",
        "v_id": "abcdefghijk_000001_000002",
    }
    assert sample_of(plain, format="llava").media == (MediaRef("a.mp4", "video"),)


GOOD = {"conversations": turns("<video>\nQ", "A"), "video": "a.mp4"}


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"conversations": None}, "bad_record", "expected the keys"),
        ({"conversations": "Q"}, "bad_record", "list of turns"),
        ({"conversations": [{"from": "human"}]}, "bad_record", "`value`"),
        ({"video": 3}, "bad_record", "`video`"),
        ({"video": "a\0b"}, "bad_record", "`video`"),
        ({"conversations": [{"from": "user", "value": "<video>Q"}]}, "bad_roles", "not user"),
        ({"conversations": turns("<video>Q", "A")[:1] * 2}, "bad_roles", "alternate"),
        ({"conversations": []}, "answerless", "no question"),
        ({"conversations": turns("<video>Q", "A", "Q2")}, "answerless", "question 2"),
        ({"conversations": turns("<video>Q", " \n")}, "answerless", "answer 1"),
        (
            {"conversations": turns("Q", "A")},
            "placeholder_mismatch",
            "0 <video> tags in the questions for 0 images and 1 video",
        ),
        ({"conversations": turns("<video><video>Q", "A")}, "placeholder_mismatch", "2 <video>"),
        ({"video": ["a.mp4", "b.mp4"]}, "placeholder_mismatch", "2 videos"),
        ({"image": "a.jpg"}, "placeholder_mismatch", "1 image"),
        ({"video": None}, "placeholder_mismatch", "1 <video>"),
        ({"v_id": "abcdefghijk_000022_000012"}, "bad_span", "ends at 12 s but starts at 22 s"),
    ],
)
def test_invalid_records_are_rejected_by_kind(change, kind, words):
    assert sample_of(GOOD).media
    found, what = rejected(GOOD | change)
    assert found == kind
    assert words in what
    assert kind in REJECT_KINDS


def test_more_rejections(media):
    folder = MediaFolder(media("b.mp4"))
    assert rejected(GOOD, folder)[0] == "media_missing"
    kind, what = rejected({"q": "Q", "a": "A", "video_id": "gone"}, folder)
    assert (kind, "any suffix" in what) == ("media_missing", True)
    assert rejected({"q": "Q", "a": "", "video_id": "b"}, folder)[0] == "answerless"
    assert rejected([1, 2], folder)[0] == "bad_json"
    with pytest.raises(ValueError, match="unknown reject kind"):
        SampleError("other", "text")


def test_media_references_are_validated():
    with pytest.raises(ValueError, match="no segments"):
        MediaRef("a.jpg", "image", 1.0, 2.0)
    with pytest.raises(ValueError, match="start_s < end_s"):
        MediaRef("a.mp4", "video", 2.0, 1.0)
    assert MediaRef("a.mp4", "video", None, 2.0).segment.key == "0.000-2.000"


def test_one_file_may_mix_layouts_and_paths_are_relative_to_the_media_folder(tmp_path, media):
    folder = media("x/1.jpg", "v_2.mkv", "VATEX/abcdefghijk.mp4")
    records = [
        {"image": "x/1.jpg", "conversations": turns("<image>\nQ", "A")},
        {"q": "Q", "a": "A", "video_id": "v_2"},
        VALLEY | {"conversations": turns("<video>\nQ", "A")},
        {"conversations": turns("Q", "A")},
    ]
    for name, text in (
        ("a.json", json.dumps(records)),
        ("a.jsonl", "\n".join(map(json.dumps, records))),
    ):
        (tmp_path / name).write_text(text)
        corpus = Corpus([Source(str(tmp_path / name), str(folder))], cache_dir=tmp_path / "cache")
        found = [[(str(Path(m.path).relative_to(folder)), m.kind) for m in s.media] for s in corpus]
        assert found == [[("x/1.jpg", "image")], [("v_2.mkv", "video")], [("VATEX/abcdefghijk.mp4", "video")], []]


def test_small_files_keep_media_paths_as_written(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([GOOD, GOOD | {"id": "x"}, {"conversations": turns("Q", "A")}]))
    samples = read_conversations(path)
    assert [m.path for s in samples for m in s.media] == ["a.mp4", "a.mp4"]
    assert [[s.record for s in group] for group in by_media(samples)] == [[0, 1], [2]]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
WORDS = (
    st.sampled_from(["human", "gpt", "<video>", "<image>\nQ", "", " ", "a.mp4", "a.pkl", "/", "..", "\ud83d"]) | JSON
)
TURN = st.fixed_dictionaries({}, optional={"from": WORDS, "value": WORDS})
KEYS = ("image", "video", "v_id", "source", "q", "a", "video_id", "id")
STRANGE = st.fixed_dictionaries(
    {}, optional={"conversations": st.lists(TURN, max_size=4) | JSON} | {k: WORDS | st.lists(WORDS) for k in KEYS}
)


@settings(max_examples=60, deadline=None)
@given(record=STRANGE | JSON, on_disk=st.booleans())
def test_any_record_becomes_a_sample_or_is_rejected_by_kind(record, on_disk):
    locator = MediaFolder("nowhere") if on_disk else AsWritten()
    try:
        sample = sample_of(record, locator)
    except SampleError as e:
        assert e.kind in REJECT_KINDS
        assert e.what
    else:
        assert all(answer.strip() for _, answer in sample.turns)
        assert [f"<{m.kind}>" for m in sample.media] == re.findall(
            "<image>|<video>", " ".join(q for q, _ in sample.turns)
        )


def test_unpaired_surrogates_are_rejected_and_can_be_listed(tmp_path):
    half = {"id": "\ud83d", "conversations": turns("Q", "\ud83d")}
    lost = GOOD | {"video": "\ud83d.mp4"}
    path = tmp_path / "a.json"
    path.write_text(json.dumps([half, lost, {"conversations": turns("Q", "\U0001f600")}]))
    corpus = Corpus([Source(str(path))], cache_dir=tmp_path / "cache")
    rejects = [corpus.get(i) for i in range(2)]
    assert {r.kind for r in rejects} == {"bad_record"}
    assert read_rejects(write_rejects(tmp_path / "rejects.parquet", rejects)) == rejects
    assert corpus[2].turns[0][1] == "\U0001f600"


DOCS = Path(__file__).resolve().parents[3] / "docs" / "training_data.md"


def test_the_examples_in_the_docs_are_samples():
    text = DOCS.read_text(encoding="utf-8")
    blocks = [b for b in text.split("\n\n") if b.startswith("    {")]
    samples = [sample_of(json.loads(block)) for block in blocks]
    assert [len(s.turns) for s in samples] == [2, 1, 1, 1]
    assert samples[1].media[0].segment.key == "12.000-22.000"
    assert all(f"| `{kind}` |" in text for kind in REJECT_KINDS)
