"""The three preprocessing modes against outputs of the original implementations (tests/golden/preprocess.*)."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from vidqa.encoders.preprocess import PreprocessSpec, prepare
from vidqa.records import FrameBatch

GOLDEN = Path(__file__).parents[1] / "golden"
META = json.loads((GOLDEN / "preprocess.json").read_text())
TENSORS = load_file(GOLDEN / "preprocess.safetensors")

#: Name of the reference transform -> kind of the frame and the spec that reproduces it.
TRANSFORMS = {
    "orig_video": ("video", {"mode": "original"}),
    "orig_image_noaa": ("image", {"mode": "original"}),
    "orig_image_pad_noaa": ("image", {"mode": "original", "pad": True}),
    "hf_image": ("image", {"mode": "hf"}),
    "video_chatgpt": ("video", {"mode": "video_chatgpt"}),
}
FRAMES = [f["index"] for f in META["frames"]]
CASES = [(name, i) for name in TRANSFORMS for i in FRAMES]


def frame(index: int) -> np.ndarray:
    if (key := f"in/frame{index}") in TENSORS:
        return TENSORS[key]
    return np.asarray(Image.open(io.BytesIO(TENSORS[f"in/frame{index}_png"].tobytes())).convert("RGB"))


def run(name: str, index: int) -> np.ndarray:
    kind, settings = TRANSFORMS[name]
    size = int(TENSORS[f"out/{name}/frame{index}_s4"].shape[-1]) * 4
    spec = PreprocessSpec(image_size=size, **settings)
    batch = FrameBatch(frame(index)[None], np.zeros(1), np.zeros(1, bool), kind)
    out = prepare(batch, image=spec, video=spec)
    assert out.kind == kind
    return out.values[0]


def test_the_golden_file_has_frames() -> None:
    assert len(FRAMES) >= 5
    assert {f"{n}/frame{i}" for n, i in CASES} <= set(META["stats"])


@pytest.mark.parametrize(("name", "index"), CASES)
def test_pixels_equal_the_reference(name: str, index: int) -> None:
    got = run(name, index)
    prefix = f"out/{name}/frame{index}"
    pairs = [(got[:, ::4, ::4], TENSORS[f"{prefix}_s4"])]
    if (rows := TENSORS.get(f"{prefix}_rows104_120")) is not None:
        pairs.append((got[:, 104:120], rows))
    for ours, theirs in pairs:
        error = np.abs(ours - theirs.astype(np.float32))
        if name == "video_chatgpt":  # exact up to the float16 of the stored values
            assert (np.abs(ours.astype(np.float16).astype(np.float32) - theirs.astype(np.float32)) <= 1e-3).all()
        assert error.max() <= 2e-3, f"worst {error.max():.2e}"


@pytest.mark.parametrize(("name", "index"), CASES)
def test_statistics_of_the_whole_output_equal_the_reference(name: str, index: int) -> None:
    got, stats = run(name, index).astype(np.float64), META["stats"][f"{name}/frame{index}"]
    np.testing.assert_allclose(got.mean((1, 2)), stats["mean"], atol=1e-6)
    np.testing.assert_allclose(got.std((1, 2)), stats["std"], atol=1e-6)
    np.testing.assert_allclose([got.min(), got.max()], [stats["min"], stats["max"]], atol=2e-6)


def test_the_modes_differ() -> None:
    """The golden comparison can only fail for a wrong mode if the modes give different pixels."""
    outputs = [run(name, 0) for name in TRANSFORMS]
    for i, a in enumerate(outputs):
        assert all(np.abs(a - b).max() > 0.1 for b in outputs[i + 1 :])
