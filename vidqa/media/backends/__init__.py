"""Readers that return frames by index, one module per decoder library.

In: path and frame numbers. Out: uint8 RGB frames [H, W, 3], upright, square pixels.

pyav.py         video, with FFmpeg; gop_reader.py for streams whose pts do not identify frames,
                lost_references.py for frames after damaged ones
decord.py       video, fallback if PyAV fails to decode
image.py        images and animations, with Pillow; image_pixels.py converts them to RGB
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidqa.common.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from vidqa.media.backends.decord import DecordReader
    from vidqa.media.backends.image import ImageReader
    from vidqa.media.backends.pyav import PyavReader

__all__ = ["DecordReader", "ImageReader", "PyavReader"]

__getattr__ = lazy_exports(__name__, {"DecordReader": "decord", "ImageReader": "image", "PyavReader": "pyav"})
