"""Records with `messages`: the layouts of OpenAI, transformers, Qwen, TRL and LLaMA-Factory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from vidqa.training.data.chat_records import local_path
from vidqa.training.data.corpus import Corpus, Source
from vidqa.training.data.record_formats import AsWritten, to_sample
from vidqa.training.data.sample import MediaRef, Sample, SampleError


def record(*contents: Any, **more: Any) -> dict[str, Any]:
    """Return a record whose messages alternate between user and assistant."""
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)], **more}


def read(value: dict[str, Any]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the turns, and (path, kind) of each media item."""
    sample = to_sample(value, AsWritten(), source="a.jsonl", number=7)
    return list(sample.turns), [(ref.path, ref.kind) for ref in sample.media]


def rejected(value: dict[str, Any]) -> tuple[str, str]:
    with pytest.raises(SampleError) as caught:
        to_sample(value, AsWritten(), source="a.jsonl", number=7)
    return caught.value.kind, caught.value.what


TEXT = {"type": "text", "text": "What?"}


@pytest.mark.parametrize(
    ("part", "media"),
    [
        ({"type": "image_url", "image_url": {"url": "a.jpg", "detail": "low"}}, ("a.jpg", "image")),
        ({"type": "image_url", "image_url": "a.jpg"}, ("a.jpg", "image")),
        ({"type": "video_url", "video_url": {"url": "a.mp4"}}, ("a.mp4", "video")),
        ({"type": "image", "image": "a.jpg"}, ("a.jpg", "image")),
        ({"type": "image", "url": "a.jpg"}, ("a.jpg", "image")),
        ({"type": "image", "path": "a.jpg"}, ("a.jpg", "image")),
        ({"type": "video", "video": "a.mp4", "fps": 1.0, "max_pixels": 1000}, ("a.mp4", "video")),
        ({"type": "video", "video": "file:///data/my%20clip.mp4"}, ("/data/my clip.mp4", "video")),
        ({"type": "video", "path": "a.mp4", "url": None}, ("a.mp4", "video")),
        ({"type": "video", "video": {"bytes": None, "path": "a.mp4"}}, ("a.mp4", "video")),
        ({"video": "12:30.mp4"}, ("12:30.mp4", "video")),
    ],
)
def test_parts(part: dict[str, Any], media: tuple[str, str]) -> None:
    assert read(record([part, TEXT], "This.")) == ([(f"<{media[1]}>\nWhat?", "This.")], [media])
    assert read(record([TEXT, part], [{"type": "text", "text": "This."}])) == (
        [(f"What?\n<{media[1]}>", "This.")],
        [media],
    )


def test_several_media_and_turns_keep_their_order() -> None:
    image, video = {"type": "image", "image": "b.jpg"}, {"type": "video", "video": "a.mp4"}
    turns, media = read(record([video, image, TEXT], "A1", [TEXT, image], "A2", "And?", "A3"))
    assert turns == [("<video>\n<image>\nWhat?", "A1"), ("What?\n<image>", "A2"), ("And?", "A3")]
    assert media == [("a.mp4", "video"), ("b.jpg", "image"), ("b.jpg", "image")]


@pytest.mark.parametrize(
    ("content", "question"),
    [
        ([{"type": "image"}, {"type": "text", "text": "What?"}], "<image>\nWhat?"),  # TRL, prepared
        ("What?", "<image>\nWhat?"),  # TRL, not prepared
        ("<image>What?", "<image>What?"),  # LLaMA-Factory
        ([{"type": "image", "image": None, "text": None}, {"type": "text", "image": None, "text": "What?"}], None),
    ],
)
def test_media_listed_in_the_record(content: Any, question: str | None) -> None:
    turns, media = read(record(content, "This.", images=["a.jpg"], videos=None))
    assert turns == [(question or "<image>\nWhat?", "This.")] and media == [("a.jpg", "image")]


def test_a_system_message_begins_the_first_question() -> None:
    for role in ("system", "developer"):
        value = record([{"type": "video", "video": "a.mp4"}, TEXT], "This.", "And?", "That.")
        value["messages"].insert(0, {"role": role, "content": "Be brief."})
        turns, _ = read(value)
        assert turns == [("Be brief.\n\n<video>\nWhat?", "This."), ("And?", "That.")]


