"""Chat formats that enclose visual tokens in special tokens: Video-ChatGPT and Valley."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from vidqa.prompts.build import IGNORE_INDEX, build_labels, build_prompt
from vidqa.prompts.chat_formats import FORMATS, get_format, render
from vidqa.records import MediaShape

FOLDER = Path(__file__).resolve().parent.parent / "golden"
CHATGPT, VALLEY = get_format("video-chatgpt_v1", "Look."), get_format("valley", "Look.")
WORDS = [word for name in ("video-chatgpt_v1", "valley") for tokens in FORMATS[name].special_tokens for word in tokens]
VIDEO = MediaShape("video", 3, 5, (9,))
VALLEY_VIDEO = MediaShape("video", 3, 5, (4, 3))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import LlamaTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    shutil.copy(FOLDER / "tokenizer.model", folder)
    return LlamaTokenizer.from_pretrained(folder, add_bos_token=True)


@pytest.fixture(scope="module")
def tokenizer(plain: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("with_words")
    plain.save_pretrained(folder)
    made = AutoTokenizer.from_pretrained(folder)
    made.add_tokens(WORDS, special_tokens=True)
    return made


def names(tokenizer: Any, prompt: Any) -> list[str]:
    """Return the special tokens of a prompt, and a dot for each slot."""
    words = dict(zip(tokenizer.convert_tokens_to_ids(WORDS), WORDS, strict=True))
    return ["." if s else words[i] for i, s in zip(prompt.ids.tolist(), prompt.slots, strict=True) if s or i in words]


def test_video_chatgpt_has_the_video_after_the_question(tokenizer: Any) -> None:
    prompt = build_prompt(tokenizer, CHATGPT, [("Why?", None)], [VIDEO])
    assert names(tokenizer, prompt) == ["<vid_start>", *"." * 9, "<vid_end>"]
    first = int(prompt.slots.argmax())
    assert tokenizer.decode(prompt.ids[1 : first - 1]).strip() == "Look. USER: Why?"
    assert tokenizer.decode(prompt.ids[first + 10 :]).strip() == "ASSISTANT:"


def test_valley_separates_patch_and_frame_tokens(tokenizer: Any) -> None:
    prompt = build_prompt(tokenizer, VALLEY, [("Why?", None)], [VALLEY_VIDEO])
    one = ["<im_start>", *"." * 4, "<im_end>", "<vi_start>", *"." * 3, "<vi_end>"]
    assert names(tokenizer, prompt) == one
    two = build_prompt(tokenizer, VALLEY, [("Why?", None)], [VALLEY_VIDEO, VALLEY_VIDEO._replace(runs=(4, 1))])
    assert names(tokenizer, two) == [*one, "<im_start>", *"." * 4, "<im_end>", "<vi_start>", ".", "<vi_end>"]
    assert tokenizer.decode(prompt.ids[-3:]).endswith("###"), "the model generates its role"


def test_several_turns_match_the_original() -> None:
    turns = [("Q1", "A1"), ("Q2", None)]
    assert render(VALLEY, turns).text == "Look.\n\n### Human: Q1 \n### Assistent: A1 \n### Human: Q2 \n###"
    training = get_format("valley_tuned", "Look.")
    assert render(training, turns).text == "Look.\n\n### Human: Q1\n### Assistant: A1\n### Human: Q2\n### Assistant:"
    assert render(CHATGPT, turns).text == "Look. USER: Q1 ASSISTANT: A1</s>USER: Q2 ASSISTANT:"


def test_runs_must_match_the_special_tokens(tokenizer: Any, plain: Any) -> None:
    with pytest.raises(ValueError, match="special tokens for 2 runs, not 1"):
        build_prompt(tokenizer, VALLEY, [("Why?", None)], [VIDEO])
    with pytest.raises(ValueError, match="at least one token"):
        build_prompt(tokenizer, VALLEY, [("Why?", None)], [VALLEY_VIDEO._replace(runs=(4, 0))])
    with pytest.raises(ValueError, match="the tokenizer lacks"):
        build_prompt(plain, CHATGPT, [("Why?", None)], [VIDEO])


def test_training_replaces_the_tag_and_targets_the_answer(tokenizer: Any) -> None:
    chat = get_format("vicuna_v1_1", "Look.")
    for question in ("<video>\nWhy?", "Why?\n<video>"):
        made = build_labels(tokenizer, chat, [(question, "So.")], [VIDEO])
        assert made.problem is None
        assert made.prompt.n_slots == 9
        first = int(made.prompt.slots.argmax())
        assert ("Why" in tokenizer.decode(made.prompt.ids[:first])) == question.startswith("Why")
        assert (made.labels[made.prompt.slots] == IGNORE_INDEX).all()
        targets = made.labels[made.labels != IGNORE_INDEX].tolist()
        assert tokenizer.decode(targets).replace(" ", "") == "So.</s>"


def test_a_role_that_the_model_generates_is_a_target(tokenizer: Any) -> None:
    made = build_labels(tokenizer, VALLEY, [("Why?", "So.")], [VALLEY_VIDEO])
    targets = tokenizer.decode(made.labels[made.labels != IGNORE_INDEX].tolist())
    assert made.problem is None
    assert targets.replace(" ", "") == "Assistent:So.\n###"
