"""Decoded frame -> pixels as a viewer sees them. Does not read files."""

from __future__ import annotations

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation

from vidqa.media.container import display_size
from vidqa.records import MediaFacts


def to_display_rgb(frame: VideoFrame, facts: MediaFacts, turn: int, mirrored: bool) -> np.ndarray:
    """RGB of a frame, uint8 [H, W, 3], of the size that the facts of its clip name.

    Args:
        frame: as it was decoded.
        facts: of the clip, whose first size holds where a stream changes it on the way.
        turn, mirrored: as `vidqa.media.container.orientation` gives them.
    """
    width, height = display_size(frame.width, frame.height, facts.pixel_aspect, 0)
    upright = (height, width) if turn in (90, 270) else (width, height)
    if upright != (facts.width, facts.height):
        width, height = (facts.height, facts.width) if turn in (90, 270) else (facts.width, facts.height)
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation=Interpolation.BILINEAR)
    if mirrored:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(np.rot90(pixels, -turn // 90))
