"""Training: a recipe, a base model and files of conversations -> a new model bundle.

Reading order: recipe/ (keys, reading, checks), data/ (records -> samples -> token ids and labels), batching/ (order of
samples, sequence packing), stage/ (training loop, checkpoints, metrics), outputs/ (bundle, exports, report).
distributed.py handles several processes; api.py trains from Python, on samples in memory.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vidqa.train.api import TrainingSettings, train_stage

__all__ = ["TrainingSettings", "train_stage"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("vidqa.train.api"), name)
