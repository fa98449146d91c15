"""Compares the pixels of single frames after the preprocessing of the published models."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from golden_checks.fixture import Fixture
from golden_checks.report import Report
from vidqa.encoders.preprocess import PreprocessSpec, preprocess
from vidqa.records import FrameBatch, MediaKind

#: Name of the reference transform -> (media kind, spec that reproduces it, error of float16 storage).
TRANSFORMS: dict[str, tuple[MediaKind, dict[str, Any], float]] = {
    "orig_video": ("video", {"mode": "original"}, 2e-3),
    "orig_image_noaa": ("image", {"mode": "original"}, 2e-3),
    "orig_image_pad_noaa": ("image", {"mode": "original", "pad": True}, 2e-3),
    "hf_image": ("image", {"mode": "hf"}, 2e-3),
    "video_chatgpt": ("video", {"mode": "video_chatgpt"}, 1e-3),
    "valley_video": ("video", {"mode": "valley"}, 2e-3),
}
#: Transforms without a counterpart in vidqa -> reason.
UNSUPPORTED = {"orig_image_aa": "no published model uses the antialiasing of newer torchvision"}


def frame_of(fixture: Fixture, index: int) -> np.ndarray:
    """Return a stored input frame: uint8 [H, W, 3]."""
    if (raw := fixture.tensors.get(f"in/frame{index}")) is not None:
        return raw.numpy()
    png = fixture.tensors[f"in/frame{index}_png"].numpy().tobytes()
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def run(fixture: Fixture, name: str, index: int, size: int) -> np.ndarray:
    """Preprocess a frame with vidqa: float32 [3, S, S]."""
    kind, settings, _ = TRANSFORMS[name]
    spec = PreprocessSpec(image_size=size, **settings)
    batch = FrameBatch(frame_of(fixture, index)[None], np.zeros(1), np.zeros(1, bool), kind)
    return preprocess(batch, image=spec, video=spec).values[0]


def check(fixture: Fixture) -> Report:
    """Compare the stored pixels, and the statistics of the full images."""
    report = fixture.report()
    for key, stats in fixture.meta["stats"].items():
        name, _, frame = key.partition("/frame")
        stored = [k for k in fixture.outputs() if re.match(rf"{name}/frame{frame}_(s|rows)\d", k)]
        if name not in TRANSFORMS:
            for k in stored:
                fixture.expected(k)
            note = f"{name} is not compared: {UNSUPPORTED.get(name, 'vidqa has no such transform')}"
            report.notes += [note] if note not in report.notes else []
            continue
        strided = next(k for k in stored if re.search(r"_s\d+$", k))
        step = int(strided.rsplit("_s", 1)[1])
        got = run(fixture, name, int(frame), fixture.tensors[f"out/{strided}"].shape[-1] * step)
        for k in stored:
            _compare(report, k, got, fixture.expected(k), TRANSFORMS[name][2])
        exact = got.astype(np.float64)
        report.close(f"{key} mean", exact.mean((1, 2)), stats["mean"], 1e-6, 0)
        report.close(f"{key} std", exact.std((1, 2)), stats["std"], 1e-6, 0)
        report.close(f"{key} range", [exact.min(), exact.max()], [stats["min"], stats["max"]], 2e-6, 0)
    return fixture.close(report)


def _compare(report: Report, key: str, got: np.ndarray, expected: Tensor, atol: float) -> None:
    if m := re.search(r"_rows(\d+)_(\d+)$", key):
        part = got[:, int(m[1]) : int(m[2])]
    else:
        step = int(key.rsplit("_s", 1)[1])
        part = got[:, ::step, ::step]
    report.close(key, part.astype(np.float32), expected.float().numpy(), atol, 0)
