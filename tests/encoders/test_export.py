"""Exported graphs compared with their towers. The text tower is in tests/parity, because an export takes seconds."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from vidqa.errors import VidqaError
from vidqa.model.onnx import export as module
from vidqa.model.onnx.export import FP16_TOLERANCE, FP32_TOLERANCE, export_tower
from vidqa.model.onnx.export_modules import VisionGraph

pytestmark = pytest.mark.slow


def run(path: Path, pixels: torch.Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["tokens", "embedding"], {"pixel_values": pixels.numpy()})


def pixels_of(exported, batch: int, n_frames: int) -> torch.Tensor:
    size = exported.tower.config.image_size
    return torch.randn(batch, n_frames, 3, size, size, generator=torch.Generator().manual_seed(99))


@pytest.mark.parametrize("batch", [1, 2, 5, 7])
def test_fused_video_graph_equals_torch_at_any_batch(video, batch: int) -> None:
    pixels = pixels_of(video, batch, 4)
    with torch.no_grad():
        expected = video.tower(pixels)
    for ours, theirs in zip(run(video.path, pixels), expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4, rtol=0)
    assert video.report.max_abs_error <= FP32_TOLERANCE


def test_unfused_image_graph_equals_torch(image) -> None:
    pixels = pixels_of(image, 3, 1)
    with torch.no_grad():
        expected = image.tower(pixels)
    for ours, theirs in zip(run(image.path, pixels), expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4, rtol=0)
    assert not image.report.fused


def test_every_attention_and_every_inner_norm_is_fused(video) -> None:
    ops, n_layers = video.report.operators, video.tower.config.n_layers
    assert video.report.fused
    # Spatial attention of all blocks except the last is Attention; temporal attention, and the class token of the last
    # block, are MultiHeadAttention.
    assert ops["Attention"] == n_layers - 1
    assert ops["MultiHeadAttention"] == n_layers + 1
    assert ops["SkipLayerNormalization"] == 2 * n_layers
    assert ops["BiasGelu"] == n_layers
    assert "Softmax" not in ops and "Erf" not in ops and "Shape" not in ops


def test_names_and_shapes_of_the_graph(video) -> None:
    graph = onnx.load(str(video.path)).graph
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in [*graph.input, *graph.output]
    }
    c = video.tower.config
    assert shapes["pixel_values"][1:] == [4, 3, c.image_size, c.image_size]
    assert shapes["tokens"][1:] == [4, c.n_patches + 1, c.hidden_size]
    assert shapes["embedding"][1:] == [c.projection_dim]
    assert all(isinstance(shape[0], str) for shape in shapes.values())


def test_files_contain_no_local_paths(video, image) -> None:
    """The exporter writes stack traces into every node; they must be removed."""
    home = str(Path(module.__file__).resolve().parents[2]).encode()
    for path in (video.path, image.path):
        content = path.read_bytes()
        assert home not in content
        assert b"site-packages" not in content


def test_large_weights_are_external_data(image) -> None:
    assert image.report.external_data == "image.onnx.data"
    assert sorted(p.name for p in image.path.parent.iterdir()) == ["image.onnx", "image.onnx.data"]
    assert image.path.with_name("image.onnx.data").stat().st_size > image.path.stat().st_size
    assert image.path.with_name("image.onnx.data").stat().st_mode == image.path.stat().st_mode


def test_fusing_does_not_load_the_weights(video, tmp_path: Path, monkeypatch) -> None:
    """A full-size tower would be in memory several times; its matrices stay in the external file during the fusion."""
    fuse, seen = module.fuse_graph, []

    def without(path: Path, *shape: int) -> None:
        data = path.with_name(f"{path.name}.data")
        seen.extend((path.stat().st_size, data.stat().st_size))
        data.rename(tmp_path / "away")
        fuse(path, *shape)
        (tmp_path / "away").rename(data)

    monkeypatch.setattr(module, "fuse_graph", without)
    report = export_tower(video.tower, tmp_path / "x.onnx", 4, external_above=1000)
    assert report.operators == video.report.operators and report.external_data == "x.onnx.data"
    assert seen[0] < seen[1] and not (tmp_path / "away").exists()
    pixels = pixels_of(video, 3, 4)
    for ours, theirs in zip(run(report.path, pixels), run(video.path, pixels), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)


def test_fp16(video, tmp_path: Path) -> None:
    report = export_tower(video.tower, tmp_path / "half.onnx", 4, fp16=True)
    assert report.max_rel_error <= FP16_TOLERANCE
    assert report.fused
    pixels = pixels_of(video, 2, 4)
    tokens, embedding = run(report.path, pixels)
    assert (tokens.dtype, embedding.dtype) == (np.float16, np.float32)
    with torch.no_grad():
        expected = video.tower(pixels)
    np.testing.assert_allclose(tokens, expected[0].numpy(), atol=0.02 * float(expected[0].abs().max()))
    assert report.path.stat().st_size < 0.7 * video.path.stat().st_size
    assert next(video.tower.parameters()).dtype == torch.float32  # the tower itself is unchanged


@pytest.mark.parametrize("layer", [0, 1, -2, -1])
@torch.no_grad()
def test_every_layer_can_be_selected(video, layer: int) -> None:
    pixels = pixels_of(video, 2, 4)
    for ours, theirs in zip(VisionGraph(video.tower, 4, layer)(pixels), video.tower(pixels, layer), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@torch.no_grad()
def test_longer_videos_are_split_into_groups(video) -> None:
    pixels = pixels_of(video, 2, 8)
    for ours, theirs in zip(VisionGraph(video.tower, 8, -2)(pixels), video.tower(pixels), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("n_frames", "layer"), [(6, -2), (0, -2), (4, 4), (4, -5)])
def test_invalid_frames_and_layers_are_rejected(video, tmp_path: Path, n_frames: int, layer: int) -> None:
    with pytest.raises(ValueError, match=r"frames cannot be split|is not one of"):
        export_tower(video.tower, tmp_path / "x.onnx", n_frames, layer)
    assert not list(tmp_path.iterdir())


def test_an_inaccurate_fused_graph_is_replaced_by_the_unfused_one(image, tmp_path: Path, monkeypatch) -> None:
    calls = []

    def compare(path: Path, check: object) -> tuple[float, float]:
        calls.append(path)
        return (1.0, 1.0) if len(calls) == 1 else (0.0, 0.0)

    monkeypatch.setattr(module, "_compare", compare)
    monkeypatch.setattr(module, "write_graph", lambda graph, path, *_: onnx.save(onnx.load(str(image.path)), str(path)))
    monkeypatch.setattr(module, "fuse_graph", lambda *_: None)
    assert not export_tower(image.tower, tmp_path / "x.onnx", 1).fused
    assert len(calls) == 2
    monkeypatch.setattr(module, "_compare", lambda *_: (1.0, 1.0))
    (tmp_path / "x.onnx").write_bytes(b"previous")
    with pytest.raises(VidqaError, match="differs from torch by 1"):
        export_tower(image.tower, tmp_path / "x.onnx", 1)
    assert (tmp_path / "x.onnx").read_bytes() == b"previous"
    assert [p.name for p in tmp_path.iterdir()] == ["x.onnx"]


def test_missing_export_packages_are_named(video, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(VidqaError, match="requires the package onnx, which is not installed") as caught:
        export_tower(video.tower, tmp_path / "x.onnx", 4)
    assert "pip install -e '.[export]'" in str(caught.value)
