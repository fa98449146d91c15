"""ONNX: towers -> graphs, checked against torch, and what can be read back from graphs.

export.py             tower -> ONNX file and report
export_modules.py     the towers in a form that exports cleanly
onnx_io.py            tracing, fusing, external data
external_data.py      ONNX file -> names of the external data files it reads; needs no onnx package
weights_from_onnx.py  exported vision graph -> weights under CLIP's names
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vidqa.model.onnx.export import ExportReport, export_text, export_tower

__all__ = ["ExportReport", "export_text", "export_tower"]

_MODULES = {"ExportReport": "export", "export_text": "export", "export_tower": "export"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