def test_segments_of_videos() -> None:
    part = {"type": "video", "video": "a.mp4", "video_start": 2, "video_end": 4.5}
    (ref,) = to_sample(record([part, TEXT], "This."), AsWritten(), source="", number=0).media
    assert ref == MediaRef("a.mp4", "video", 2.0, 4.5)
    assert rejected(record([part | {"video_end": 1}, TEXT], "This."))[0] == "bad_span"


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (
            record([{"type": "image_url", "image_url": {"url": "https://x.org/a.jpg"}}], "A"),
            "media_remote",
            "https://x.org",
        ),
        (record([{"type": "video", "url": "s3://bucket/a.mp4"}], "A"), "media_remote", "only local files"),
        (record([{"type": "video", "video": "file://host/a.mp4"}], "A"), "media_remote", "only local files"),
        (
            record([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}], "A"),
            "media_remote",
            "inline",
        ),
        (record([{"type": "image", "base64": "AAAA"}], "A"), "media_remote", "inline data"),
        (record("What?", "A", images=[{"bytes": "AAAA", "path": None}]), "media_remote", "inline data"),
        (record("What?", "A", images=["http://x.org/a.jpg"]), "media_remote", "http://x.org/a.jpg"),
        (record([{"type": "input_audio", "input_audio": {}}], "A"), "bad_record", "input_audio"),
        (record([{"type": "video", "video": ["1.jpg", "2.jpg"]}], "A"), "bad_record", "must be a string"),
        (record("Q", [{"type": "image", "image": "a.jpg"}]), "bad_record", "only user messages"),
        (record([{"type": "text", "text": 5}], "A"), "bad_record", "must be a string"),
        (record(5, "A"), "bad_record", "`content`"),
        ({"messages": "no"}, "bad_record", "`messages`"),
        (record("Q"), "answerless", "no answer"),
        (record("Q", None), "answerless", "empty"),
        ({"messages": []}, "answerless", "no question"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "bad_roles", "'tool'"),
        ({"messages": [{"role": "user", "content": "x"}] * 2}, "bad_roles", "user, assistant"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "bad_roles", "user, assistant"),
        (
            record("Q", "A") | {"messages": [*record("Q", "A")["messages"], {"role": "system", "content": "x"}]},
            "bad_roles",
            "precede",
        ),
        (
            {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "weight": 0}]},
            "bad_record",
            "`weight`",
        ),
        (
            {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "tool_calls": [{}]}]},
            "bad_record",
            "tool_calls",
        ),
        (record("<image> Q", "A"), "placeholder_mismatch", "0 images"),
        (record([{"type": "image"}], "A", images=["a.jpg", "b.jpg"]), "placeholder_mismatch", "2 images"),
        (record([{"type": "image", "image": "c.jpg"}], "A", images=["a.jpg"]), "placeholder_mismatch", "1 image"),
        (
            {"messages": [{"role": "system", "content": "<image>"}, *record("Q", "A")["messages"]]},
            "placeholder_mismatch",
            "system",
        ),
        (record("\ud83d", "A"), "bad_record", "surrogate"),
    ],
)
def test_records_that_are_rejected(value: dict[str, Any], kind: str, message: str) -> None:
    found, what = rejected(value)
    assert (found, message in what) == (kind, True), what


def test_urls_in_the_other_layouts_are_rejected_alike() -> None:
    turns = [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "A"}]
    assert rejected({"image": "https://x.org/a.jpg", "conversations": turns})[0] == "media_remote"


def test_names_with_colons_are_paths() -> None:
    assert [local_path(name) for name in ("C:\\a.mp4", "a:b.mp4", "x//y.mp4")] == ["C:\\a.mp4", "a:b.mp4", "x//y.mp4"]


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet"])
def test_files_of_chat_records(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    part = {"type": "video", "video": "a.mp4"}
    records = [record([part, TEXT], [{"type": "text", "text": f"Answer {i}."}], id=f"r{i}") for i in range(3)]
    path = tmp_path / f"data.{suffix}"
    if suffix == "parquet":
        pl.DataFrame(records).write_parquet(path)
    else:
        lines = [json.dumps(one) for one in records]
        path.write_text("\n".join(lines) if suffix == "jsonl" else f"[{','.join(lines)}]")
    for format in ("auto", "chat"):
        corpus = Corpus([Source(str(path), format=format)], cache_dir=tmp_path / "cache")
        video = MediaRef(str(tmp_path / "a.mp4"), "video")
        expected = [Sample(f"r{i}", (video,), (("<video>\nWhat?", f"Answer {i}."),), str(path), i) for i in range(3)]
        assert list(corpus) == expected
