"""Special tokens around visual tokens: does a published tokenizer have them, where the weights expect them?

Knows the converter's way of reading a tokenizer. Does not know layouts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from vidqa.convert.plan import LlmPlan
from vidqa.convert.tokenizer import save_tokenizer
from vidqa.errors import BundleError
from vidqa.prompts.chat_formats import FORMATS


def words_of(chat: str) -> tuple[str, ...]:
    """All marks of a chat format."""
    return tuple(word for marks in FORMATS[chat].special_tokens for word in marks)


def check_ids(plan: LlmPlan, wanted: Mapping[str, int | None]) -> None:
    """Compare the ids that the bundle's tokenizer will give.

    Args:
        plan: tokenizer, and the tokens to add to it.
        wanted: id of each word; None where any will do.

    Raises:
        BundleError: a word is no token, or has another id: the rows of the embedding would be those of other words.
    """
    from tokenizers import Tokenizer

    with tempfile.TemporaryDirectory() as place:
        save_tokenizer(plan, Path(place))
        words = Tokenizer.from_file(str(Path(place) / "tokenizer.json"))
    problems = []
    for word, expected in wanted.items():
        found = words.token_to_id(word)
        if found is None:
            problems.append(f"{word}: no token of the tokenizer")
        elif expected is not None and found != expected:
            problems.append(f"{word}: id {found}, the weights expect {expected}")
    if problems:
        raise BundleError(
            "\n".join(f"{plan.tokenizer}: {p}" for p in problems),
            hint="the tokenizer must be the one that the checkpoint was tuned with",
        )
