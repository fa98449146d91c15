"""Decoded video frame -> RGB pixels as displayed: upright and with square pixels."""

from __future__ import annotations

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation

from vidqa.media.container import display_size
from vidqa.records import MediaFacts


def to_display_rgb(frame: VideoFrame, facts: MediaFacts, rotation_deg: int, mirrored: bool) -> np.ndarray:
    """Convert a frame to RGB at the display size of its video.

    Args:
        frame: the frame as decoded.
        facts: facts of the video. Frames are scaled to its size even if the stream changes its resolution.
        rotation_deg: clockwise rotation, from `vidqa.media.container.orientation`.
        mirrored: whether to mirror horizontally before the rotation.

    Returns:
        uint8 [H, W, 3].
    """
    width, height = display_size(frame.width, frame.height, facts.pixel_aspect, 0)
    upright = (height, width) if rotation_deg in (90, 270) else (width, height)
    if upright != (facts.width, facts.height):
        width, height = (facts.height, facts.width) if rotation_deg in (90, 270) else (facts.width, facts.height)
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation=Interpolation.BILINEAR)
    if mirrored:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(np.rot90(pixels, -rotation_deg // 90))
