"""Check that a published tokenizer has the special tokens around visual tokens, with the ids the weights expect."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from vidqa.conversion.plan import LlmPlan
from vidqa.conversion.tokenizer import save_tokenizer
from vidqa.errors import BundleError
from vidqa.prompts.chat_formats import FORMATS


def tokens_of(chat: str) -> tuple[str, ...]:
    """Return the special tokens of a chat format."""
    return tuple(token for tokens in FORMATS[chat].special_tokens for token in tokens)


def check_token_ids(plan: LlmPlan, expected: Mapping[str, int | None]) -> None:
    """Compare token ids of the bundle's tokenizer with those the weights expect.

    Args:
        plan: the tokenizer, and the tokens to add to it.
        expected: the id of each token; None accepts any id.

    Raises:
        BundleError: a token is missing or has another id, so its embedding row would belong to a different token.
    """
    from tokenizers import Tokenizer

    with tempfile.TemporaryDirectory() as path:
        save_tokenizer(plan, Path(path))
        vocabulary = Tokenizer.from_file(str(Path(path) / "tokenizer.json"))
    problems = []
    for token, expected_id in expected.items():
        found = vocabulary.token_to_id(token)
        if found is None:
            problems.append(f"{token}: not a token of the tokenizer")
        elif expected_id is not None and found != expected_id:
            problems.append(f"{token}: id {found}, the weights expect {expected_id}")
    if problems:
        raise BundleError(
            "\n".join(f"{plan.tokenizer}: {p}" for p in problems),
            hint="use the tokenizer that the checkpoint was trained with",
        )
