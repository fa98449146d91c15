"""Published checkpoints become bundles: detected by their keys, read lazily, written tensor by tensor.

    paths -> sources -> detect -> formats/<layout> -> ConversionPlan -> write -> bundle

sources.py, lazy_tensors.py   weight files and the tensors to be read from them
detect.py, formats/           which published layout the parts form, and what each key of it means
plan.py, checks.py            the complete model as a plan, checked before any tensor is read
write.py, tokenizer.py        the bundle: LLM shards, exported encoders, tokenizer
published.py, hub.py          the models that can be pulled, and their download
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vidqa.convert.convert import Conversion
    from vidqa.convert.plan import ConversionPlan
    from vidqa.convert.published import pull

__all__ = ["Conversion", "ConversionPlan", "pull"]

_MODULES = {"Conversion": "convert", "ConversionPlan": "plan", "pull": "published"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
