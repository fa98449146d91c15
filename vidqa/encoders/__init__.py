"""Frames or texts -> features, with ONNX Runtime.

In: `FrameBatch` or text. Out: `Features` of a segment, or the embedding of a text.

preprocess.py         frames -> pixel values, exactly as the published models do
encoder.py            image and video encoder of a model; text_encoder.py for search
onnx_session.py       one ONNX graph on one device; onnx_errors.py
bundle_protocol.py    what the encoders need from a bundle
"""

from __future__ import annotations

from importlib import import_module

_HOMES = {
    "Encoder": "vidqa.encoders.encoder",
    "PreprocessSpec": "vidqa.encoders.preprocess",
    "TextEncoder": "vidqa.encoders.text_encoder",
}
__all__ = ["Encoder", "PreprocessSpec", "TextEncoder"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
