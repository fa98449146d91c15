"""Projectors and compressors: results, token counts, and their settings in bundles."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from vidqa.model.bundle.bundle import BUNDLE_FILE, DEMO
from vidqa.model.bundle.spec import CompressorSpec
from vidqa.model.bundle.spec_json import read_spec, to_json
from vidqa.model.compressors import DeltaValley
from vidqa.model.connector import build_connector

D, L, P = 6, 8, 5  # encoder width, LLM hidden size, patches per frame
SIZES = {"n_frames": 7, "n_patches": P, "n_heads": 2, "inner_size": 16}
TYPES = ("video_chatgpt", "valley_v1", "valley_v2", "valley_v3")


def spec(type: str) -> CompressorSpec:
    return CompressorSpec(type, **SIZES)  # type: ignore[arg-type]


def clip(n_frames: int, n_tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n_frames, n_tokens, D, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("type", [None, *TYPES])
@pytest.mark.parametrize("n_frames", [1, 3, 7])
def test_token_counts_match_runs(type: str | None, n_frames: int) -> None:
    connector = build_connector("linear", D, L, spec(type) if type else None).eval()
    has_cls = type is not None and type.startswith("valley")
    x = clip(n_frames, P + has_cls)
    (tokens,) = connector.visual_tokens([x], torch.float32)
    assert tokens.shape == (sum(connector.runs(*x.shape[:2], has_cls)), L)
    one, two = connector.visual_tokens([clip(2, P + has_cls, 1), x], torch.float32)
    torch.testing.assert_close(two, tokens)
    assert len(one) == sum(connector.runs(2, P + has_cls, has_cls))


def test_published_token_counts() -> None:
    chatgpt = build_connector("linear", D, L, CompressorSpec("video_chatgpt"))
    assert chatgpt.runs(100, 256, False) == chatgpt.runs(3, 256, False) == (356,)
    valley = build_connector("linear", D, L, CompressorSpec("valley_v1"))
    assert valley.runs(8, 257, True) == (256, 8)
    assert valley.runs(1, 257, True) == (256, 1)


def test_class_token_must_match_the_compressor() -> None:
    with pytest.raises(ValueError, match="does not take the class token"):
        build_connector("linear", D, L, spec("video_chatgpt")).runs(2, P, True)
    with pytest.raises(ValueError, match="needs the class token"):
        build_connector("linear", D, L, spec("valley_v1")).runs(2, P, False)


def test_video_chatgpt_pads_with_the_bias_and_averages_real_frames_only() -> None:
    connector = build_connector("linear", D, L, spec("video_chatgpt")).requires_grad_(False)
    x = clip(3, P).half()
    (tokens,) = connector.visual_tokens([x], torch.float32)
    frames, patches = x.float().mean(1).half().float(), x.float().mean(0).half().float()
    torch.testing.assert_close(tokens[:3], frames @ connector.weight.T + connector.bias)
    torch.testing.assert_close(tokens[3:7], connector.bias.expand(4, L))
    torch.testing.assert_close(tokens[7:], patches @ connector.weight.T + connector.bias)


def test_valley_returns_patches_then_class_tokens_in_order() -> None:
    connector = build_connector("linear", D, L, spec("valley_v1")).requires_grad_(False)
    x = clip(4, 1 + P)
    (tokens,) = connector.visual_tokens([x], torch.float32)
    projected = x @ connector.weight.T + connector.bias
    torch.testing.assert_close(tokens[:P], projected[:, 1:].mean(0))
    torch.testing.assert_close(tokens[P:], projected[:, 0])


def test_valley_v2_weights_whole_frames() -> None:
    connector = build_connector("linear", D, L, spec("valley_v2")).requires_grad_(False)
    pooling = connector.get_submodule("compressor.pooling_layer")
    assert isinstance(pooling, torch.nn.Linear)
    x = clip(3, 1 + P)
    projected = connector(x)[:, 1:]
    weights = torch.softmax(torch.stack([f.flatten() @ pooling.weight[0] + pooling.bias[0] for f in projected]), 0)
    by_hand = sum(w * f for w, f in zip(weights, projected, strict=True))
    torch.testing.assert_close(connector.visual_tokens([x], torch.float32)[0][:P], by_hand)


def test_valley_v3_depends_on_frame_order_and_has_a_maximum_length() -> None:
    connector = build_connector("linear", D, L, spec("valley_v3")).eval().requires_grad_(False)
    assert isinstance(connector.compressor, DeltaValley)
    connector.compressor.get_buffer("position_matrix").normal_()
    x = clip(4, 1 + P)
    patches = connector.visual_tokens([x], torch.float32)[0][:P]
    backwards = connector.visual_tokens([x.flip(0)], torch.float32)[0][:P]
    assert float((patches - backwards).abs().max()) > 1e-3
    plain = build_connector("linear", D, L, spec("valley_v1")).requires_grad_(False)
    plain.load_state_dict({k: v for k, v in connector.state_dict().items() if not k.startswith("compressor")})
    a, b = (plain.visual_tokens([y], torch.float32)[0][:P] for y in (x, x.flip(0)))
    torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match="at most 7 frames, got 8"):
        connector.visual_tokens([clip(8, 1 + P)], torch.float32)


def test_keys_are_those_of_the_published_projectors() -> None:
    assert set(build_connector("linear", D, L, spec("valley_v2")).state_dict()) == {
        "weight",
        "bias",
        "compressor.pooling_layer.weight",
        "compressor.pooling_layer.bias",
    }
    assert set(build_connector("mlp2x_gelu", D, L).state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert not build_connector("identity", D, D, spec("valley_v1")).state_dict()


def test_identity_hands_on() -> None:
    x = clip(2, 3)
    torch.testing.assert_close(build_connector("identity", D, D).visual_tokens([x], torch.float32)[0], x.flatten(0, 1))
    with pytest.raises(ValueError, match="equal sizes"):
        build_connector("identity", D, L)


def test_wrong_width() -> None:
    with pytest.raises(ValueError, match="tokens of width 6, got 5"):
        build_connector("linear", D, L).visual_tokens([torch.zeros(1, 2, 5)], torch.float32)


@pytest.mark.parametrize("type", TYPES)
def test_gradients_reach_every_weight(type: str) -> None:
    connector = build_connector("linear", D, L, spec(type))
    connector.visual_tokens([clip(3, P + type.startswith("valley"))], torch.float32)[0].square().sum().backward()
    for name, parameter in connector.named_parameters():
        assert parameter.grad is not None, name
        # A softmax does not change when the same value is added to all inputs.
        assert bool(parameter.grad.abs().sum() > 0) or name.endswith("pooling_layer.bias"), name


class TestBundle:
    """Compressors in `bundle.json`."""

    @pytest.fixture
    def settings(self) -> dict:
        return json.loads((DEMO / BUNDLE_FILE).read_text())

    def test_bundles_without_a_compressor_keep_their_digest(self, settings: dict) -> None:
        assert "compressor" not in settings["connector"]
        old, problems = read_spec(settings)
        assert not problems and old is not None and old.connector.compressor is None
        assert to_json(old.connector) == settings["connector"], "model_id must not change"
        settings["connector"]["compressor"] = None
        assert read_spec(settings)[0] == old

    def test_round_trip(self, settings: dict) -> None:
        settings["connector"] |= {"compressor": {"type": "valley_v3", **SIZES}, "type": "linear", "out_size": 160}
        settings["encoders"]["image"]["keep_cls"] = True
        read, problems = read_spec(settings)
        assert not problems and read is not None
        assert read.connector.compressor == spec("valley_v3")
        assert to_json(read)["connector"] == settings["connector"]

    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"type": "valley_v4"}, "connector.compressor.type: must be one of"),
            ({"n_frames": 0}, "n_frames must be at least 1"),
            ({"n_heads": 7}, "not a multiple of compressor.n_heads"),
            ({"speed": 1}, "connector.compressor.speed: unknown key"),
            ({"type": "video_chatgpt"}, "encoders.video.keep_cls does not match"),
        ],
    )
    def test_wrong(self, settings: dict, changes: dict, problem: str) -> None:
        settings["connector"]["compressor"] = {"type": "valley_v3", **SIZES, **changes}
        settings["encoders"]["image"]["keep_cls"] = changes.get("type") != "video_chatgpt"
        found, problems = read_spec(settings)
        assert found is None
        assert any(problem in p for p in problems), problems

    def test_sampled_frames_must_match_the_graph(self, settings: dict) -> None:
        """A graph for one frame supports any number of frames; one for eight does not support six."""
        settings["encoders"]["video"]["n_frames"] = 1
        assert not read_spec(settings)[1]
        settings["encoders"]["video"] |= {"n_frames": 8, "sampling": {"rule": "linspace", "n_frames": 6, "rate": None}}
        assert "not a multiple of the 8 frames of the graph" in read_spec(settings)[1][0]


def test_half_precision_is_pooled_in_float32() -> None:
    """Sums in float16 are too inexact for a mean over 256 patches."""
    connector = build_connector("identity", D, D, CompressorSpec("video_chatgpt", n_frames=1))
    x = torch.from_numpy(np.full((1, 300, D), 300.0, np.float16))
    assert connector.visual_tokens([x], torch.float32)[0][0].tolist() == [300.0] * D


@pytest.mark.parametrize("type", [None, *TYPES])
def test_the_smallest_input_reaches_every_weight(type: str | None) -> None:
    connector = build_connector("mlp2x_gelu", D, L, spec(type) if type else None)
    (out,) = connector.visual_tokens([connector.smallest_input()], torch.float32)
    out[:0].sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in connector.parameters())
