"""Compares LanguageBind image and video: vision tower, text tower, projections and their cosines."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from golden_checks.fixture import Fixture
from golden_checks.report import Report
from vidqa.model.towers.text import TextConfig, TextTower
from vidqa.model.towers.vit import VisionConfig, VisionModel, VisionTower
from vidqa.model.video_llava import load_strictly


def vision_config(c: dict[str, Any]) -> VisionConfig:
    """Convert a transformers config into the config of a tower."""
    return VisionConfig(
        image_size=c["image_size"],
        patch_size=c["patch_size"],
        hidden_size=c["hidden_size"],
        intermediate_size=c["intermediate_size"],
        n_layers=c["num_hidden_layers"],
        n_heads=c["num_attention_heads"],
        projection_dim=c["projection_dim"],
        hidden_act=c["hidden_act"],
        layer_norm_eps=c["layer_norm_eps"],
        temporal_length=c["num_frames"] if c.get("add_time_attn") else 0,
    )


def vision_model(config: dict[str, Any], weights: dict[str, Tensor], source: str) -> VisionModel:
    """Load a tower without its projection; all weights must match."""
    model = VisionModel(vision_config(config)).eval()
    load_strictly(model, {k: v for k, v in weights.items() if not k.endswith("position_ids")}, source)
    return model


@dataclass(frozen=True)
class Pair:
    """The two towers of a fixture; each can be built with another activation or without temporal attention."""

    fixture: Fixture

    @property
    def pixels(self) -> Tensor:
        """Input pixels, float32 [B, T, 3, S, S]."""
        values = self.fixture.input("pixel_values")
        return values.transpose(1, 2) if values.ndim == 5 else values[:, None]

    def tower(self, **changes: Any) -> VisionTower:
        """Build the vision tower, with some settings changed."""
        tower = VisionTower(replace(vision_config(self.fixture.meta["config"]["vision"]), **changes)).eval()
        weights = self.fixture.part("weights/")
        own = {k: v for k, v in weights.items() if k.startswith(("vision_model.", "visual_projection."))}
        if not tower.config.temporal_length:
            own = {k: v for k, v in own.items() if ".temporal_" not in k}
        load_strictly(tower, own, self.fixture.name)
        return tower

    def text_tower(self, **changes: Any) -> TextTower:
        """Build the text tower, with some settings changed."""
        c = self.fixture.meta["config"]["text"]
        config = TextConfig(
            vocab_size=c["vocab_size"],
            max_positions=c["max_position_embeddings"],
            hidden_size=c["hidden_size"],
            intermediate_size=c["intermediate_size"],
            n_layers=c["num_hidden_layers"],
            n_heads=c["num_attention_heads"],
            projection_dim=c["projection_dim"],
            hidden_act=c["hidden_act"],
            layer_norm_eps=c["layer_norm_eps"],
        )
        tower = TextTower(replace(config, **changes)).eval()
        weights = self.fixture.part("weights/")
        own = {k: v for k, v in weights.items() if k.startswith(("text_model.", "text_projection."))}
        load_strictly(tower, own, self.fixture.name)
        return tower


def stored(values: Tensor, expected: Tensor) -> Tensor:
    """Convert [B, T, P, D] to the axes of the reference, which has no T for images."""
    return values if expected.ndim == 4 else values[:, 0]


@torch.no_grad()
def check(fixture: Fixture) -> Report:
    """Compare everything that is stored."""
    report, pair = fixture.report(), Pair(fixture)
    _compare_text(report, fixture, pair)
    texts = {act: _texts(pair, act) for act in ("gelu", "quick_gelu")}
    usual = fixture.meta["config"]["vision"]["hidden_act"]
    _compare_seen(report, fixture, pair, "", {}, texts[usual])
    _compare_seen(report, fixture, pair, "quick_gelu/", {"hidden_act": "quick_gelu"}, texts["quick_gelu"])
    if fixture.has("no_temporal/vision_pooled"):
        _compare_seen(report, fixture, pair, "no_temporal/", {"temporal_length": 0}, texts[usual])
    for joined in sorted({m[1] for key in fixture.outputs() if (m := re.match(r"(t\d+)/", key))}):
        clip = pair.pixels.flatten(0, 1)[None, : int(joined[1:])]  # that many frames of all clips joined into one
        states, pooled = pair.tower().vision_model(clip)
        for key in fixture.outputs(f"{joined}/"):
            ours = pooled if key == "vision_pooled" else states[int(key.rsplit("_", 1)[1])]
            report.close(f"{joined}/{key}", ours, fixture.expected(f"{joined}/{key}"))
    _compare_wrapper(report, fixture, pair, texts[usual])
    return fixture.close(report)


def _texts(pair: Pair, act: str) -> Tensor:
    ids, mask = pair.fixture.tensors["in/input_ids"], pair.fixture.tensors["in/attention_mask"]
    return F.normalize(pair.text_tower(hidden_act=act)(ids, mask), dim=-1)


def _compare_text(report: Report, fixture: Fixture, pair: Pair) -> None:
    ids, mask = fixture.tensors["in/input_ids"], fixture.tensors["in/attention_mask"]
    tower = pair.text_tower()
    states, last, pooled = tower.text_model(ids, mask)
    ours = {f"text_hidden_states_{i}": state for i, state in enumerate(states)}
    ours |= {"text_last_hidden_state": last, "text_pooled": pooled, "text_pooled_no_mask": tower.text_model(ids)[2]}
    ours["text_embeds"] = F.normalize(tower(ids, mask), dim=-1)
    for key, value in ours.items():
        if fixture.has(key):
            report.close(key, value, fixture.expected(key))


def _compare_seen(
    report: Report, fixture: Fixture, pair: Pair, prefix: str, changes: dict[str, Any], texts: Tensor
) -> None:
    """Compare states, pooled tokens, embeddings and cosines of the vision tower, with some settings changed."""
    tower = pair.tower(**changes)
    states, pooled = tower.vision_model(pair.pixels)
    scale = math.exp(fixture.meta["config"]["logit_scale"])
    embedding = tower(pair.pixels)[1]
    embeds = F.normalize(embedding, dim=-1)
    ours = {"vision_pooled": pooled, "image_features_unnormalised": embedding, "image_embeds": embeds}
    ours |= {"logits_per_image": scale * embeds @ texts.T, "logits_per_text": scale * texts @ embeds.T}
    for key in fixture.outputs(prefix):
        if m := re.fullmatch(r"vision_hidden_states_(-?\d+)", key):
            ours[key] = states[int(m[1])]
        elif key == "vision_last_hidden_state":
            ours[key] = states[-1]
        elif key.startswith("tower_select_"):
            chosen = tower(pair.pixels, -2)[0]
            ours[key] = chosen if key.endswith("cls_patch") or fixture.expected(key).ndim == 4 else chosen[:, :, 1:]
        if key in ours:
            expected = fixture.expected(prefix + key)
            ours[key] = ours[key] if ours[key].ndim == expected.ndim else stored(ours[key], expected)
            # The logits are `scale` times a cosine, and their rounding error scales with it.
            report.close(prefix + key, ours[key], expected)


def _compare_wrapper(report: Report, fixture: Fixture, pair: Pair, texts: Tensor) -> None:
    """Compare the retrieval wrapper, whose temperature scales the visual embeddings."""
    seen = F.normalize(pair.tower()(pair.pixels)[1], dim=-1)
    scale = math.exp(fixture.meta["config"]["logit_scale"])
    for key in fixture.outputs():
        if key.startswith("wrapper_"):
            ours = texts if key.endswith("_language") else seen * (scale if key.startswith("wrapper_temp_") else 1)
            report.close(key, ours, fixture.expected(key))
