"""The CLIP towers of LanguageBind in torch, for export and training.

vit.py             frames [B, T, 3, H, W] -> hidden states per frame and one pooled embedding
text.py            token ids [B, S] -> one pooled embedding
clip_tokenizer.py  published CLIP tokenizer -> tokenizer.json of a bundle
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidqa.common.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from vidqa.model.towers.text import TextConfig, TextTower
    from vidqa.model.towers.vit import VisionConfig, VisionTower

__all__ = ["TextConfig", "TextTower", "VisionConfig", "VisionTower"]

__getattr__ = lazy_exports(
    __name__, {"TextConfig": "text", "TextTower": "text", "VisionConfig": "vit", "VisionTower": "vit"}
)
