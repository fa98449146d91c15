"""Rendered prompts; digests of the original implementations are in tests/parity/test_golden.py."""

from __future__ import annotations

import pytest

from vidqa.prompts.chat_formats import FORMATS, get_format, render


def test_hf_has_no_system_prompt() -> None:
    assert render(FORMATS["hf"], [("<video>\nWhy?", None)]).text == "USER: <video>\nWhy? ASSISTANT:"


def test_spans_are_the_answers_and_their_end() -> None:
    made = render(FORMATS["v1"], [("Q1", "A1"), ("Q2", "A2"), ("Q3", None)])
    text, spans = made.text, made.answers
    assert [text[a:b] for a, b in spans] == [" A1</s>", " A2</s>"]
    assert all(text[:a].endswith("ASSISTANT:") for a, _ in spans)


def test_only_the_last_turn_may_be_open() -> None:
    with pytest.raises(ValueError, match="turn 1 of 2"):
        render(FORMATS["v1"], [("Q1", None), ("Q2", "A2")])


def test_other_system_prompt() -> None:
    turns = [("Q", None)]
    assert render(get_format("v1", "Be short."), turns).text == "Be short. USER: Q ASSISTANT:"
    assert render(get_format("v1", ""), turns).text == "USER: Q ASSISTANT:"
    assert render(get_format("hf", "Be short."), turns).text == "Be short. USER: Q ASSISTANT:"
    assert render(get_format("v1"), turns).text == render(FORMATS["v1"], turns).text
    with pytest.raises(ValueError, match="plain"):
        get_format("plain", "Be short.")
    with pytest.raises(ValueError, match="vicuna_v1"):
        get_format("vicuna")
