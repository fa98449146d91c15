"""The CLIP towers of LanguageBind in torch, for export and training.

vit.py             frames [B, T, 3, H, W] -> hidden states per frame and one pooled embedding
text.py            token ids [B, S] -> one pooled embedding
clip_tokenizer.py  published CLIP tokenizer -> tokenizer.json of a bundle
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vidqa.model.towers.text import TextConfig, TextTower
    from vidqa.model.towers.vit import VisionConfig, VisionTower

__all__ = ["TextConfig", "TextTower", "VisionConfig", "VisionTower"]

_MODULES = {"TextConfig": "text", "TextTower": "text", "VisionConfig": "vit", "VisionTower": "vit"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
