"""The model: a bundle on disk and the networks inside it.

    bundle folder -> Bundle -> VideoLlava: features [T, P, D] -> visual tokens [V, L] -> prompt embeddings [S, L] -> LLM

Read bundle/ first (the on-disk format), then video_llava.py with connector.py, compressors.py and visual_tokens.py,
then llm.py, lora.py and llama/ (language models). towers/ and onnx/ hold the encoders and their export to ONNX.
"""

from __future__ import annotations

from vidqa.common.lazy_exports import lazy_exports

__all__ = ["Bundle", "VideoLlava", "load_bundle", "load_model"]

__getattr__ = lazy_exports(
    __name__,
    {
        "Bundle": "bundle.bundle",
        "load_bundle": "bundle.bundle",
        "VideoLlava": "video_llava",
        "load_model": "video_llava",
    },
)
