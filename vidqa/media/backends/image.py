"""Images and animations (JPEG, PNG, GIF, WebP, AVIF, TIFF, BMP ...) -> frames, with Pillow.

Pillow is used instead of FFmpeg because it reads animated WebP, handles all eight EXIF orientations, keeps transparency
and reports truncated images. HEIC is read by `PyavReader`, because Pillow cannot.

Of a damaged image, the rows that can be decoded are shown and the rest stays blank; `MediaFacts.notes` describes it.
"""

from __future__ import annotations

import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageSequence, UnidentifiedImageError, features

from vidqa.common.display import display_path
from vidqa.errors import MediaError
from vidqa.media.backends.image_pixels import Geometry, rows_with_content, to_display_rgb, transparent_value
from vidqa.media.container import MAX_PIXELS, too_large_error
from vidqa.media.files import file_error, read_head
from vidqa.media.image_formats import png
from vidqa.media.image_formats.heif import image_notes, read_heif
from vidqa.media.segments import find_pauses
from vidqa.media.sniff import sniff
from vidqa.media.workers.heartbeat import beat
from vidqa.records import MediaFacts

#: Names that FFmpeg uses for the codecs of these formats.
_CODECS = {"JPEG": "mjpeg", "MPO": "mjpeg", "AVIF": "av1"}
#: Formats whose further frames are other images, not an animation.
_NOT_ANIMATED = ("JPEG", "MPO", "TIFF")
#: Delays up to this are taken for encoder errors; browsers and FFmpeg show such frames for a tenth of a second.
_MIN_DELAY_MS, _DEFAULT_DELAY_MS = 10, 100.0
#: Bits of the TIFF tag NewSubfileType: a reduced version of another page, and a transparency mask.
_SUBFILE_TAG, _REDUCED, _MASK = 254, 1, 4
#: MPO tag of the list of images.
_MP_ENTRIES = 0xB002
#: Held while Pillow accepts truncated images, which is a setting of the whole process.
_TOLERANT = threading.Lock()


class ImageReader:
    """Reads frames of one image or animation by index. Same interface as `PyavReader`.

    Args:
        path: path of the file.

    Raises:
        MediaError: nothing can be decoded; `kind` is the reason.
    """

    backend = "pillow"

    def __init__(self, path: str) -> None:
        self.path = path
        self._image = _open(path)
        try:
            self._geometry = _geometry(path, self._image)
            self._rows: np.ndarray | None = None  # int64 [H]: the row to show, if interlacing leaves rows blank
            self.facts, starts_ms = self._read_facts()
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
                pixels = to_display_rgb(self._image, self._geometry)
                pixels = pixels if self._rows is None else pixels[self._rows]
            except _DECODE_ERRORS as e:
                raise _damage_error(self.path, e) from e
            if pixels.shape[:2] != (self.facts.height, self.facts.width):
                raise MediaError("unreadable", f"{display_path(self.path)}: frame {i} differs in size from the first")
            yield pixels

    def _read_facts(self) -> tuple[MediaFacts, list[float]]:
        """Decode the image, or every frame of an animation; return the facts and the start of each frame in ms."""
        header = _facts(self.path, self._image, self._geometry)
        starts_ms, end_ms, note = list[float](), 0.0, None
        if header.kind == "video":
            starts_ms, end_ms, is_complete = _frame_starts(self._image)
            if not is_complete:
                note = f"truncated: {len(starts_ms)} of {header.n_frames_from_header} frames readable"
        if not starts_ms:
            starts_ms, note = [0.0], self._load()
        notes = header.notes if note is None else (*header.notes, note)
        facts = replace(header, n_frames_from_content=len(starts_ms), notes=notes)
        if len(starts_ms) == 1:
            return replace(facts, kind="image", codec=_codec(self._image, n_frames=1)), starts_ms
        rate = (len(starts_ms) - 1) * 1000 / starts_ms[-1]
        pauses = find_pauses(np.asarray(starts_ms) / 1000)
        facts = replace(facts, duration_s=end_ms / 1000, fps=rate, last_frame_s=starts_ms[-1] / 1000, pauses=pauses)
        return facts, starts_ms

    def _load(self) -> str | None:
        """Decode the image. If it is damaged, decode as much as possible, and return a note."""
        error: Exception | None = None
        try:
            self._image.load()
            if self._image.format != "PNG" or (what := png.damage(self.path)) is None:
                return None
        except _DECODE_ERRORS as e:
            error, what = e, "truncated" if "truncated" in str(e).lower() else "damaged"
        self._image.close()
        self._image = _open(self.path)
        is_interlaced_gif = self._image.format == "GIF" and _is_interlaced(self._image)
        with _TOLERANT:
            before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
            try:
                self._image.load()
            except _DECODE_ERRORS as e:
                raise _damage_error(self.path, error or e) from e
            finally:
                ImageFile.LOAD_TRUNCATED_IMAGES = before
        has_content = rows_with_content(self._image)
        # The passes of an interlaced PNG leave gaps in every row.
        if not has_content.any() or self._image.info.get("interlace"):
            raise _damage_error(self.path, error or EOFError(f"{what} image data"))
        if is_interlaced_gif:
            self._rows = np.maximum.accumulate(np.where(has_content, np.arange(len(has_content)), 0))
        if has_content.all():  # for example a progressive JPEG, which loses details only
            return f"{what}: a part of the image data is missing"
        return f"{what}: {max(1, int(100 * has_content.mean()))}% of the rows readable"


