"""The towers against outputs of the original LanguageBind classes (tests/golden/languagebind_*).

Sizes come from the json, so other fixtures of the same layout pass as they are.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from vidqa.model.export import export_text, export_tower
from vidqa.model.text import TextConfig, TextTower
from vidqa.model.vit import VisionConfig, VisionTower

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ("languagebind_image", "languagebind_video")
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Fixture:
    meta: dict
    vision: VisionConfig
    text: TextConfig
    vision_weights: dict[str, Tensor]
    text_weights: dict[str, Tensor]
    ins: dict[str, Tensor]
    out: dict[str, Tensor]

    @property
    def pixels(self) -> Tensor:
        """float32 [B, T, 3, S, S]"""
        values = self.ins["pixel_values"].float()
        return values.transpose(1, 2) if values.ndim == 5 else values[:, None]

    def tower(self, **changes: object) -> VisionTower:
        tower = VisionTower(replace(self.vision, **changes)).eval()
        weights = self.vision_weights
        if not tower.config.temporal_length:
            weights = {k: v for k, v in weights.items() if ".temporal_" not in k}
        tower.load_state_dict(weights, strict=True)
        return tower

    def text_tower(self, **changes: object) -> TextTower:
        tower = TextTower(replace(self.text, **changes)).eval()
        tower.load_state_dict(self.text_weights, strict=True)
        return tower


@cache
def fixture(name: str) -> Fixture:
    meta = json.loads((GOLDEN / f"{name}.json").read_text())
    tensors = load_file(GOLDEN / f"{name}.safetensors")

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    v, t = meta["config"]["vision"], meta["config"]["text"]
    shared = dict.fromkeys(["n_layers", "n_heads"])
    names = ["hidden_size", "intermediate_size", "projection_dim", "hidden_act", "layer_norm_eps"]
    vision = VisionConfig(
        image_size=v["image_size"],
        patch_size=v["patch_size"],
        temporal_length=v["num_frames"] if v.get("add_time_attn") else 0,
        **shared | {n: v[n] for n in names} | {"n_layers": v["num_hidden_layers"], "n_heads": v["num_attention_heads"]},
    )
    text = TextConfig(
        vocab_size=t["vocab_size"],
        max_positions=t["max_position_embeddings"],
        **shared | {n: t[n] for n in names} | {"n_layers": t["num_hidden_layers"], "n_heads": t["num_attention_heads"]},
    )
    weights = part("weights/")
    seen = {k: v for k, v in weights.items() if k.startswith(("vision_model.", "visual_projection."))}
    read = {k: v for k, v in weights.items() if k.startswith(("text_model.", "text_projection."))}
    assert set(weights) == {*seen, *read, "logit_scale"}
    return Fixture(meta, vision, text, seen, read, part("in/"), part("out/"))


def close(got: Tensor, want: Tensor, tolerance: float = TOLERANCE) -> None:
    assert got.shape == want.shape
    error = float((got - want).abs().max())
    assert error <= tolerance, f"worst difference {error:.2e}"


def stored(values: Tensor, want: Tensor) -> Tensor:
    """Our [B, T, P, D] in the reference's axes: it has no T for images."""
    return values if want.ndim == 4 else values[:, 0]


@pytest.fixture(params=NAMES)
def gold(request: pytest.FixtureRequest) -> Fixture:
    return fixture(request.param)


@torch.no_grad()
def test_hidden_states_and_pooled(gold: Fixture) -> None:
    states, pooled = gold.tower().vision_model(gold.pixels)
    assert len(states) == gold.vision.n_layers + 1
    for i, state in enumerate(states):
        want = gold.out[f"vision_hidden_states_{i}"]
        close(stored(state, want), want)
    close(pooled, gold.out["vision_pooled"])


@torch.no_grad()
def test_projected_and_normalised_embeddings(gold: Fixture) -> None:
    _, embedding = gold.tower()(gold.pixels)
    close(embedding, gold.out["image_features_unnormalised"])
    close(F.normalize(embedding, dim=-1), gold.out["image_embeds"])


@torch.no_grad()
def test_text_tower(gold: Fixture) -> None:
    tower = gold.text_tower()
    ids, mask = gold.ins["input_ids"], gold.ins["attention_mask"]
    states, last, pooled = tower.text_model(ids, mask)
    for i, state in enumerate(states):
        close(state, gold.out[f"text_hidden_states_{i}"])
    close(last, gold.out["text_last_hidden_state"])
    close(pooled, gold.out["text_pooled"])
    close(tower.text_model(ids)[2], gold.out["text_pooled_no_mask"])
    close(F.normalize(tower(ids, mask), dim=-1), gold.out["text_embeds"])


@torch.no_grad()
@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
def test_logits(gold: Fixture, act: str) -> None:
    prefix = "" if act == "gelu" else "quick_gelu/"
    texts = F.normalize(gold.text_tower(hidden_act=act)(gold.ins["input_ids"], gold.ins["attention_mask"]), dim=-1)
    seen = F.normalize(gold.tower(hidden_act=act)(gold.pixels)[1], dim=-1)
    scale = math.exp(gold.meta["config"]["logit_scale"])
    # The logits are `scale` times a cosine, and so is their rounding error.
    close(scale * seen @ texts.T, gold.out[f"{prefix}logits_per_image"], TOLERANCE * scale)
    if not prefix:
        close(scale * texts @ seen.T, gold.out["logits_per_text"], TOLERANCE * scale)


