"""One training stage: a recipe, a base model, a corpus and its features -> trained weights on disk.

Reading order: stage.py (loads model and data of a stage, stores its result), trainer.py (training loop, checkpoints,
resume), callbacks.py (metrics, evaluation, when to stop), trainable.py (which parameters train), loss.py, evaluate.py,
metrics.py, checkpoints.py, batch_size.py, memory.py, quantize.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidqa.common.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from vidqa.training.stage.stage import StageRunner
    from vidqa.training.stage.trainer import StageResult, StageTrainer

__all__ = ["StageResult", "StageRunner", "StageTrainer"]

__getattr__ = lazy_exports(__name__, {"StageResult": "trainer", "StageRunner": "stage", "StageTrainer": "trainer"})
