"""Bundles: the on-disk format of a model.

registry.py   name or path -> folder
bundle.py     folder -> Bundle (identity, verification); parts -> folder, atomically
spec.py       bundle.json as frozen records; spec_json.py converts them from and to JSON, strictly
validate.py   checks which files a bundle contains, reading no more than their headers
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidqa.common.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from vidqa.model.bundle.bundle import Bundle, load_bundle, save_bundle
    from vidqa.model.bundle.registry import find_bundle
    from vidqa.model.bundle.spec import BundleSpec

__all__ = ["Bundle", "BundleSpec", "find_bundle", "load_bundle", "save_bundle"]

__getattr__ = lazy_exports(
    __name__,
    {
        "Bundle": "bundle",
        "BundleSpec": "spec",
        "find_bundle": "registry",
        "load_bundle": "bundle",
        "save_bundle": "bundle",
    },
)
