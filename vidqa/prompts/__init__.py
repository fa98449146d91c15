"""Questions and chat formats -> token ids.

In: questions, or turns with the shapes of their media. Out: `Prompt` (ids and slots), labels for training.

questions.py       questions from TOML or by their text; the built-in sets are in sets/
chat_formats.py    the chat formats of the published models, as data
build.py           turns -> token ids, slots for visual tokens, labels
"""

from __future__ import annotations

from vidqa.common.lazy_exports import lazy_exports

__all__ = ["build_labels", "build_prompt", "get_format", "load_questions"]

__getattr__ = lazy_exports(
    __name__,
    {"build_labels": "build", "build_prompt": "build", "get_format": "chat_formats", "load_questions": "questions"},
)
