"""Frames or texts -> features, with ONNX Runtime.

In: `FrameBatch` or text. Out: `Features` of a segment, or the embedding of a text.

preprocess.py         frames -> pixel values, exactly as the published models do
encoder.py            image and video encoder of a model; text_encoder.py for search
onnx_session.py       one ONNX graph on one device; onnx_errors.py
bundle_protocol.py    what the encoders need from a bundle
"""

from __future__ import annotations

from vidqa.common.lazy_exports import lazy_exports

__all__ = ["Encoder", "PreprocessSpec", "TextEncoder"]

__getattr__ = lazy_exports(
    __name__, {"Encoder": "encoder", "PreprocessSpec": "preprocess", "TextEncoder": "text_encoder"}
)
