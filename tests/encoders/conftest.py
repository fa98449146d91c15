"""Tiny towers with random weights, and their ONNX graphs: exported once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vidqa.model.onnx.export import ExportReport, export_tower
from vidqa.model.towers.vit import VisionConfig, VisionTower
from vidqa.records import EncoderInput, MediaKind

SIZE, PATCH, WIDTH, OUT, FRAMES = 24, 8, 32, 12, 4


def randomize(module: nn.Module, seed: int) -> nn.Module:
    """Change every parameter from its initial value, so that a missing one is noticed."""
    rng = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        scale, center = (0.2, 0.0) if parameter.ndim > 1 else (0.3, 0.5)
        parameter.data = torch.randn(parameter.shape, generator=rng) * scale + center
    return module.eval()


def tiny_tower(seed: int, *, temporal: int = 0, **changes: object) -> VisionTower:
    config = VisionConfig(SIZE, PATCH, WIDTH, 64, 2, 4, OUT, temporal_length=temporal, **changes)
    return randomize(VisionTower(config), seed)


@dataclass(frozen=True)
class Exported:
    tower: VisionTower
    path: Path
    report: ExportReport


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A video tower and its fused graph."""
    tower, path = tiny_tower(1, temporal=FRAMES), tmp_path_factory.mktemp("graphs") / "video.onnx"
    return Exported(tower, path, export_tower(tower, path, FRAMES))


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """An image tower with quick_gelu, its unfused graph, and its weights in an external file."""
    tower, path = tiny_tower(2, hidden_act="quick_gelu"), tmp_path_factory.mktemp("graphs") / "image.onnx"
    return Exported(tower, path, export_tower(tower, path, 1, fuse=False, external_above=1000))


@pytest.fixture(scope="session")
def make_input() -> Callable[..., EncoderInput]:
    """Return a function `make_input(kind, seed, n_frames)` that makes noise of the right shape."""

    def make(kind: MediaKind, seed: int, n_frames: int | None = None) -> EncoderInput:
        n = n_frames or (1 if kind == "image" else FRAMES)
        values = np.random.default_rng(seed).standard_normal((n, 3, SIZE, SIZE)).astype(np.float32)
        return EncoderInput(values, np.arange(n, dtype=np.float64), np.zeros(n, bool), kind)

    return make
