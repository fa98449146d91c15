"""Images and animations (JPEG, PNG, GIF, WebP, TIFF, BMP ...) -> frames, with Pillow.

Pillow is used instead of FFmpeg because it reads animated WebP, handles all eight EXIF orientations and reports
truncated images. Transparent areas become white. 16-bit grayscale images are reduced to their upper 8 bits.
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from vidqa.common.display import display_path
from vidqa.errors import MediaError
from vidqa.media.container import MAX_PIXELS, too_large_error
from vidqa.media.files import file_error
from vidqa.media.workers.heartbeat import beat
from vidqa.records import MediaFacts

_CODECS = {"JPEG": "mjpeg", "MPO": "mjpeg"}
#: Delays up to this are taken for encoder errors; browsers and FFmpeg show such frames for a tenth of a second.
_MIN_DELAY_MS, _DEFAULT_DELAY_MS = 10, 100.0
_ORIENTATION_TAG = 0x0112
#: EXIF orientation -> clockwise rotation in degrees (2, 4, 5 and 7 are also mirrored).
_ROTATIONS = {3: 180, 4: 180, 5: 270, 6: 90, 7: 90, 8: 270}


class ImageReader:
    """Reads frames of one image or animation by index. Same interface as `PyavReader`."""

    backend = "pillow"

    def __init__(self, path: str) -> None:
        self.path = path
        self._image = _open(path)
        try:
            self.facts, starts_ms = _facts(path, self._image, count=True)
        except BaseException:
            self.close()
            raise
        self.pts_s = np.asarray(starts_ms, np.float64) / 1000

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. May be called twice."""
        self._image.close()

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield frames in the order of `indices`, each a new uint8 RGB array [H, W, 3].

        Raises:
            MediaError: the image is damaged.
        """
        for i in indices:
            try:
                if i < self._image.tell():  # reopen to return to the start: Pillow cannot rewind APNG reliably
                    self._image.close()
                    self._image = _open(self.path)
                self._image.seek(int(i))
                pixels = _to_display_rgb(self._image)
            except _DECODE_ERRORS as e:
                raise _damage_error(self.path, e) from e
            if pixels.shape[:2] != (self.facts.height, self.facts.width):
                raise MediaError("unreadable", f"{display_path(self.path)}: frame {i} differs in size from the first")
            yield pixels


def probe_image(path: str) -> MediaFacts:
    """Return the facts of an image file without counting the frames of an animation.

    Args:
        path: path of the file.

    Raises:
        MediaError: the image cannot be decoded.
    """
    with _open(path) as image:
        return _facts(path, image, count=False)[0]


#: Exceptions that Pillow raises for damaged images.
_DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    Image.DecompressionBombError,
)


def _open(path: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `MAX_PIXELS` is checked below
            image = Image.open(path)
    except Image.DecompressionBombError as e:
        raise MediaError("too_large", f"{display_path(path)}: {e}") from e
    except UnidentifiedImageError as e:
        raise MediaError(
            "unreadable", f"{display_path(path)}: the image header is damaged or of an unknown format"
        ) from e
    except (FileNotFoundError, PermissionError) as e:
        raise file_error(path, e) from e
    except _DECODE_ERRORS as e:
        raise _damage_error(path, e) from e
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise too_large_error(path, image.width, image.height)
    if image.format == "PNG" and not _png_is_complete(path):
        image.close()
        raise MediaError("unreadable", f"{display_path(path)}: the image is truncated")
    return image


def _png_is_complete(path: str) -> bool:
    """Return whether all chunks are present; Pillow silently leaves missing rows blank."""
    with open(path, "rb") as f:
        size = f.seek(0, os.SEEK_END)
        at = 8  # after the PNG signature
        while at + 12 <= size:
            f.seek(at)
            length, kind = struct.unpack(">I4s", f.read(8))
            at += 12 + length
            if kind == b"IEND":
                return at <= size
    return False


def _facts(path: str, image: Image.Image, *, count: bool) -> tuple[MediaFacts, list[float]]:
    """Return the facts and, if counted, the start of each frame in milliseconds."""
    codec = _CODECS.get(image.format or "", (image.format or "unknown").lower())
    try:
        n_claimed = int(getattr(image, "n_frames", 1)) if image.format not in ("MPO", "TIFF", "JPEG") else 1
        rotation_deg = _ROTATIONS.get(image.getexif().get(_ORIENTATION_TAG, 1), 0)
        starts_ms, end_ms = _frame_starts(image) if n_claimed > 1 and count else ([0.0], 0.0)
    except _DECODE_ERRORS as e:
        raise _damage_error(path, e) from e
    width, height = (image.height, image.width) if rotation_deg in (90, 270) else image.size
    n_counted = len(starts_ms) if count else None
    if n_claimed == 1 or n_counted == 1:
        return MediaFacts(
            kind="image",
            codec=codec,
            width=width,
            height=height,
            duration_s=None,
            fps=None,
            rotation_deg=rotation_deg,
            n_frames_from_header=1,
            n_frames_from_content=n_counted,
        ), [0.0]
    rate = (len(starts_ms) - 1) * 1000 / starts_ms[-1] if count else None
    facts = MediaFacts(
        kind="video",
        codec="apng" if codec == "png" else codec,
        width=width,
        height=height,
        duration_s=end_ms / 1000 if count else None,
        fps=rate,
        rotation_deg=rotation_deg,
        n_frames_from_header=n_claimed,
        n_frames_from_content=n_counted,
    )
    return facts, starts_ms


def _frame_starts(image: Image.Image) -> tuple[list[float], float]:
    """Return the start of every frame and the end of the last, in milliseconds. A damaged frame ends the animation."""
    starts, now = [], 0.0
    try:
        for frame in ImageSequence.Iterator(image):
            beat()
            frame.load()  # WebP has the delay of a frame only after decoding it
            delay = float(frame.info.get("duration") or 0.0)
            starts.append(now)
            now += delay if delay > _MIN_DELAY_MS else _DEFAULT_DELAY_MS
    except _DECODE_ERRORS:
        if not starts:
            raise
    return starts, now


def _to_display_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        gray = np.asarray(image, np.float64)
        top = 65535.0 if image.mode != "F" else max(1.0, float(gray.max()))
        image = Image.fromarray((gray.clip(0, top) * (255 / top)).astype(np.uint8))
    else:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        background = Image.new("RGBA", rgba.size, "white")
        return np.array(Image.alpha_composite(background, rgba).convert("RGB"))
    return np.array(image.convert("RGB"))


def _damage_error(path: str, error: BaseException) -> MediaError:
    if isinstance(error, MemoryError):
        return MediaError("out_of_memory", f"{display_path(path)}: not enough memory for the image")
    return MediaError("unreadable", f"{display_path(path)}: the image is damaged: {error}")
