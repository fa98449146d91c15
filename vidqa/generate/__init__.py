"""Answers from features and questions: the LLM inference engine.

    Request -> PlannedRequest (prompt, split into prefix and suffix) -> token ids -> Answer or ItemError

Read engine.py and requests.py first, then scheduler.py and running_batch.py (continuous batching), kv_cache/ and
attention/ (one shared prefix per video), fallback.py (models without it) and chat_session.py (several turns).
"""

from __future__ import annotations

from importlib import import_module

_HOMES = {
    "Engine": "vidqa.generate.engine",
    "Request": "vidqa.generate.requests",
    "GenerationSettings": "vidqa.generate.requests",
    "generate": "vidqa.generate.engine",
    "ChatSession": "vidqa.generate.chat_session",
}
__all__ = ["ChatSession", "Engine", "GenerationSettings", "Request", "generate"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
