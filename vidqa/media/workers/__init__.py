"""Decoder processes with time and memory limits.

In: `DecodeJob`s. Out: decoded media or a MediaError for each.

decode_pool.py   the pool that callers use
process.py       one process as seen by the pool; server.py is its main loop
ipc.py           messages over pipes
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vidqa.media.workers.decode_pool import DecodePool

__all__ = ["DecodePool"]

_MODULES = {"DecodePool": "decode_pool"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
