"""Encoder: order of results, kinds of media, batches, memory."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vidqa.common.atomic_io import sha256_of_file
from vidqa.encoders.encoder import AUTO_FRAMES, Encoder, EncoderGraph
from vidqa.encoders.onnx_session import OnnxSession
from vidqa.errors import BundleError, DeviceError, ItemError


@pytest.fixture
def encoder(image, video) -> Encoder:
    return Encoder(image.path, video.path, "cpu", batch_size=3)


class RecordingSession:
    """Records batch sizes, and runs out of memory above `limit` frame groups."""

    def __init__(self, real: OnnxSession, limit: int = 10**9) -> None:
        self.real, self.limit, self.batches = real, limit, []

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)

    def run(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.batches.append(len(values))
        if len(values) > self.limit:
            raise MemoryError("Failed to allocate memory for requested buffer")
        return self.real.run(values)


def record(encoder: Encoder, kind: str, limit: int = 10**9) -> RecordingSession:
    encoder._sessions[kind] = session = RecordingSession(encoder.session(kind), limit)
    return session


def test_mixed_kinds_keep_their_order(encoder, video, image, make_input) -> None:
    kinds = ["video", "image", "image", "video", "video", "image", "video"]
    inputs = [make_input(kind, i) for i, kind in enumerate(kinds)]
    features = encoder.encode(inputs)
    assert [f.kind for f in features] == kinds
    for value, got in zip(inputs, features, strict=True):
        exported = video if value.kind == "video" else image
        with torch.no_grad():
            tokens, embedding = exported.tower(torch.from_numpy(value.values)[None])
        tokens = tokens[0] if value.kind == "video" else tokens[0, :, 1:]  # no class token for images
        assert got.tokens.shape == tuple(tokens.shape)
        assert got.keep_cls is (value.kind == "video")
        np.testing.assert_allclose(got.tokens, tokens.half().numpy(), atol=2e-2, rtol=2e-3)
        np.testing.assert_allclose(got.embedding, embedding[0].numpy(), atol=1e-4)


def test_no_inputs(encoder) -> None:
    assert encoder.encode([]) == []
    assert not encoder._sessions  # no graph was opened


def test_videos_of_many_files_share_batches(encoder, make_input) -> None:
    session = record(encoder, "video")
    encoder.encode([make_input("video", i) for i in range(7)])
    assert session.batches == [3, 3, 1]


@pytest.mark.parametrize("kind", ["video", "image"])
def test_batch_equals_single(image, video, make_input, kind: str) -> None:
    """In float32, before the tokens are rounded to float16."""
    session = OnnxSession((video if kind == "video" else image).path, "cpu")._session
    values = [make_input(kind, i).values for i in range(6)]
    together = session.run(None, {"pixel_values": np.stack(values)})
    for i, value in enumerate(values):
        alone = session.run(None, {"pixel_values": value[None]})
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a[i], b[0], atol=1e-5, rtol=0)


def test_batch_equals_single_through_the_encoder(encoder, image, video, make_input) -> None:
    inputs = [make_input(kind, i) for i, kind in enumerate(["video", "image"] * 4)]
    one_by_one = Encoder(image.path, video.path, "cpu", batch_size=1)
    for a, b in zip(encoder.encode(inputs), one_by_one.encode(inputs), strict=True):
        # two float32 values 1e-5 apart may round to adjacent float16 values
        np.testing.assert_allclose(a.tokens.astype(np.float32), b.tokens.astype(np.float32), atol=1e-5, rtol=1e-3)
        np.testing.assert_allclose(a.embedding, b.embedding, atol=1e-5, rtol=0)


def test_same_input_same_bits(encoder, make_input) -> None:
    inputs = [make_input("video", 0), make_input("image", 1)]
    for a, b in zip(encoder.encode(inputs), encoder.encode(inputs), strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_array_equal(a.embedding, b.embedding)


def test_longer_videos_are_split_into_groups(encoder, video, make_input) -> None:
    """As in the published model: no attention between groups; the embedding is their mean."""
    long, short = make_input("video", 5, n_frames=12), make_input("video", 6)
    result, other = encoder.encode([long, short])
    with torch.no_grad():
        tokens, embedding = video.tower(torch.from_numpy(long.values)[None])
    np.testing.assert_allclose(result.tokens, tokens[0].half().numpy(), atol=2e-2, rtol=2e-3)
    np.testing.assert_allclose(result.embedding, embedding[0].numpy(), atol=1e-4)
    np.testing.assert_allclose(other.embedding, encoder.encode([short])[0].embedding, atol=1e-5)


def test_frames_that_do_not_fit_the_graph(encoder, make_input) -> None:
    with pytest.raises(ValueError, match=r"takes 4 frames \(or a multiple\) of 24 x 24"):
        encoder.encode([make_input("video", 0, n_frames=6)])


def test_running_out_of_memory_halves_the_batch_and_loses_nothing(image, video, make_input, caplog) -> None:
    inputs = [make_input("video", i) for i in range(9)]
    expected = Encoder(image.path, video.path, "cpu", batch_size=1).encode(inputs)
    encoder = Encoder(image.path, video.path, "cpu", batch_size=8)
    session = record(encoder, "video", limit=3)
    with caplog.at_level(logging.WARNING):
        got = encoder.encode(inputs)
    assert session.batches == [8, 4, 2, 2, 2, 2, 1]
    assert "batch size is now 2" in caplog.text
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a.embedding, b.embedding, atol=1e-5)
    assert encoder.batch_size("video") == 2  # and stays reduced
    assert encoder.batch_size("image") == 8


def test_a_single_input_out_of_memory_is_an_item_error(encoder, make_input) -> None:
    record(encoder, "video", limit=0)
    with pytest.raises(ItemError) as caught:
        encoder.encode([make_input("video", 0)])
    assert caught.value.kind == "out_of_memory"


def test_other_runtime_errors_are_not_hidden(encoder, make_input, monkeypatch) -> None:
    def broken(values: np.ndarray) -> None:
        raise RuntimeError("Non-zero status code")

    monkeypatch.setattr(encoder.session("video"), "run", broken)
    with pytest.raises(RuntimeError, match="Non-zero"):
        encoder.encode([make_input("video", 0)])


def test_the_automatic_batch_size_counts_frames(image, video) -> None:
    encoder = Encoder(image.path, video.path, "cpu")
    assert encoder.batch_size("image") == AUTO_FRAMES["cpu"]
    assert encoder.batch_size("video") == max(1, AUTO_FRAMES["cpu"] // 4)
    with pytest.raises(ValueError, match="at least 1"):
        Encoder(image.path, video.path, "cpu", batch_size=0)


def test_an_unknown_device_is_rejected_before_any_graph_is_opened(tmp_path) -> None:
    with pytest.raises(DeviceError):
        Encoder(tmp_path / "no.onnx", tmp_path / "no.onnx", "tpu")


def test_from_bundle_checks_digests_and_uses_its_settings(image, video, make_input) -> None:
    data = image.path.with_name("image.onnx.data")
    folder = image.path.parent
    parts = SimpleNamespace(
        image=SimpleNamespace(
            keep_cls=True, sha256=sha256_of_file(image.path), external={data.name: sha256_of_file(data)}
        ),
        video=SimpleNamespace(keep_cls=True, sha256="0" * 64, external={}),
    )
    bundle = SimpleNamespace(
        folder=folder, image_graph=image.path, video_graph=video.path, spec=SimpleNamespace(encoders=parts)
    )
    encoder = Encoder.from_bundle(bundle, "cpu")
    (features,) = encoder.encode([make_input("image", 0)])
    assert features.keep_cls
    assert features.tokens.shape[1] == image.tower.config.n_patches + 1
    assert encoder.provider == "CPUExecutionProvider on cpu"
    with pytest.raises(BundleError, match=r"video\.onnx: altered"):
        encoder.encode([make_input("video", 0)])


def test_class_token_is_a_setting(image, video, make_input) -> None:
    value = make_input("image", 3)
    with_cls = Encoder(EncoderGraph(image.path, keep_cls=True), video.path, "cpu").encode([value])[0]
    without = Encoder(EncoderGraph(image.path, keep_cls=False), video.path, "cpu").encode([value])[0]
    np.testing.assert_array_equal(with_cls.tokens[:, 1:], without.tokens)


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_an_error(encoder, make_input, kind: str, value: float) -> None:
    inputs = [make_input(kind, i) for i in range(3)]
    assert all(f.is_finite for f in encoder.encode(inputs))
    inputs[1].values[0, 0, 0, 0] = value
    with pytest.raises(ItemError, match=f"the {kind} encoder returned NaN or infinity") as caught:
        encoder.encode(inputs)
    assert caught.value.kind == "not_finite"
