"""Still and animated pictures (JPEG, PNG, GIF, WebP, TIFF, BMP ...) -> frames, by Pillow. Does not choose which frames.

Pillow and not FFmpeg, because it plays animated WebP, knows all eight EXIF orientations, and calls a truncated picture
truncated. Transparent parts are shown on white, as on a page. Grey pictures of 16 bits keep their upper 8.
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
from vidqa.records import MediaFacts

_CODECS = {"JPEG": "mjpeg", "MPO": "mjpeg"}
#: Shorter delays are a mistake of the encoder; browsers and FFmpeg show such frames for a tenth of a second.
_SHORTEST_DELAY_MS, _DEFAULT_DELAY_MS = 10, 100.0
_ORIENTATION_TAG = 0x0112
#: EXIF orientation -> clockwise turn in degrees (2, 4, 5, 7 are mirrored as well).
_TURNS = {3: 180, 4: 180, 5: 270, 6: 90, 7: 90, 8: 270}


class ImageReader:
    """Frames of one picture file, by index. The arguments and errors of `PyavReader`."""

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
        """Yield frames in the order of `indices`, each a fresh uint8 RGB array [H, W, 3].

        Raises:
            MediaError: the picture is damaged.
        """
        for i in indices:
            try:
                if i < self._image.tell():  # back to the start by opening anew: rewinding APNG loses its place
                    self._image.close()
                    self._image = _open(self.path)
                self._image.seek(int(i))
                pixels = _to_display_rgb(self._image)
            except _DAMAGE as e:
                raise _damaged(self.path, e) from e
            if pixels.shape[:2] != (self.facts.height, self.facts.width):
                raise MediaError("unreadable", f"{display_path(self.path)}: frame {i} has another size than the first")
            yield pixels


def probe_image(path: str) -> MediaFacts:
    """Facts of a picture file; frames of an animation are not counted.

    Raises:
        MediaError: the file gives no picture.
    """
    with _open(path) as image:
        return _facts(path, image, count=False)[0]


#: What Pillow raises for damaged pictures, besides its own kinds.
_DAMAGE = (
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
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is checked here
            image = Image.open(path)
    except Image.DecompressionBombError as e:
        raise MediaError("too_large", f"{display_path(path)}: {e}") from e
    except UnidentifiedImageError as e:
        raise MediaError(
            "unreadable", f"{display_path(path)}: the picture's header is damaged or of an unknown kind"
        ) from e
    except (FileNotFoundError, PermissionError) as e:
        raise file_error(path, e) from e
    except _DAMAGE as e:
        raise _damaged(path, e) from e
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise too_large_error(path, image.width, image.height)
    if image.format == "PNG" and not _png_is_whole(path):
        image.close()
        raise MediaError("unreadable", f"{display_path(path)}: the picture is truncated")
    return image


def _png_is_whole(path: str) -> bool:
    """Whether every chunk up to the last one is there: Pillow shows what is missing as blank without a word."""
    with open(path, "rb") as f:
        size = f.seek(0, os.SEEK_END)
        at = 8  # after the signature
        while at + 12 <= size:
            f.seek(at)
            length, kind = struct.unpack(">I4s", f.read(8))
            at += 12 + length
            if kind == b"IEND":
                return at <= size
    return False


def _facts(path: str, image: Image.Image, *, count: bool) -> tuple[MediaFacts, list[float]]:
    """Facts and, where counted, the start of each frame in milliseconds."""
    codec = _CODECS.get(image.format or "", (image.format or "unknown").lower())
    try:
        n_claimed = int(getattr(image, "n_frames", 1)) if image.format not in ("MPO", "TIFF", "JPEG") else 1
        turn = _TURNS.get(image.getexif().get(_ORIENTATION_TAG, 1), 0)
        starts_ms, end_ms = _clock(image) if n_claimed > 1 and count else ([0.0], 0.0)
    except _DAMAGE as e:
        raise _damaged(path, e) from e
    width, height = (image.height, image.width) if turn in (90, 270) else image.size
    n_counted = len(starts_ms) if count else None
    if n_claimed == 1 or n_counted == 1:
        return MediaFacts(
            kind="image",
            codec=codec,
            width=width,
            height=height,
            duration_s=None,
            fps=None,
            rotation_deg=turn,
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
        rotation_deg=turn,
        n_frames_from_header=n_claimed,
        n_frames_from_content=n_counted,
    )
    return facts, starts_ms


def _clock(image: Image.Image) -> tuple[list[float], float]:
    """Start of every frame and end of the last, in milliseconds. A broken tail ends the animation."""
    starts, now = [], 0.0
    try:
        for frame in ImageSequence.Iterator(image):
            frame.load()  # WebP tells the delay of a frame only after decoding it
            delay = float(frame.info.get("duration") or 0.0)
            starts.append(now)
            now += delay if delay > _SHORTEST_DELAY_MS else _DEFAULT_DELAY_MS
    except _DAMAGE:
        if not starts:
            raise
    return starts, now


def _to_display_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        grey = np.asarray(image, np.float64)
        top = 65535.0 if image.mode != "F" else max(1.0, float(grey.max()))
        image = Image.fromarray((grey.clip(0, top) * (255 / top)).astype(np.uint8))
    else:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        page = Image.new("RGBA", layer.size, "white")
        return np.array(Image.alpha_composite(page, layer).convert("RGB"))
    return np.array(image.convert("RGB"))


def _damaged(path: str, error: BaseException) -> MediaError:
    if isinstance(error, MemoryError):
        return MediaError("out_of_memory", f"{display_path(path)}: not enough memory for the picture")
    return MediaError("unreadable", f"{display_path(path)}: the picture is damaged: {error}")
