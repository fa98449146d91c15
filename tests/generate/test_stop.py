"""What ends an answer, and what is no part of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from vidqa.generate.stop_strings import Stopper
from vidqa.prompts.chat_formats import FORMATS


class Letters:
    """A tokenizer whose ids are code points."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return "".join(map(chr, ids))


def said(stopper: Stopper, text: str) -> str:
    """What comes out when a model would say `text` and is stopped where it must."""
    ids: list[int] = []
    for letter in text:
        ids.append(ord(letter))
        if stopper.stops(ids):
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
def test_leads_neither_end_nor_begin_an_answer(text: str, answer: str) -> None:
    assert said(VALLEY, text) == answer


def test_an_end_after_a_lead_stops() -> None:
    ids = [ord(c) for c in "### Assistant: yes ###"]
    assert VALLEY.stops(ids)
    assert not VALLEY.stops(ids[:-1])
    assert not VALLEY.stops([ord(c) for c in "### Assistant:"])


def test_without_leads_the_first_stop_ends() -> None:
    assert said(Stopper(Letters(), ("###",)), "### Assistant: A dog") == ""
    assert said(Stopper(Letters(), ("###",)), "bikes ### x") == "bikes", "no trailing s is eaten"
