"""Training: a recipe, a base model and files of conversations -> a new model bundle.

Reading order: recipe/ (keys, reading, checks), data/ (records -> samples -> token ids and labels), batching/ (order of
samples, sequence packing), stage/ (training loop, checkpoints, metrics), outputs/ (bundle, exports, report).
distributed.py handles several processes; api.py trains from Python, on samples in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidqa.common.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from vidqa.training.api import TrainingSettings, train_stage

__all__ = ["TrainingSettings", "train_stage"]

__getattr__ = lazy_exports(__name__, {"TrainingSettings": "api", "train_stage": "api"})
