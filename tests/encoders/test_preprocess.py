"""Preprocessing compared with torch and Pillow at many sizes; golden data is in tests/parity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from vidqa.encoders import preprocess as preprocess_module
from vidqa.encoders.preprocess import PreprocessSpec, preprocess, resized_size
from vidqa.records import FrameBatch, MediaKind

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
SIDES = st.integers(1, 90)


def frames(t: int, h: int, w: int, kind: MediaKind = "video", seed: int = 0) -> FrameBatch:
    pixels = np.random.default_rng(seed).integers(0, 256, (t, h, w, 3), np.uint8)
    return FrameBatch(pixels, np.arange(t, dtype=np.float64), np.zeros(t, bool), kind)


def run(batch: FrameBatch, **changes: object) -> np.ndarray:
    spec = PreprocessSpec(**PLAIN | changes)
    return preprocess(batch, image=spec, video=spec).values


def planes(batch: FrameBatch) -> torch.Tensor:
    return torch.from_numpy(batch.pixels).permute(0, 3, 1, 2).float() / 255


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.integers(1, 50), st.sampled_from(["image", "video"]))
def test_original_equals_torch_then_crop(h: int, w: int, size: int, kind: MediaKind) -> None:
    batch = frames(2 if kind == "video" else 1, h, w, kind)
    rows, cols = (resized_size if kind == "image" else preprocess_module._resized_size_video)(h, w, size)
    mode = "bicubic" if kind == "image" else "bilinear"
    whole = F.interpolate(planes(batch), size=(rows, cols), mode=mode, align_corners=False)
    top, left = round((rows - size) / 2), round((cols - size) / 2)
    expected = whole[:, :, top : top + size, left : left + size].numpy()
    np.testing.assert_allclose(run(batch, image_size=size), expected, atol=5e-5)


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, st.integers(1, 50))
def test_hf_equals_pillow_then_crop(h: int, w: int, size: int) -> None:
    batch = frames(1, h, w, "image")
    rows, cols = resized_size(h, w, size)
    narrow = Image.fromarray(batch.pixels[0]).resize((cols, h), Image.Resampling.BICUBIC)
    whole = np.asarray(narrow.resize((cols, rows), Image.Resampling.BICUBIC))
    top, left = (rows - size) // 2, (cols - size) // 2
    expected = whole[top : top + size, left : left + size].transpose(2, 0, 1) / 255
    np.testing.assert_allclose(run(batch, mode="hf", image_size=size)[0], expected, atol=1e-6)


#: First three rows of a crop of 7 x 7 pixels, recorded with Pillow 11.3. A single resize of this image with Pillow 13
#: differs by one in some pixels.
RECORDED = {
    "hf": [[182, 131, 95, 150, 176, 136, 98], [96, 111, 105, 84, 92, 75, 205], [181, 75, 100, 112, 133, 147, 153]],
    "valley": [[93, 131, 93, 100, 95, 72, 96], [161, 75, 105, 102, 111, 130, 117], [178, 148, 86, 115, 140, 93, 169]],
}


@pytest.mark.parametrize("mode", RECORDED)
def test_pixels_do_not_depend_on_the_version_of_pillow(mode: str) -> None:
    y, x = np.mgrid[:60, :9]
    pixels = np.repeat(((x * 37 + y * 91 + x * y * 13) % 256).astype(np.uint8)[None, :, :, None], 3, axis=3)
    batch = FrameBatch(pixels, np.zeros(1), np.zeros(1, bool), "image")
    values = run(batch, mode=mode, image_size=7)
    assert np.rint(values[0, 0, :3] * 255).tolist() == RECORDED[mode]


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, st.integers(1, 50))
def test_video_chatgpt_equals_torch_nearest(h: int, w: int, size: int) -> None:
    batch = frames(2, h, w)
    expected = F.interpolate(planes(batch), size=(size, size), mode="nearest").numpy()
    np.testing.assert_allclose(run(batch, mode="video_chatgpt", image_size=size), expected, atol=1e-7)


@pytest.mark.parametrize("mode", ["original", "hf", "video_chatgpt"])
@pytest.mark.parametrize("kind", ["image", "video"])
def test_exact_size_is_not_resized(mode: str, kind: MediaKind, monkeypatch) -> None:
    for name in ("_resize_original", "_resize_hf", "_resize_nearest"):
        monkeypatch.delattr(preprocess_module, name)
    batch = frames(1 if kind == "image" else 3, 32, 32, kind)
    got = run(batch, mode=mode, image_size=32)
    np.testing.assert_array_equal(got, batch.pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255))


def test_normalization() -> None:
    batch = frames(2, 16, 16)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    got = run(batch, image_size=16, mean=mean, std=std)
    for c in range(3):
        np.testing.assert_allclose(got[:, c], (batch.pixels[..., c] / 255 - mean[c]) / std[c], atol=1e-6)


def test_the_spec_of_the_kind_is_used() -> None:
    image, video = PreprocessSpec(image_size=8), PreprocessSpec(image_size=12)
    assert preprocess(frames(1, 20, 30, "image"), image, video).values.shape == (1, 3, 8, 8)
    out = preprocess(frames(4, 20, 30), image, video)
    assert out.values.shape == (4, 3, 12, 12)
    assert out.kind == "video"
    np.testing.assert_array_equal(out.pts_s, np.arange(4.0))


def test_frames_of_a_video_are_processed_independently() -> None:
    batch = frames(5, 40, 70)
    together = run(batch, image_size=16)
    for t in range(5):
        alone = FrameBatch(batch.pixels[t : t + 1], batch.pts_s[:1], batch.repeated[:1], "video")
        np.testing.assert_array_equal(together[t : t + 1], run(alone, image_size=16))


def test_deterministic_and_does_not_modify_its_input() -> None:
    batch = frames(3, 50, 90)
    before = batch.pixels.copy()
    first = run(batch, image_size=24)
    np.testing.assert_array_equal(first, run(batch, image_size=24))
    np.testing.assert_array_equal(batch.pixels, before)
    same_size = frames(1, 24, 24)
    run(same_size, image_size=24)[:] = 0
    assert same_size.pixels.any()


def test_non_contiguous_and_read_only_frames() -> None:
    wide = frames(2, 30, 60)
    view = wide.pixels[:, ::-1, ::2]
    view.flags.writeable = False
    got = run(FrameBatch(view, wide.pts_s, wide.repeated, "video"), image_size=10)
    copy = FrameBatch(np.ascontiguousarray(view), wide.pts_s, wide.repeated, "video")
    np.testing.assert_array_equal(got, run(copy, image_size=10))


def test_pad_crops_nothing() -> None:
    white = FrameBatch(np.full((1, 10, 31, 3), 255, np.uint8), np.zeros(1), np.zeros(1, bool), "image")
    got = run(white, image_size=31, pad=True)[0] * 255
    top = (31 - 10) // 2
    np.testing.assert_allclose(got[:, top : top + 10], 255)
    for c, gray in enumerate((122, 116, 104)):
        np.testing.assert_allclose(got[c, :top], gray, atol=1e-4)
        np.testing.assert_allclose(got[c, top + 10 :], gray, atol=1e-4)


def test_bicubic_overshoot_is_kept() -> None:
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    pixels[:, :, 4:] = 255
    values = run(FrameBatch(pixels, np.zeros(1), np.zeros(1, bool), "image"), image_size=32)
    assert values.min() < -0.01
    assert values.max() > 1.01


@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 500), (500, 1), (2, 3)])
@pytest.mark.parametrize("mode", ["original", "hf", "video_chatgpt"])
def test_extreme_shapes(h: int, w: int, mode: str) -> None:
    values = run(frames(1, h, w, "image"), mode=mode, image_size=14)
    assert values.shape == (1, 3, 14, 14)
    assert np.isfinite(values).all()


def test_the_size_of_the_long_side_follows_each_reference() -> None:
    assert resized_size(98, 427, 224) == (224, 976)
    assert preprocess_module._resized_size_video(98, 427, 224) == (224, 975)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "other"},
        {"image_size": 0},
        {"std": (1.0, 0.0, 1.0)},
        {"mean": (1.0, 1.0)},
        {"mode": "video_chatgpt", "pad": True},
    ],
)
def test_invalid_settings(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"must be|need|cannot be combined"):
        PreprocessSpec(**wrong)
