"""Outputs of training: finished stages -> bundle, exports, tables, plots and report.

Reading order: run_dir.py (work folder: identity of the run, weights and facts of finished stages), trained_bundle.py
(the new bundle), hf_export.py (a folder for transformers), plots.py (loss curves), report.py (writes all of them and
`report.md`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vidqa.train.outputs.report import write_results
    from vidqa.train.outputs.run_dir import StageFacts
    from vidqa.train.outputs.trained_bundle import InitialModel

__all__ = ["InitialModel", "StageFacts", "write_results"]

_MODULES = {"InitialModel": "trained_bundle", "StageFacts": "run_dir", "write_results": "report"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
