"""FrameBatch -> EncoderInput: resize, crop and normalize exactly as the published models do.

Runs in the decoder processes, so it uses only numpy and Pillow, and one thread. In mode `original`, pixels outside the
crop are not computed. The result is deterministic (no random flip).

Axes: T frames, H rows, W columns, S side of the encoder's input in pixels, K filter taps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vidqa.records import EncoderInput, FrameBatch

#: Increment when a change in this module changes any output; part of the cache key.
PREPROCESSING_REVISION = 1

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# LLaVA pads with CLIP's mean color, truncated to integers.
_PAD_RGB = (122, 116, 104)
# Coefficient of PyTorch's bicubic kernel. Pillow's is -0.5, so `hf` uses Pillow.
_CUBIC_A = -0.75

_Taps = tuple[np.ndarray, np.ndarray]  # source index int64 [S, K] and weight float32 [S, K]


@dataclass(frozen=True)
class PreprocessSpec:
    """Preprocessing settings of one encoder. All of them affect the features and are part of the cache key.

    Attributes:
        mode: the published preprocessing to reproduce.
            `original`: LanguageBind and Video-LLaVA. Videos bilinear, images bicubic, both in float without
            antialiasing; short side to `image_size`, then center crop. Bicubic overshoot is not clipped.
            `hf`: the transformers port. Pillow bicubic (antialiased, rounded to 8 bits), then center crop.
            `video_chatgpt`: nearest neighbor to a square, ignoring the aspect ratio.
            `valley`: Valley's videos. Pillow bilinear (antialiased, rounded to 8 bits), short side to 8/7 of
            `image_size` (256 for 224), then center crop. Its images use `hf`.
        image_size: side of the encoder's input in pixels.
        mean: subtracted from the RGB channels, which are in 0..1.
        std: the channels are divided by it.
        pad: pad frames to a square first, so that nothing is cropped.
    """

    mode: Literal["original", "hf", "video_chatgpt", "valley"] = "original"
    image_size: int = 224
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    pad: bool = False

    def __post_init__(self) -> None:
        if self.mode not in ("original", "hf", "video_chatgpt", "valley"):
            raise ValueError(f"mode must be original, hf, video_chatgpt or valley, got {self.mode!r}")
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {self.image_size}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std):
            raise ValueError(f"mean and std need three values each and std > 0, got {self.mean=} {self.std=}")
        if self.pad and self.mode == "video_chatgpt":
            raise ValueError("pad cannot be combined with video_chatgpt, which does not crop")


def preprocess(frames: FrameBatch, image: PreprocessSpec, video: PreprocessSpec) -> EncoderInput:
    """Convert decoded frames to the input of the encoder.

    Args:
        frames: uint8 RGB [T, H, W, 3].
        image: settings for images (`frames.kind`).
        video: settings for videos.

    Returns:
        float32 [T, 3, S, S], with `pts_s` and `repeated` of the frames.
    """
    spec = image if frames.kind == "image" else video
    pixels = _pad_to_square(frames.pixels) if spec.pad else frames.pixels
    if spec.mode == "valley":
        values = _resize_valley(pixels, spec.image_size)
    elif pixels.shape[1:3] == (spec.image_size, spec.image_size):
        values = _planar(pixels)
    elif spec.mode == "original":
        values = _resize_original(pixels, spec.image_size, cubic=frames.kind == "image")
    elif spec.mode == "hf":
        values = _resize_hf(pixels, spec.image_size)
    else:
        values = _resize_nearest(pixels, spec.image_size)
    return EncoderInput(_normalize(values, spec), frames.pts_s, frames.repeated, frames.kind)


def resized_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Return (rows, columns) after scaling the short side to `short_side`; the long side is rounded down.

    Multiplies before dividing, like torchvision and transformers. pytorchvideo divides first, which rounds differently
    for some sizes (98 x 427 to 224: 975 instead of 976 columns), so videos use `_resized_size_video`.
    """
    if height <= width:
        return short_side, int(short_side * width / height)
    return int(short_side * height / width), short_side


