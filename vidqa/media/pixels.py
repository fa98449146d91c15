"""Decoded video frame -> RGB pixels as displayed: upright, with square pixels, transparent areas white."""

from __future__ import annotations

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from PIL import Image

from vidqa.media.color_matrix import make_convertible
from vidqa.media.container import display_size
from vidqa.records import MediaFacts

#: Codecs whose fourth channel is often unused, and then zero in every pixel: such frames are opaque.
_UNUSED_ALPHA = ("rawvideo", "huffyuv", "lagarith")


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
    make_convertible(frame)
    layout = "rgba" if has_alpha(frame) else "rgb24"
    pixels = frame.to_ndarray(format=layout, width=width, height=height, interpolation=Interpolation.BILINEAR)
    if layout == "rgba":
        opaque = facts.codec in _UNUSED_ALPHA and not pixels[..., 3].any()
        pixels = pixels[..., :3] if opaque else np.asarray(on_white(Image.fromarray(pixels)))
    if mirrored:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(np.rot90(pixels, -rotation_deg // 90))


def has_alpha(frame: VideoFrame) -> bool:
    """Return whether a frame has an alpha channel, or a palette, whose colors may be transparent."""
    return frame.format.has_palette or any(component.is_alpha for component in frame.format.components)


def on_white(image: Image.Image) -> Image.Image:
    """Return an image of mode RGBA on a white background, in mode RGB."""
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
