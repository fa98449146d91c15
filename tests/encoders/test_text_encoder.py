"""TextTokenizer and TextEncoder: embeddings, rejected texts, damaged files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vidqa.encoders.text_encoder import TextEncoder, TextTokenizer
from vidqa.errors import BundleError, ItemError, UsageError
from vidqa.model.bundle.bundle import BUNDLE_FILE, Bundle, load_bundle, save_bundle

DEMO = load_bundle("demo")
WORDS = ("red", "green", "blue", "a", "the", "circle", "square", "moves")


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder.from_bundle(DEMO, "cpu")


def word_tokenizer(file: Path) -> Path:
    """Write a tokenizer of a few words, with the start and end tokens as its last ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(["<unk>", *WORDS, "<start>", "<end>"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.add_special_tokens(["<start>", "<end>"])
    words.enable_truncation(3)  # TextTokenizer ignores the settings of the file
    words.save(str(file))
    return file


@pytest.fixture
def tokenizer(tmp_path: Path) -> TextTokenizer:
    return TextTokenizer(word_tokenizer(tmp_path / "tokenizer.json"), 12, "<start>", "<end>")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The demo model with a separate tokenizer for the text tower."""
    text = DEMO.spec.encoders.text
    assert text is not None
    text = replace(text, tokenizer="encoders/text.json", end="</s>")
    spec = replace(DEMO.spec, encoders=replace(DEMO.spec.encoders, text=text))

    def fill(part: Path) -> None:
        shutil.copytree(DEMO.folder, part, dirs_exist_ok=True)
        shutil.copy(part / "llm" / "tokenizer.json", part / "encoders" / "text.json")

    return save_bundle(tmp_path / "model", spec, fill).folder


def test_ids_are_between_start_and_end_token(tokenizer: TextTokenizer) -> None:
    assert tokenizer.ids("a red circle moves") == [9, 4, 1, 6, 8, 10]
    assert tokenizer.ids(" a\nred circle moves ") == tokenizer.ids("a red circle moves")


def test_longest_text(tokenizer: TextTokenizer) -> None:
    assert len(tokenizer.ids("red " * 10)) == 12
    with pytest.raises(UsageError, match="has 11 tokens, 1 more than") as e:
        tokenizer.ids("red " * 11)
    assert "at most 10 tokens" in str(e.value)


@pytest.mark.parametrize(("text", "message"), [("", "empty"), (" \n", "empty"), ("a <end> b", "<end>")])
def test_rejected_texts(text: str, message: str, tokenizer: TextTokenizer) -> None:
    with pytest.raises(UsageError, match=message):
        tokenizer.ids(text)


def test_batch_equals_single(encoder: TextEncoder) -> None:
    texts = ["A red circle moves left.", "Blue.", "The green square grows larger and a star appears."]
    together = encoder.encode(texts)
    assert (together.shape, together.dtype) == ((3, 128), np.float32)
    for text, row in zip(texts, together, strict=True):
        np.testing.assert_allclose(encoder.encode([text])[0], row, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-2


def test_padding_of_the_published_models(encoder: TextEncoder) -> None:
    """They pad with the end token; positions after the first end token have no effect."""
    ids = encoder.tokenizer.ids("a red circle")
    padded = np.array([ids + [ids[-1]] * (64 - len(ids))], np.int64)
    mask = np.array([[1] * len(ids) + [0] * (64 - len(ids))], np.int64)
    np.testing.assert_allclose(encoder.embed(padded, mask), encoder.encode(["a red circle"]), atol=1e-5)


def test_demo_uses_the_tokenizer_of_its_language_model(encoder: TextEncoder) -> None:
    assert DEMO.text_tokenizer == DEMO.llm_folder / "tokenizer.json"
    one, near, far = encoder.encode(["A red circle moves left.", "a red circle", "a green star"])
    assert one @ near / np.linalg.norm(near) > one @ far / np.linalg.norm(far)


def test_model_without_a_text_tower() -> None:
    spec = replace(DEMO.spec, encoders=replace(DEMO.spec.encoders, text=None))
    with pytest.raises(UsageError, match="demo has no text tower") as e:
        TextEncoder.from_bundle(Bundle(DEMO.folder, spec), "cpu")
    assert e.value.hint


def test_a_separate_tokenizer_is_part_of_the_bundle(folder: Path) -> None:
    bundle = load_bundle(folder)
    assert bundle.text_tokenizer == folder / "encoders" / "text.json"
    assert (bundle.verify(), bundle.model_id) == ([], DEMO.model_id), "the text tower does not affect answers"
    with pytest.raises(UsageError, match="reserves"):  # its end token does not have the largest id
        TextEncoder.from_bundle(bundle, "cpu").encode(["red"])


@pytest.mark.parametrize("name", ["text.onnx", "text.json"])
def test_damaged_files(name: str, folder: Path) -> None:
    file = folder / "encoders" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1  # in a weight of the graph or a word of the tokenizer
    file.write_bytes(data)
    bundle = load_bundle(folder)
    assert [p for p in bundle.verify() if name in p]
    with pytest.raises(BundleError, match=f"{name}: altered"):
        TextEncoder.from_bundle(bundle, "cpu")
    (folder / "encoders" / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: missing"):
        load_bundle(folder)


def test_wrong_files(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    (tmp_path / "empty.json").write_text("{}")
    with pytest.raises(BundleError, match="not a tokenizer"):
        TextTokenizer(tmp_path / "empty.json", 12, None, "<end>")
    with pytest.raises(BundleError, match="no token <stop>"):
        TextTokenizer(tmp_path / "tokenizer.json", 12, None, "<stop>")
    with pytest.raises(BundleError, match="not a text tower"):
        TextEncoder(DEMO.image_graph, tokenizer, "cpu")


def test_optional_keys_have_defaults(folder: Path) -> None:
    """Bundles written before these keys existed can be loaded; the other keys are required."""
    data = json.loads((folder / BUNDLE_FILE).read_text())
    for key in ("tokenizer", "tokenizer_sha256", "start", "end", "external"):
        data["encoders"]["text"].pop(key, None)  # None is not written
    (folder / BUNDLE_FILE).write_text(json.dumps(data))
    bundle = load_bundle(folder)
    assert bundle.text_tokenizer == bundle.llm_folder / "tokenizer.json"
    del data["encoders"]["text"]["max_length"]
    (folder / BUNDLE_FILE).write_text(json.dumps(data))
    with pytest.raises(BundleError, match=r"encoders\.text\.max_length: missing"):
        load_bundle(folder)


def test_an_embedding_that_is_not_finite_is_an_error(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "embed", lambda ids, mask: np.full((len(ids), 4), np.nan, np.float32))
    with pytest.raises(ItemError, match="text encoder returned NaN") as caught:
        encoder.encode(["a red circle"])
    assert caught.value.kind == "not_finite"