def _resized_size_video(height: int, width: int, short_side: int) -> tuple[int, int]:
    if width < height:
        return math.floor(height / width * short_side), short_side
    return short_side, math.floor(width / height * short_side)


def _resize_original(pixels: np.ndarray, size: int, *, cubic: bool) -> np.ndarray:
    """uint8 [T, H, W, 3] -> float32 [T, 3, S, S] in 0..255, cropped."""
    height, width = pixels.shape[1:3]
    rows, cols = (resized_size if cubic else _resized_size_video)(height, width, size)
    taps = _cubic_taps if cubic else _linear_taps
    # Python rounds half to even, like torchvision's center crop.
    row_taps = taps(height, rows, round((rows - size) / 2), size)
    col_taps = taps(width, cols, round((cols - size) / 2), size)
    out = np.empty((len(pixels), 3, size, size), np.float32)
    for t, frame in enumerate(pixels):
        _resample(frame, row_taps, col_taps, out[t])
    return out


def _resize_hf(pixels: np.ndarray, size: int) -> np.ndarray:
    """uint8 [T, H, W, 3] -> float32 [T, 3, S, S], integers in 0..255, cropped."""
    height, width = pixels.shape[1:3]
    rows, cols = resized_size(height, width, size)
    return _resize_with_pillow(pixels, (rows, cols), ((rows - size) // 2, (cols - size) // 2), size, cubic=True)


def _resize_valley(pixels: np.ndarray, size: int) -> np.ndarray:
    """uint8 [T, H, W, 3] -> float32 [T, 3, S, S], integers in 0..255, cropped."""
    height, width = pixels.shape[1:3]
    rows, cols = resized_size(height, width, round(size * 8 / 7))
    corner = round((rows - size) / 2), round((cols - size) / 2)  # half to even
    return _resize_with_pillow(pixels, (rows, cols), corner, size, cubic=False)


def _resize_with_pillow(
    pixels: np.ndarray, shape: tuple[int, int], corner: tuple[int, int], size: int, *, cubic: bool
) -> np.ndarray:
    """uint8 [T, H, W, 3] -> resized to `shape`; returns the S x S crop at `corner` as float32 [T, 3, S, S].

    Columns are resized first, then rows, as Pillow did before version 13 and torchvision does. Pillow 13 starts with
    the cheaper axis, which changes the intermediate rounding to 8 bits.
    """
    from PIL import Image

    (rows, cols), (top, left) = shape, corner
    out = np.empty((len(pixels), size, size, 3), np.uint8)
    method = Image.Resampling.BICUBIC if cubic else Image.Resampling.BILINEAR
    for t, frame in enumerate(pixels):
        narrow = Image.fromarray(frame).resize((cols, len(frame)), method)
        out[t] = np.asarray(narrow.resize((cols, rows), method))[top : top + size, left : left + size]
    return _planar(out)


def _resize_nearest(pixels: np.ndarray, size: int) -> np.ndarray:
    """uint8 [T, H, W, 3] -> float32 [T, 3, S, S] like PyTorch's `nearest`: indices are rounded down in float32."""
    height, width = pixels.shape[1:3]
    rows, cols = (
        np.minimum((np.arange(size, dtype=np.float32) * (np.float32(n) / np.float32(size))).astype(np.int64), n - 1)
        for n in (height, width)
    )
    return _planar(pixels[:, rows][:, :, cols])


def _linear_taps(n_in: int, n_out: int, offset: int, size: int) -> _Taps:
    """Return two taps for each output from offset to offset + size - 1 of n_out; positions below 0 become 0."""
    source = np.maximum(_sources(n_in, n_out, offset, size), np.float32(0))
    low = np.minimum(source.astype(np.int64), n_in - 1)
    weight = np.clip(source - low.astype(np.float32), 0, 1).astype(np.float32)
    return np.stack([low, np.minimum(low + 1, n_in - 1)], 1), np.stack([1 - weight, weight], 1)


def _cubic_taps(n_in: int, n_out: int, offset: int, size: int) -> _Taps:
    """Return four taps for each output; indices beyond the border are clamped."""
    source = _sources(n_in, n_out, offset, size)
    low = np.floor(source)
    t = source - low
    a = np.float32(_CUBIC_A)

    def near(x: np.ndarray) -> np.ndarray:  # |x| <= 1
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: np.ndarray) -> np.ndarray:  # 1 < |x| < 2
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    weights = np.stack([far(t + 1), near(t), near(1 - t), far(2 - t)], 1).astype(np.float32)
    index = low.astype(np.int64)[:, None] + np.arange(-1, 3)
    return np.clip(index, 0, n_in - 1), weights


def _sources(n_in: int, n_out: int, offset: int, size: int) -> np.ndarray:
    """float32 [size]: positions of the outputs in the input, pixel centers at half integers, rounded like PyTorch."""
    scale = np.float32(n_in) / np.float32(n_out)
    return scale * (np.arange(offset, offset + size, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)


def _resample(frame: np.ndarray, row_taps: _Taps, col_taps: _Taps, out: np.ndarray) -> None:
    """uint8 [H, W, 3] -> out float32 [3, S, S]: weighted sums over row taps, then over column taps.

    Only the source rows and columns that a tap needs are converted to float32.
    """
    (row_index, row_weight), (col_index, col_weight) = row_taps, col_taps
    used_rows, row_index = np.unique(row_index, return_inverse=True)
    used_cols, col_index = np.unique(col_index, return_inverse=True)
    row_index, col_index = row_index.reshape(row_weight.shape), col_index.reshape(col_weight.shape)
    used = frame.take(used_rows, axis=0).take(used_cols, axis=1)
    planes = np.ascontiguousarray(used.transpose(2, 0, 1)).astype(np.float32)
    rows = _weighted(planes, row_index, row_weight, axis=1)
    out[:] = _weighted(rows, col_index, col_weight, axis=2)


def _weighted(x: np.ndarray, index: np.ndarray, weight: np.ndarray, axis: int) -> np.ndarray:
    """float32 [3, A, B]: sum over taps k of weight[:, k] * x.take(index[:, k], axis), in a fixed order."""
    shape = (1, -1, 1) if axis == 1 else (1, 1, -1)
    total = x.take(index[:, 0], axis=axis)
    total *= weight[:, 0].reshape(shape)
    for k in range(1, index.shape[1]):
        part = x.take(index[:, k], axis=axis)
        part *= weight[:, k].reshape(shape)
        total += part
    return total


def _pad_to_square(pixels: np.ndarray) -> np.ndarray:
    """uint8 [T, H, W, 3] -> [T, M, M, 3] with M = max(H, W), centered; an odd pixel goes below or to the right."""
    n, height, width = pixels.shape[:3]
    side = max(height, width)
    if height == width:
        return pixels
    canvas = np.empty((n, side, side, 3), np.uint8)
    canvas[:] = np.array(_PAD_RGB, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    canvas[:, top : top + height, left : left + width] = pixels
    return canvas


def _planar(pixels: np.ndarray) -> np.ndarray:
    """uint8 [T, H, W, 3] -> float32 [T, 3, H, W] in 0..255."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32)


def _normalize(values: np.ndarray, spec: PreprocessSpec) -> np.ndarray:
    """Compute (x / 255 - mean) / std in place. Equivalent to normalizing before the resize, but faster."""
    values /= np.float32(255)
    values -= np.array(spec.mean, np.float32).reshape(1, 3, 1, 1)
    values /= np.array(spec.std, np.float32).reshape(1, 3, 1, 1)
    return values
