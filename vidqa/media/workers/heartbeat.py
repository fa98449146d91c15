"""Signs of progress of a decoder: the readers call `beat` for every packet and frame that arrives.

Outside a decoder process `beat` does nothing. The time limit of a file counts from the last beat, so a decoder that
hangs is stopped, and a long video is not while it advances.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_send: Callable[[], None] | None = None
_interval_s = 0.0
_sent_at = 0.0


def set_sender(send: Callable[[], None], interval_s: float) -> None:
    """Set the function that reports progress.

    Args:
        send: called by `beat`, in the thread that decodes.
        interval_s: shortest time between two calls in seconds.
    """
    global _send, _interval_s
    _send, _interval_s = send, interval_s


def beat() -> None:
    """Report progress, unless that happened a moment ago."""
    global _sent_at
    if _send is not None and (now := time.monotonic()) - _sent_at >= _interval_s:
        _sent_at = now
        _send()
