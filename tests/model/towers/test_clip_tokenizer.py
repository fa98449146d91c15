"""A published tokenizer, saved for a bundle, yields the ids of transformers with the published files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vidqa.encoders.text_encoder import TextTokenizer
from vidqa.errors import BundleError
from vidqa.model.towers.clip_tokenizer import END, START, save_clip_tokenizer

MERGES = ["r e", "re d</w>", "d o", "do g</w>", "c a", "ca t</w>", "i n", "in g</w>"]
TEXTS = [
    "a red dog",
    "  A RED\n Dog ",
    "running cat, 2 dogs!",
    "d\u00e9j\u00e0 vu",
    "it's 10 o'clock",
    "\U0001f600 cat",
]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """vocab.json and merges.txt in the layout of CLIP, with few merges."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    merged = ["".join(merge.split()) for merge in MERGES]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *merged, START, END]
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    return folder


@pytest.mark.parametrize("text", TEXTS)
def test_same_ids(text: str, published: Path, tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    save_clip_tokenizer(published, tmp_path / "tokenizer.json", 1000)
    tokens = TextTokenizer(tmp_path / "tokenizer.json", 77, START, END)
    expected = CLIPTokenizer.from_pretrained(published)(text).input_ids
    assert tokens.ids(text) == expected
    assert len(expected) > 3


def test_text_is_merged_and_lowercased(published: Path, tmp_path: Path) -> None:
    save_clip_tokenizer(published, tmp_path / "tokenizer.json", 1000)
    tokens = TextTokenizer(tmp_path / "tokenizer.json", 77, START, END)
    ids = tokens.ids("RED dog")
    assert len(ids) == 4 and ids[-1] == max(ids) == ids[0] + 1


def test_not_a_clip_tokenizer(published: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match=r"vocab\.json and merges\.txt are missing"):
        save_clip_tokenizer(tmp_path / "empty", tmp_path / "tokenizer.json", 1000)
    with pytest.raises(BundleError, match="the text tower 100"):
        save_clip_tokenizer(published, tmp_path / "tokenizer.json", 100)
    words = json.loads((published / "vocab.json").read_text())
    words["more"] = len(words)
    (published / "vocab.json").write_text(json.dumps(words))
    with pytest.raises(BundleError, match="is not its last token"):
        save_clip_tokenizer(published, tmp_path / "tokenizer.json", 1000)
    assert not (tmp_path / "tokenizer.json").exists()
