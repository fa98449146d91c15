"""Questions and chat formats -> token ids.

In: a question set, or turns with the shapes of their media. Out: `Prompt` (ids and slots), labels for training.

questions.py       question sets from TOML; the built-in ones are in sets/
chat_formats.py    the chat formats of the published models, as data
build.py           turns -> token ids, slots for visual tokens, labels
"""

from __future__ import annotations

from importlib import import_module

_HOMES = {
    "build_labels": "vidqa.prompts.build",
    "build_prompt": "vidqa.prompts.build",
    "get_format": "vidqa.prompts.chat_formats",
    "load_questions": "vidqa.prompts.questions",
}
__all__ = ["build_labels", "build_prompt", "get_format", "load_questions"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
