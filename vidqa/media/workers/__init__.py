"""Decoder processes with limits on memory and on the time without progress.

In: `DecodeJob`s. Out: decoded media or a MediaError for each.

decode_pool.py   the pool that callers use
process.py       one process as seen by the pool; server.py is its main loop
ipc.py           messages over pipes
heartbeat.py     signs of progress, which the readers of files send
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidqa.common.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from vidqa.media.workers.decode_pool import DecodePool

__all__ = ["DecodePool"]

__getattr__ = lazy_exports(__name__, {"DecodePool": "decode_pool"})
