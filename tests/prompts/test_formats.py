"""Rendered prompts against lengths and digests of the originals."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from vidqa.prompts.formats import FORMATS, get_format, render, render_spans

GOLDEN = json.loads((Path(__file__).resolve().parent.parent / "golden" / "prompts.json").read_text())
#: Names of the recorded formats that are called otherwise here.
OTHER_NAMES = {"vicuna_v1_1": "v1", "default": None}

CASES = [
    (group, name, structure)
    for group in ("rendered_prompts", "rendered_prompts_video_chatgpt")
    for name, cases in GOLDEN[group].items()
    for structure in cases
    if OTHER_NAMES.get(name, name)
]


def turns_of(structure: str) -> list[tuple[str, str | None]]:
    flat = GOLDEN["turn_structures"][structure]
    return list(zip(flat[::2], flat[1::2], strict=True))


def test_enough_cases() -> None:
    assert len(CASES) > 80


@pytest.mark.parametrize(("group", "name", "structure"), CASES)
def test_rendered_prompt_is_the_original(group: str, name: str, structure: str) -> None:
    wanted = GOLDEN[group][name][structure]
    chat = FORMATS[OTHER_NAMES.get(name, name)]
    if "raises" in wanted:
        with pytest.raises(ValueError, match="plain"):
            render(chat, turns_of(structure))
        return
    text = render(chat, turns_of(structure))
    assert len(text) == wanted["n_chars"]
    assert hashlib.sha256(text.encode()).hexdigest() == wanted["sha256"]


@pytest.mark.parametrize("name", ["v1", "vicuna_v1", "llava_v1", "llava_v0", "plain"])
def test_system_text(name: str) -> None:
    wanted = GOLDEN["system_prompts"][name]
    assert len(FORMATS[name].system) == wanted["n_chars"]
    assert hashlib.sha256(FORMATS[name].system.encode()).hexdigest() == wanted["sha256"]


def test_hf_has_no_system_text() -> None:
    assert render(FORMATS["hf"], [("<video>\nWhy?", None)]) == "USER: <video>\nWhy? ASSISTANT:"


def test_spans_are_the_answers_and_their_closing_mark() -> None:
    text, spans = render_spans(FORMATS["v1"], [("Q1", "A1"), ("Q2", "A2"), ("Q3", None)])
    assert [text[a:b] for a, b in spans] == [" A1</s>", " A2</s>"]
    assert all(text[:a].endswith("ASSISTANT:") for a, _ in spans)


def test_only_the_last_turn_may_be_open() -> None:
    with pytest.raises(ValueError, match="turn 1 of 2"):
        render(FORMATS["v1"], [("Q1", None), ("Q2", "A2")])


def test_other_system_text() -> None:
    turns = [("Q", None)]
    assert render(get_format("v1", "Be short."), turns) == "Be short. USER: Q ASSISTANT:"
    assert render(get_format("v1", ""), turns) == "USER: Q ASSISTANT:"
    assert render(get_format("hf", "Be short."), turns) == "Be short. USER: Q ASSISTANT:"
    assert render(get_format("v1"), turns) == render(FORMATS["v1"], turns)
    with pytest.raises(ValueError, match="plain"):
        get_format("plain", "Be short.")
    with pytest.raises(ValueError, match="vicuna_v1"):
        get_format("vicuna")
