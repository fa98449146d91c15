"""The model: a bundle on disk and the networks inside it.

    bundle folder -> Bundle -> VideoLlava: features [T, P, D] -> visual tokens [V, L] -> prompt embeddings [S, L] -> LLM

Read bundle/ first (the on-disk format), then video_llava.py with connector.py, compressors.py and visual_tokens.py,
then llm.py, lora.py and llama/ (language models). towers/ and onnx/ hold the encoders and their export to ONNX.
"""

from __future__ import annotations

from importlib import import_module

_HOMES = {
    "Bundle": "vidqa.model.bundle.bundle",
    "load_bundle": "vidqa.model.bundle.bundle",
    "VideoLlava": "vidqa.model.video_llava",
    "load_model": "vidqa.model.video_llava",
}
__all__ = ["Bundle", "VideoLlava", "load_bundle", "load_model"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
