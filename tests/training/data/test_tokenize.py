"""From a record on disk to labels: the loss is on the answers and their end-of-sequence tokens, in every turn."""

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken

from vidqa.prompts.build import IGNORE_INDEX
from vidqa.prompts.chat_formats import FORMATS, get_format
from vidqa.training.data.corpus import Corpus, Source
from vidqa.training.data.sample import MediaRef, Sample, SampleError
from vidqa.training.data.tokenize import tokenize_sample

FOLDER = Path(__file__).resolve().parents[2] / "golden"
MASKING = json.loads((FOLDER / "prompts.json").read_text())["label_masking"]


class Slow:
    """The slow Llama tokenizer of transformers 4.31 in `legacy` mode, based on sentencepiece."""

    bos_token_id = 1
    added_tokens_decoder: ClassVar = {2: AddedToken("</s>", special=True)}

    def __init__(self):
        self.pieces = SentencePieceProcessor(str(FOLDER / "tokenizer.model"))

    def encode(self, text, *, add_special_tokens):
        out = [1] if add_special_tokens else []
        for i, part in enumerate(text.split("</s>")):
            out += [2] * (i > 0) + self.pieces.encode(part)
        return out

    def decode(self, ids):
        return "".join(self.pieces.id_to_piece(int(i)) for i in ids).replace("\u2581", " ")


@pytest.fixture(scope="module")
def slow():
    return Slow()


def as_record(source, folder):
    """The recorded dialogue as a record on disk, with media files for its tags."""
    record = {"conversations": source["conversations"]}
    for kind, suffix in (("image", "jpg"), ("video", "mp4")):
        n = sum(one["value"].count(f"<{kind}>") for one in source["conversations"] if one["from"] == "human")
        names = [f"{i}.{suffix}" for i in range(n)]
        for name in names:
            (folder / name).touch()
        if names:
            record[kind] = names[0] if n == 1 else names
    return record


def test_records_have_the_labels_of_the_original_training_code(tmp_path, slow):
    expected = MASKING["preprocess_v1/neutral_system/legacy"]
    names = list(MASKING["sources"])
    records = [as_record(MASKING["sources"][name], tmp_path) for name in names]
    (tmp_path / "a.json").write_text(json.dumps(records))
    corpus = Corpus([Source(str(tmp_path / "a.json"))], cache_dir=tmp_path / "cache")
    chat = get_format("v1", MASKING["neutral_system_text"])
    n_compared = n_rejected = n_with_separator = 0
    for name, found in zip(names, map(corpus.get, range(len(corpus))), strict=True):
        if not isinstance(found, Sample):
            assert expected[name]["mismatch_warning"], (name, found)
            n_rejected += 1
            continue
        shapes = [(m.kind, 8 if m.kind == "video" else 1, 1) for m in found.media]
        made = tokenize_sample(found, slow, chat, shapes)
        if expected[name]["mismatch_warning"]:  # the original has no targets where an answer contains a separator
            assert (made.labels == 2).sum() == len(found.turns), "one end per answer"
            n_with_separator += 1
            continue
        assert np.where(made.prompt.slots, -200, made.prompt.ids).tolist() == expected[name]["input_ids"], name
        assert made.labels.tolist() == expected[name]["labels"], name
        n_compared += 1
    assert (n_compared, n_rejected, n_with_separator) == (len(names) - 3, 1, 2)


def runs(labels):
    """Runs of targets as (first, last + 1)."""
    edges = np.flatnonzero(np.diff((labels != IGNORE_INDEX).astype(int), prepend=0, append=0))
    return list(zip(edges[::2], edges[1::2], strict=True))


def test_every_turn_of_a_dialogue_about_several_media(slow):
    media = (MediaRef("a.mp4", "video"), MediaRef("b.jpg", "image"), MediaRef("c.jpg", "image"))
    turns = (("<video>\nWhy?", "One dog."), ("Q1", "No."), ("<image> or <image>?", "The ball is red."))
    made = tokenize_sample(
        Sample("1", media, turns), slow, FORMATS["v1"], [("video", 3, 5), ("image", 1, 7), ("image", 1, 7)]
    )
    spans = runs(made.labels)
    assert [slow.decode(made.labels[a:b]) for a, b in spans] == [" One dog.</s>", " No.</s>", " The ball is red.</s>"]
    assert [b - a for a, b in runs(np.where(made.prompt.slots, 1, IGNORE_INDEX))] == [15, 7, 7]
    slots = np.flatnonzero(made.prompt.slots)
    assert slots[14] < spans[0][0] < spans[1][1] < slots[15]  # each media item is at its own tag
    assert np.array_equal(made.labels[made.labels != IGNORE_INDEX], made.prompt.ids[made.labels != IGNORE_INDEX])


def test_the_plain_format_trains_the_caption_after_the_media(slow):
    sample = Sample("1", (MediaRef("a.mp4", "video"),), (("<video>\nDescribe the clip", "One dog."),))
    made = tokenize_sample(sample, slow, FORMATS["plain"], [("video", 8, 2)])
    assert made.prompt.slots.sum() == 16
    assert slow.decode(made.labels[made.labels != IGNORE_INDEX]) == " One dog.<0x0A>"
    assert slow.decode(made.prompt.ids[~made.prompt.slots]) == "<s> One dog.<0x0A>"


def test_a_sample_that_is_too_long_is_rejected(slow):
    sample = Sample("1", (MediaRef("a.mp4", "video"),), (("<video>\nWhy?", "One dog."),))
    n = len(tokenize_sample(sample, slow, FORMATS["v1"], [("video", 8, 2)]).labels)
    assert len(tokenize_sample(sample, slow, FORMATS["v1"], [("video", 8, 2)], n).labels) == n
    with pytest.raises(SampleError, match=f"{n} tokens, 16 of them visual; the limit is {n - 1}") as caught:
        tokenize_sample(sample, slow, FORMATS["v1"], [("video", 8, 2)], n - 1)
    assert caught.value.kind == "too_long"


@pytest.mark.parametrize(
    ("turns", "kind"),
    [
        ((("<video>\nWhy?", "One\udcff."),), "reserved_text"),
        ((("<video>\nWhy\0?", "One."),), "reserved_text"),
    ],
)
def test_texts_that_cannot_be_in_a_prompt_are_rejected(slow, turns, kind):
    with pytest.raises(SampleError) as caught:
        tokenize_sample(Sample("1", (MediaRef("a.mp4", "video"),), turns), slow, FORMATS["v1"], [("video", 8, 2)])
    assert caught.value.kind == kind


def test_features_of_the_wrong_kind_are_rejected(slow):
    sample = Sample("1", (MediaRef("a.mp4", "video"),), (("<video>\nWhy?", "One dog."),))
    with pytest.raises(SampleError, match=r"a\.mp4: is of kind image, the record has video") as caught:
        tokenize_sample(sample, slow, FORMATS["v1"], [("image", 1, 2)])
    assert caught.value.kind == "media_unreadable"  # as in the data check
    with pytest.raises(ValueError, match="zip"):
        tokenize_sample(sample, slow, FORMATS["v1"], [])
