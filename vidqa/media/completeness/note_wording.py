"""Wording of the notes about media files that can be read all the same. Each is a short phrase for `media_note`."""

from __future__ import annotations

_YEAR_S = 365 * 86400
#: Seconds from which a unit is used, its seconds, and its name.
_UNITS = ((2 * 86400, 86400, "d"), (3400, 3600, "h"), (110, 60, "min"), (0, 1, "s"))


def truncated(readable_s: float, promised_s: float | None) -> str:
    """Return the note about a file whose end is missing.

    Args:
        readable_s: seconds of video in the file.
        promised_s: seconds of video that its header claims; None if it claims nothing.
    """
    of = f" of {promised_s:.1f}" if promised_s else ""
    return f"truncated: {readable_s:.1f}{of} s readable"


def damaged(unreadable_s: float, duration_s: float) -> str:
    """Return the note about a file in which some frames cannot be decoded.

    Args:
        unreadable_s: seconds that these frames would be shown.
        duration_s: duration of the video in seconds.
    """
    digits = 1 if unreadable_s >= 0.1 else 3
    return f"damaged: {unreadable_s:.{digits}f} of {duration_s:.1f} s unreadable"


def clock_jumps(jump_s: float) -> str:
    """Return the note about timestamps that jump by `jump_s` seconds, forward or backward."""
    seconds = abs(jump_s)
    if seconds >= _YEAR_S:
        return "clock jumps by years"
    size, unit = next((size, unit) for least, size, unit in _UNITS if seconds >= least)
    return f"clock jumps by {max(1, int(seconds / size + 0.1))} {unit}"
