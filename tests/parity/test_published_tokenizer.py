"""LLaMA's published `tokenizer.model` in a bundle yields the ids of the slow tokenizer of its time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from golden_checks.prompts import dialogue, with_placeholders
from published_files import GOLDEN, write_json, write_original
from tokenizers import Tokenizer, models, normalizers

from vidqa.conversion.convert import convert
from vidqa.conversion.output_options import OutputOptions
from vidqa.conversion.tokenizer import save_tokenizer
from vidqa.model.llama.loader import FastTokenizer
from vidqa.model.llm import load_tokenizer
from vidqa.prompts.build import build_labels
from vidqa.prompts.chat_formats import get_format

pytest.importorskip("sentencepiece")
pytestmark = pytest.mark.parity

RECORDED: dict[str, Any] = json.loads((GOLDEN / "prompts.json").read_text(encoding="utf-8"))
N_WORDS = RECORDED["tokenizer"]["vocab_size"]
ADDED = ("<vid_patch>", "<vid_start>", "<vid_end>")
#: Ids by LlamaTokenizer of transformers 4.31 with tests/golden/tokenizer.model, `legacy` true, and added tokens.
SLOW = {
    "Why?\n<vid_start><vid_patch><vid_patch><vid_end> ASSISTANT:": [
        *(1, 310, 437, 503, 521, 520, 520, 522, 275, 272, 293, 482, 287, 511)
    ],
    "Human: Q\n<vid_patch> \n### x": [1, 309, 490, 375, 511, 467, 84, 520, 467, 38, 38, 38, 467, 123],
    "USER: <vid_patch>  \n  Q</s>USER: </s> <vid_patch></s>": [
        *(1, 312, 268, 511, 520, 467, 84, 2, 312, 268, 511, 467, 2, 520, 2)
    ],
    " ASSISTANT:": [1, 467, 275, 272, 293, 482, 287, 511],
    "  two  spaces ": [1, 467, 467, 260, 448, 467, 329, 489, 429, 271, 467],
    "a<s>b </s>  c": [1, 262, 1, 263, 467, 2, 467, 467, 283],
    "▁a ▁": [1, 467, 262, 467, 467],
    " ": [1, 467, 467],
    "": [1],
}


def bundle_tokenizer(folder: Path, settings: dict[str, Any], new_tokens: tuple[str, ...] = ()) -> Any:
    """Publish the recorded tokenizer, save it for a bundle, and load it as from a bundle."""
    (folder / "published").mkdir(exist_ok=True)
    shutil.copy(GOLDEN / "tokenizer.model", folder / "published")
    write_json(folder / "published" / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"} | settings)
    (folder / "llm").mkdir()
    config = SimpleNamespace(model_type="llama", vocab_size=N_WORDS + len(ADDED))
    plan: Any = SimpleNamespace(tokenizer=folder / "published", config=config, new_tokens=new_tokens)
    save_tokenizer(plan, folder / "llm")
    return load_tokenizer(folder / "llm")


@pytest.mark.parametrize(
    ("settings", "mode"),
    [
        ({}, "legacy"),
        ({"legacy": True, "pad_token": "<unk>", "add_bos_token": True}, "legacy"),
        ({"legacy": False}, "legacy_false"),
    ],
)
def test_recorded_ids_and_labels(settings: dict[str, Any], mode: str, tmp_path: Path) -> None:
    tokenizer = bundle_tokenizer(tmp_path, settings)
    for text, expected in RECORDED["tokenizer"]["plain_encodings"].items():
        assert tokenizer.encode(text, add_special_tokens=True) == expected[mode], text
    masking = RECORDED["label_masking"]
    chat = get_format("v1", masking["neutral_system_text"])
    cases = masking[f"preprocess_v1/neutral_system/{mode}"]
    for name, expected in cases.items():
        if name == "answer_contains_eos":  # the original ends there, vidqa spells the characters
            continue
        turns, media = dialogue(masking["sources"][name]["conversations"])
        ids, labels = with_placeholders(build_labels(tokenizer, chat, turns, media))
        assert ids == expected["input_ids"], name
        if name != "answer_contains_cue":  # the original does not train on it
            assert labels == expected["labels"], name
    assert len(cases) >= 17


@pytest.mark.parametrize("published", [False, True])
def test_ids_of_the_slow_tokenizer_with_added_tokens(published: bool, tmp_path: Path) -> None:
    """Video-ChatGPT's are added by the conversion, Valley's are in a published file."""
    if published:
        write_json(tmp_path / "published" / "added_tokens.json", {token: N_WORDS + i for i, token in enumerate(ADDED)})
    tokenizer = bundle_tokenizer(tmp_path, {}, () if published else ADDED)
    assert [tokenizer.convert_tokens_to_ids(token) for token in ADDED] == [N_WORDS, N_WORDS + 1, N_WORDS + 2]
    assert {text: tokenizer.encode(text) for text in SLOW} == SLOW
    answering = FastTokenizer.read(tmp_path / "llm")
    assert answering and {text: answering.encode(text, add_special_tokens=True) for text in SLOW} == SLOW
    assert tokenizer.decode(tokenizer.encode("A man. Là-bas 🐈"), skip_special_tokens=True) == "A man. Là-bas 🐈"


def test_no_bos_token_if_the_config_disables_it(tmp_path: Path) -> None:
    assert bundle_tokenizer(tmp_path, {"add_bos_token": False}).encode("Why?") == SLOW[next(iter(SLOW))][1:4]


def test_an_existing_tokenizer_json_is_used_unchanged(tmp_path: Path) -> None:
    """Transformers 5 would rebuild the rules of a LLaMA tokenizer."""
    backend = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(("<unk>", "<s>", "</s>", "x"))}, unk_token="<unk>")
    )
    backend.normalizer = normalizers.Lowercase()
    (tmp_path / "published").mkdir()
    backend.save(str(tmp_path / "published" / "tokenizer.json"))
    write_json(tmp_path / "published" / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"})
    config = SimpleNamespace(model_type="llama", vocab_size=4)
    plan: Any = SimpleNamespace(tokenizer=tmp_path / "published", config=config, new_tokens=())
    save_tokenizer(plan, tmp_path)
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    assert load_tokenizer(tmp_path).encode("X") == [3]


def test_tokenizer_of_a_whole_checkpoint(tmp_path: Path) -> None:
    folder = write_original(tmp_path / "checkpoint")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    shutil.copy(GOLDEN / "tokenizer.model", folder)
    for shard in folder.glob("*.bin"):
        weights = torch.load(shard, weights_only=True)
        for key in {"model.embed_tokens.weight", "lm_head.weight"} & set(weights):
            weights[key] = torch.cat([weights[key], torch.randn(N_WORDS - len(weights[key]), weights[key].shape[1])])
        torch.save(weights, shard)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"vocab_size": N_WORDS})
    bundle = convert([folder], OutputOptions(tmp_path / "bundle")).bundle
    text = "USER: Q1 ASSISTANT: A1</s>USER: Q2"
    expected = RECORDED["tokenizer"]["plain_encodings"][text]["legacy"]
    assert load_tokenizer(bundle.llm_folder).encode(text) == expected
