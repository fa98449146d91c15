"""Stop strings end an answer; answer prefixes are removed from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pytest

from vidqa.generate.stop_strings import Stopper
from vidqa.prompts.chat_formats import FORMATS


class Letters:
    """A tokenizer whose ids are code points."""

    added_tokens_decoder: ClassVar = {}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return "".join(map(chr, ids))


def answer_text(stopper: Stopper, text: str) -> str:
    """The answer if the model generates `text` and is stopped as soon as a stop string is complete."""
    ids: list[int] = []
    for letter in text:
        ids.append(ord(letter))
        if stopper.has_stop_string(ids):
            break
    return stopper.text(ids)


VALLEY = Stopper(Letters(), FORMATS["valley"].stop, FORMATS["valley"].answer_prefixes)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" Assistant: A dog runs. \n### Human: ok", "A dog runs."),
        ("### Assistant: A dog runs.\n### Human: ok", "A dog runs."),
        ("###### Response: Valley: A cat ###", "A cat"),
        ("A dog says Assistant: no", "A dog says Assistant: no"),
        ("###", ""),
        ("10.", "10."),
    ],
)
def test_answer_prefixes_are_removed_and_do_not_stop(text: str, answer: str) -> None:
    assert answer_text(VALLEY, text) == answer


def test_a_stop_string_after_an_answer_prefix_stops() -> None:
    ids = [ord(c) for c in "### Assistant: yes ###"]
    assert VALLEY.has_stop_string(ids)
    assert not VALLEY.has_stop_string(ids[:-1])
    assert not VALLEY.has_stop_string([ord(c) for c in "### Assistant:"])


def test_without_answer_prefixes_the_first_stop_string_ends() -> None:
    assert answer_text(Stopper(Letters(), ("###",)), "### Assistant: A dog") == ""
    assert answer_text(Stopper(Letters(), ("###",)), "bikes ### x") == "bikes", "no trailing s is eaten"