def probe_image(path: str) -> MediaFacts:
    """Return the facts of an image file without decoding it or counting the frames of an animation.

    Args:
        path: path of the file.

    Raises:
        MediaError: the header of the image cannot be read.
    """
    with _open(path) as image:
        return _facts(path, image, _geometry(path, image))


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
    RuntimeError,  # AVIF
    struct.error,
    Image.DecompressionBombError,
)


def _open(path: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about large images (`MAX_PIXELS` is checked below) and damaged metadata
            image: Any = Image.open(path)
    except Image.DecompressionBombError as e:  # Pillow's own limit, which is higher
        what = f"{display_path(path)}: the image exceeds the limit of {MAX_PIXELS} pixels"
        raise MediaError("too_large", what) from e
    except UnidentifiedImageError as e:
        if sniff(read_head(path)).container == "avif" and not features.check("avif"):
            raise MediaError("unsupported", f"{display_path(path)}: this build of Pillow cannot read AVIF") from e
        what = f"{display_path(path)}: the image header is damaged or of an unknown format"
        raise MediaError("unreadable", what) from e
    except (FileNotFoundError, PermissionError) as e:
        raise file_error(path, e) from e
    except _DECODE_ERRORS as e:
        raise _damage_error(path, e) from e
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise too_large_error(path, image.width, image.height)
    if image.format == "TIFF":  # Pillow maps files with a name into memory, with the wrong width if they are rotated
        image.filename = ""
    if "transparency" in image.info:
        image.info["transparency"] = transparent_value(image, png.depth(path) if image.format == "PNG" else 8)
    opened: Image.Image = image
    return opened


def _geometry(path: str, image: Image.Image) -> Geometry:
    return Geometry.of(image, read_heif(path).crop if image.format == "AVIF" else None)


def _is_interlaced(gif: Any) -> bool:
    return bool(gif.tile[0].args[1])


def _codec(image: Image.Image, n_frames: int) -> str:
    name = image.format or "unknown"
    return "apng" if name == "PNG" and n_frames > 1 else _CODECS.get(name, name.lower())


def _facts(path: str, image: Image.Image, geometry: Geometry) -> MediaFacts:
    """Return the facts that the header of an image states."""
    try:
        n_frames = 1 if image.format in _NOT_ANIMATED else int(getattr(image, "n_frames", 1))
    except _DECODE_ERRORS as e:
        raise _damage_error(path, e) from e
    width, height = geometry.display_size(image)
    return MediaFacts(
        kind="image" if n_frames == 1 else "video",
        codec=_codec(image, n_frames),
        width=width,
        height=height,
        duration_s=None,
        fps=None,
        rotation_deg=geometry.rotation_deg,
        n_frames_from_header=n_frames,
        notes=_notes(path, image.format) if n_frames == 1 else (),
    )


def _notes(path: str, image_format: str | None) -> tuple[str, ...]:
    """Return a note if a file has further pages, views or images, which are not shown."""
    if image_format == "AVIF":
        return image_notes(path)
    if image_format not in ("TIFF", "MPO"):
        return ()
    with _open(path) as image:  # counting moves from page to page
        n, what = (_count_pages(image), "pages") if image_format == "TIFF" else (_count_views(image), "views")
    return (f"1 of {n} {what}",) if n > 1 else ()


def _count_pages(image: Any) -> int:
    """Count the pages of a TIFF, without reduced versions and masks. A damaged directory ends the count."""
    n = 0
    with suppress(*_DECODE_ERRORS):
        for i in range(image.n_frames):
            image.seek(i)
            n += not image.tag_v2.get(_SUBFILE_TAG, 0) & (_REDUCED | _MASK)
    return n


def _count_views(image: Any) -> int:
    """Count the views of a stereo or panorama JPEG, without previews and gain maps. A damaged image ends the count."""
    if b"hdrgm:Version" in image.info.get("xmp", b""):  # the second image is a gain map
        return 1
    size, n = image.size, 0
    with suppress(*_DECODE_ERRORS):
        for i, entry in enumerate(image.mpinfo[_MP_ENTRIES]):
            image.seek(i)
            is_view = not entry["Attribute"]["MPType"].startswith("Large Thumbnail")
            n += is_view and image.size == size
    return n


def _frame_starts(image: Image.Image) -> tuple[list[float], float, bool]:
    """Return the start of every readable frame and the end of the last, in ms, and whether all frames are readable."""
    starts, now = [], 0.0
    try:
        for frame in ImageSequence.Iterator(image):
            beat()
            frame.load()  # WebP has the delay of a frame only after decoding it
            delay = float(frame.info.get("duration") or 0.0)
            starts.append(now)
            now += delay if delay > _MIN_DELAY_MS else _DEFAULT_DELAY_MS
    except _DECODE_ERRORS:  # a damaged frame ends the animation
        return starts, now, False
    return starts, now, True


def _damage_error(path: str, error: BaseException) -> MediaError:
    if isinstance(error, MemoryError):
        return MediaError("out_of_memory", f"{display_path(path)}: not enough memory for the image")
    return MediaError("unreadable", f"{display_path(path)}: the image is damaged: {error}")
