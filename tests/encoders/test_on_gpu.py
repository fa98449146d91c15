"""Encoders on a CUDA device compute the same features as on the CPU.

Skipped without a device, unless VIDQA_REQUIRE_GPU=1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vidqa.common.devices import available_devices
from vidqa.encoders.encoder import Encoder
from vidqa.encoders.onnx_session import OnnxSession
from vidqa.model.onnx.export import export_tower

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        "not any(d.name == 'cuda:0' and d.usable for d in __import__('vidqa.common.devices', fromlist=['x'])"
        ".available_devices()) and __import__('os').environ.get('VIDQA_REQUIRE_GPU') != '1'"
    ),
]


def test_the_device_is_listed() -> None:
    assert any(d.name == "cuda:0" and d.usable for d in available_devices())


def test_same_features_as_on_the_cpu(video, image, make_input) -> None:
    inputs = [make_input("video", 1), make_input("image", 2), make_input("video", 3)]
    expected = Encoder(image.path, video.path, "cpu").encode(inputs)
    for batch_size in (1, 8):
        got = Encoder(image.path, video.path, "cuda", batch_size=batch_size).encode(inputs)
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a.embedding, b.embedding, atol=1e-4)
            np.testing.assert_allclose(a.tokens.astype(np.float32), b.tokens.astype(np.float32), atol=4e-3)


def test_results_stay_on_the_device(video, make_input) -> None:
    session = OnnxSession(video.path, "cuda")
    values = make_input("video", 1).values[None]
    tokens, embedding = session.run_on_device(values)
    assert tokens.device_name().startswith("cuda")
    np.testing.assert_allclose(embedding.numpy(), session.run(values)[1], atol=1e-5)


def test_fp16_is_close(video, make_input, tmp_path: Path) -> None:
    half = tmp_path / "half.onnx"
    export_tower(video.tower, half, 4, fp16=True)
    values = make_input("video", 1).values[None]
    tokens, embedding = OnnxSession(half, "cuda").run(values)
    expected_tokens, expected_embedding = OnnxSession(video.path, "cpu").run(values)
    scale = float(np.abs(expected_tokens.astype(np.float32)).max())
    assert np.abs(tokens.astype(np.float32) - expected_tokens.astype(np.float32)).max() < 0.03 * scale
    assert np.abs(embedding - expected_embedding).max() < 0.03 * max(1.0, float(np.abs(expected_embedding).max()))
