"""ONNX: towers -> graphs, checked against torch, and what can be read back from graphs.

export.py             tower -> ONNX file and report
export_modules.py     the towers in a form that exports cleanly
onnx_io.py            tracing, fusing, external data
external_data.py      ONNX file -> names of the external data files it reads; needs no onnx package
weights_from_onnx.py  exported vision graph -> weights under CLIP's names
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidqa.common.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from vidqa.model.onnx.export import ExportReport, export_text, export_tower

__all__ = ["ExportReport", "export_text", "export_tower"]

__getattr__ = lazy_exports(__name__, {"ExportReport": "export", "export_text": "export", "export_tower": "export"})
