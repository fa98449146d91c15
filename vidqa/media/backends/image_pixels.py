"""Decoded Pillow image -> RGB pixels as displayed: upright, transparent areas white, 8 bits per channel.

Colors are not converted with ICC profiles: the published encoders were trained without that.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vidqa.media.pixels import on_white

_ORIENTATION_TAG = 0x0112
#: EXIF orientation -> what makes the stored image upright.
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: EXIF orientation -> clockwise rotation in degrees (2, 4, 5 and 7 are also mirrored).
_ROTATIONS = {3: 180, 4: 180, 5: 270, 6: 90, 7: 90, 8: 270}
#: Largest value of a channel, by mode. Others have 8 bits.
_TOP = {"F": 1.0, "I": 65535.0, "I;16": 65535.0, "I;16L": 65535.0, "I;16B": 65535.0, "I;16N": 65535.0}


@dataclass(frozen=True)
class Geometry:
    """From a decoded image to what is displayed: first the crop, then the transposition."""

    crop: tuple[int, int, int, int] | None  # left, top, right, bottom
    transposition: Image.Transpose | None
    rotation_deg: int  # clockwise part of the transposition, or of what Pillow has done already

    @classmethod
    def of(cls, image: Image.Image, crop: tuple[int, int, int, int] | None = None) -> Geometry:
        """Read the EXIF orientation.

        Args:
            image: an open image that has not been decoded yet: Pillow transposes TIFF images when it decodes them, and
                reports the size of the upright image before that.
            crop: visible part of the stored image, if it is not all of it.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about damaged EXIF data
                value = int(image.getexif().get(_ORIENTATION_TAG, 1))
        except Exception:  # noqa: BLE001 - damaged EXIF data raises many types in Pillow, and must not cost the image
            value = 1
        return cls(crop, None if image.format == "TIFF" else _TRANSPOSITIONS.get(value), _ROTATIONS.get(value, 0))

    def display_size(self, image: Image.Image) -> tuple[int, int]:
        """Return (width, height) of the image as it is displayed."""
        left, top, right, bottom = self.crop or (0, 0, *image.size)
        size = right - left, bottom - top
        swapped = self.transposition is not None and self.rotation_deg in (90, 270)
        return (size[1], size[0]) if swapped else size


def transparent_value(image: Image.Image, png_depth: int) -> int | bytes | tuple[int, ...] | None:
    """Return the value of transparent pixels in the range of the decoded image; None if there is none.

    Args:
        image: the image.
        png_depth: bits per channel in a PNG file, 8 in other formats. Pillow leaves the value in this range, but
            expands 2 and 4 bits to 8, and reduces RGB with 16 bits to 8.
    """
    value: int | bytes | tuple[int, ...] | None = image.info.get("transparency")
    if isinstance(value, int) and image.mode == "L" and png_depth in (2, 4):
        return value * 255 // (2**png_depth - 1)
    if isinstance(value, tuple) and image.mode == "RGB" and png_depth == 16:
        return tuple(v >> 8 for v in value)
    return value


def to_display_rgb(image: Image.Image, geometry: Geometry) -> np.ndarray:
    """Convert an image to RGB as it is displayed.

    Args:
        image: the image, or the current frame of an animation. It is decoded if necessary.
        geometry: geometry of the image.

    Returns:
        uint8 [H, W, 3].

    Raises:
        OSError, ValueError, ...: the image is damaged.
    """
    image.load()
    shown = _with_8_bits(image) if image.mode in _TOP else image
    if shown.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in shown.info:
        rgb = on_white(shown.convert("RGBA"))
    else:
        rgb = shown.convert("RGB")
    if geometry.crop is not None:
        rgb = rgb.crop(geometry.crop)
    return np.array(rgb if geometry.transposition is None else rgb.transpose(geometry.transposition))


def rows_with_content(image: Image.Image) -> np.ndarray:
    """Find the rows of a damaged image that are not blank. Pillow leaves missing rows in one color.

    Args:
        image: the decoded image.

    Returns:
        bool [H].
    """
    pixels = np.asarray(image)
    blank = pixels[0, 0] if image.format == "BMP" else pixels[-1, -1]  # BMP is stored from the bottom up
    content: np.ndarray = (pixels != blank).reshape(len(pixels), -1).any(axis=1)
    return content


def _with_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and floating-point gray to 8 bits. Values above the usual range set the white level."""
    values = np.asarray(image)
    top = _TOP[image.mode]
    if image.mode in ("I", "F"):
        top = float(values[np.isfinite(values)].max(initial=top))
    gray = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=top, neginf=0.0).clip(0, top)
    shown = Image.fromarray((gray * (255 / top)).astype(np.uint8))
    if isinstance(key := image.info.get("transparency"), int):
        shown.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return shown
