"""Outputs of training: finished stages -> bundle, exports, tables, plots and report.

Reading order: run_dir.py (work folder: identity of the run, weights and facts of finished stages), trained_bundle.py
(the new bundle), hf_export.py (a folder for transformers), plots.py (loss curves), report.py (writes all of them and
`report.md`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidqa.common.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from vidqa.training.outputs.report import write_results
    from vidqa.training.outputs.run_dir import StageFacts
    from vidqa.training.outputs.trained_bundle import InitialModel

__all__ = ["InitialModel", "StageFacts", "write_results"]

__getattr__ = lazy_exports(
    __name__, {"InitialModel": "trained_bundle", "StageFacts": "run_dir", "write_results": "report"}
)
