"""Answers from features and questions: the LLM inference engine.

    Request -> PlannedRequest (prompt, split into prefix and suffix) -> token ids -> Answer or ItemError

Read engine.py and requests.py first, then scheduler.py and running_batch.py (continuous batching), kv_cache/ and
attention/ (one shared prefix per video), fallback.py (models without it) and chat_session.py (several turns).
"""

from __future__ import annotations

from vidqa.common.lazy_exports import lazy_exports

__all__ = ["ChatSession", "Engine", "GenerationSettings", "Request", "generate"]

__getattr__ = lazy_exports(
    __name__,
    {
        "Engine": "engine",
        "Request": "requests",
        "GenerationSettings": "requests",
        "generate": "engine",
        "ChatSession": "chat_session",
    },
)
