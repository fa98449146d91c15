"""Ids, slots and labels; golden data of the original implementations is in tests/parity/test_golden.py."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidqa.errors import UsageError
from vidqa.prompts.build import IGNORE_INDEX, build_labels, build_prompt
from vidqa.prompts.chat_formats import FORMATS, get_format

FOLDER = Path(__file__).resolve().parent.parent / "golden"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import LlamaTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    shutil.copy(FOLDER / "tokenizer.model", folder)
    return LlamaTokenizer.from_pretrained(folder, add_bos_token=True)


def test_the_number_of_slots_depends_on_the_media(tokenizer: Any) -> None:
    small = build_prompt(tokenizer, FORMATS["v1"], [("Why?", None)], [("video", 8, 1)])
    large = build_prompt(tokenizer, FORMATS["v1"], [("Why?", None)], [("video", 5, 37), ("image", 1, 11)])
    assert (small.n_slots, large.n_slots) == (8, 5 * 37 + 11)
    assert small.ids[~small.slots].tolist() == large.ids[~large.slots].tolist()
    first = int(large.slots.nonzero()[0][0])
    assert large.slots[first : first + large.n_slots].all(), "the media are contiguous, before the question"


def test_a_tag_in_a_question_is_text(tokenizer: Any) -> None:
    prompt = build_prompt(tokenizer, FORMATS["v1"], [("What does <image> mean?", None)], [("image", 1, 3)])
    assert prompt.n_slots == 3
    text = tokenizer.decode(prompt.ids[~prompt.slots])
    assert "What does <image> mean?" in text


def test_several_turns_put_the_media_before_the_first(tokenizer: Any) -> None:
    turns = [("Q1", "A1"), ("Q2", None)]
    prompt = build_prompt(tokenizer, FORMATS["v1"], turns, [("video", 2, 3)])
    labeled = build_labels(tokenizer, FORMATS["v1"], [("Q1", "A1"), ("Q2", "A2")], [("video", 2, 3)])
    n = len(prompt.ids)
    assert labeled.prompt.ids[:n].tolist() == prompt.ids.tolist()
    assert (labeled.labels[: n - 1] != IGNORE_INDEX).any(), "earlier answers are targets, too"
    assert (labeled.labels[n:] != IGNORE_INDEX).all()


def test_invalid_arguments(tokenizer: Any) -> None:
    v1 = FORMATS["v1"]
    with pytest.raises(ValueError, match="at least one turn"):
        build_prompt(tokenizer, v1, [])
    with pytest.raises(ValueError, match="at least one token"):
        build_prompt(tokenizer, v1, [("Q", None)], [("video", 0, 5)])
    with pytest.raises(ValueError, match="the tags in the text"):
        build_labels(tokenizer, v1, [("<video>\nQ", "A")], [("image", 1, 2)])
    with pytest.raises(ValueError, match="the tags in the text"):
        build_labels(tokenizer, v1, [("<image><image>\nQ", "A")], [("image", 1, 2)])
    with pytest.raises(UsageError, match="NUL character"):
        build_prompt(tokenizer, v1, [("a\0b", None)])
    with pytest.raises(UsageError, match="not valid Unicode at character 2"):
        build_labels(tokenizer, v1, [("Q", "a\udcff")])


@pytest.fixture(scope="module")
def with_media_tokens(tokenizer: Any) -> Any:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(["<image>", "<video>"], special_tokens=True)
    return tokenizer


def test_media_as_placeholder_tokens(with_media_tokens: Any) -> None:
    """The ids equal those of the expanded text, as the transformers port tokenizes it."""
    tokenizer = with_media_tokens
    prompt = build_prompt(tokenizer, FORMATS["hf"], [("Why?", None)], [("image", 1, 3), ("video", 2, 2)])
    text = "USER: " + "<image>" * 3 + "<video>" * 4 + "\nWhy? ASSISTANT:"
    expanded = np.array(tokenizer.encode(text, add_special_tokens=True))
    tags = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    assert prompt.slots.tolist() == np.isin(expanded, tags).tolist()
    assert prompt.ids[~prompt.slots].tolist() == expanded[~prompt.slots].tolist()


def test_missing_placeholder_tokens(tokenizer: Any, with_media_tokens: Any) -> None:
    with pytest.raises(ValueError, match="no token <image>"):
        build_prompt(tokenizer, FORMATS["hf"], [("Why?", None)], [("image", 1, 3)])


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def with_template(tokenizer: Any) -> Any:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"], special_tokens=True)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_chat_template_of_the_tokenizer(with_template: Any) -> None:
    prompt = build_prompt(with_template, FORMATS["chat_template"], [("Why?", None)], [("image", 1, 4)])
    text = with_template.decode(prompt.ids[~prompt.slots])
    assert text.replace(" ", "") == "<s><|user|>\nWhy?<|end|>\n<|assistant|>"
    assert (prompt.ids == with_template.bos_token_id).sum() == 1
    system = build_prompt(with_template, get_format("chat_template", "Be short."), [("Why?", None)])
    assert "<|system|>" in with_template.decode(system.ids)


def test_chat_template_targets_are_the_answers_and_their_end_token(with_template: Any) -> None:
    turns = [("Name one river.", "The Rhine."), ("And then?", "Nothing.")]
    labeled = build_labels(with_template, FORMATS["chat_template"], turns, [("video", 2, 3)])
    assert labeled.problem is None
    targets = labeled.labels[labeled.labels != IGNORE_INDEX].tolist()
    assert with_template.decode(targets).replace(" ", "") == "TheRhine.<|end|>Nothing.<|end|>"
