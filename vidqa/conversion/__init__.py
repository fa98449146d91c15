"""Published checkpoints become bundles: detected by their keys, read lazily, written tensor by tensor.

    paths -> folders -> detect -> formats/<layout> -> ConversionPlan -> write -> bundle

folders.py                    which files of a folder are weights, and what is skipped
sources.py, lazy_tensors.py   weight files and the tensors to be read from them
lora_merge.py                 LoRA adapters merged into their base
detect.py, formats/           which published layout the parts form, and what each key of it means
plan.py, checks.py            the complete model as a plan, checked before any tensor is read
write.py, tokenizer.py        the bundle: LLM shards, exported encoders, tokenizer
published.py, hub.py          the models that can be pulled, and their download
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidqa.common.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from vidqa.conversion.convert import Conversion
    from vidqa.conversion.plan import ConversionPlan
    from vidqa.conversion.published import pull

__all__ = ["Conversion", "ConversionPlan", "pull"]

__getattr__ = lazy_exports(__name__, {"Conversion": "convert", "ConversionPlan": "plan", "pull": "published"})