@torch.no_grad()
def test_quick_gelu(gold: Fixture) -> None:
    states, pooled = gold.tower(hidden_act="quick_gelu").vision_model(gold.pixels)
    keys = [k for k in gold.out if k.startswith("quick_gelu/vision_hidden_states_")]
    assert keys
    for key in keys:
        close(stored(states[int(key.rsplit("_", 1)[1])], gold.out[key]), gold.out[key])
    close(pooled, gold.out["quick_gelu/vision_pooled"])
    _, embedding = gold.tower(hidden_act="quick_gelu")(gold.pixels)
    close(embedding, gold.out["quick_gelu/image_features_unnormalised"])
    close(F.normalize(embedding, dim=-1), gold.out["quick_gelu/image_embeds"])


@torch.no_grad()
def test_retrieval_wrapper(gold: Fixture) -> None:
    kind = "video" if gold.vision.temporal_length else "image"
    seen = F.normalize(gold.tower()(gold.pixels)[1], dim=-1)
    scale = math.exp(gold.meta["config"]["logit_scale"])
    close(seen, gold.out[f"wrapper_notemp_{kind}"])
    close(seen * scale, gold.out[f"wrapper_temp_{kind}"], TOLERANCE * scale)
    texts = F.normalize(gold.text_tower()(gold.ins["input_ids"], gold.ins["attention_mask"]), dim=-1)
    close(texts, gold.out["wrapper_temp_language"])


@torch.no_grad()
def test_tokens_for_the_language_model() -> None:
    gold = fixture("languagebind_image")
    tokens = gold.tower()(gold.pixels, layer=-2)[0][:, 0]
    close(tokens, gold.out["tower_select_cls_patch"])
    close(tokens[:, 1:], gold.out["tower_select_patch"])


@torch.no_grad()
def test_sixteen_frames_are_two_groups() -> None:
    gold = fixture("languagebind_video")
    joined = gold.pixels.flatten(0, 1)[None]
    states, pooled = gold.tower().vision_model(joined)
    close(states[-2], gold.out["t16/vision_hidden_states_-2"])
    close(pooled, gold.out["t16/vision_pooled"])


@torch.no_grad()
def test_without_temporal_attention() -> None:
    gold = fixture("languagebind_video")
    states, pooled = gold.tower(temporal_length=0).vision_model(gold.pixels)
    close(states[-2], gold.out["no_temporal/vision_hidden_states_-2"])
    close(pooled, gold.out["no_temporal/vision_pooled"])
    # and it is really the temporal attention that the other tests look at
    assert float((states[-2] - gold.out[f"vision_hidden_states_{gold.vision.n_layers - 1}"]).abs().max()) > 0.1


@torch.no_grad()
def test_clips_of_one_batch_do_not_see_each_other() -> None:
    """The published class takes T from a config number and mixes clips when it is wrong; here T is an axis."""
    gold = fixture("languagebind_video")
    t = gold.vision.temporal_length // 2
    two = gold.pixels[:, :t]
    together, alone = gold.tower()(two)[0], gold.tower()(two[:1])[0]
    close(together[:1], alone)


def test_frames_that_fill_no_group_are_refused() -> None:
    gold = fixture("languagebind_video")
    n = gold.vision.temporal_length + 1
    with pytest.raises(ValueError, match="cannot be cut into groups"):
        gold.tower()(torch.zeros(1, n, 3, gold.vision.image_size, gold.vision.image_size))


def test_exported_video_graph_equals_the_reference(tmp_path: Path) -> None:
    """Not only equal to our torch code: the fused graph on onnxruntime gives the published numbers."""
    import onnxruntime

    gold = fixture("languagebind_video")
    assert export_tower(gold.tower(), tmp_path / "tower.onnx", gold.pixels.shape[1]).fused
    session = onnxruntime.InferenceSession(str(tmp_path / "tower.onnx"), providers=["CPUExecutionProvider"])
    tokens, embedding = (torch.from_numpy(v) for v in session.run(None, {"pixel_values": gold.pixels.numpy()}))
    close(tokens, gold.out[f"vision_hidden_states_{gold.vision.n_layers - 1}"])
    close(embedding, gold.out["image_features_unnormalised"])


def test_exported_text_graph_equals_the_reference(tmp_path: Path) -> None:
    import onnxruntime

    gold = fixture("languagebind_image")
    report = export_text(gold.text_tower(), tmp_path / "text.onnx", external_above=1000)
    assert report.max_abs_error <= 1e-4  # with random padding, batches of 1, 2 and 5
    assert report.external_data == "text.onnx.data"
    session = onnxruntime.InferenceSession(str(tmp_path / "text.onnx"), providers=["CPUExecutionProvider"])
    feed = {"input_ids": gold.ins["input_ids"].numpy(), "attention_mask": gold.ins["attention_mask"].numpy()}
    (embedding,) = session.run(None, feed)
    close(F.normalize(torch.from_numpy(embedding), dim=-1), gold.out["text_embeds"])
