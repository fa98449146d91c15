"""Compares the transformers port of Video-LLaVA: image towers, projector, expanded placeholders, language model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from golden_checks.fixture import Fixture
from golden_checks.language import build_model, compare_case, compare_together, n_new
from golden_checks.report import Report
from golden_checks.towers import vision_model
from vidqa.generate.fallback import PromptSequence
from vidqa.model.connector import build_connector
from vidqa.model.video_llava import VideoLlava, load_strictly
from vidqa.records import Prompt


def build(fixture: Fixture) -> VideoLlava:
    """Build the model of the fixture."""
    c = fixture.meta["config_json_as_saved"]
    if c.get("projector_hidden_act", "gelu") != "gelu":
        raise ValueError(f"{fixture.name}: a projector with {c['projector_hidden_act']} is not a published one")
    text = {k: v for k, v in c["text_config"].items() if k != "model_type"}
    connector = build_connector("mlp2x_gelu", c["vision_config"]["hidden_size"], text["hidden_size"])
    weights = fixture.part("weights/multi_modal_projector.")
    renamed = {k.replace("linear_1.", "0.").replace("linear_2.", "2."): v for k, v in weights.items()}
    load_strictly(connector, renamed, fixture.name)
    return build_model(fixture, text, fixture.part("weights/language_model."), connector, "hf")


@torch.no_grad()
def seen(fixture: Fixture, model: VideoLlava, report: Report) -> dict[str, Tensor]:
    """Return the projected tokens [T * P, L] of each media item, and compare the stored outputs on the way."""
    c = fixture.meta["config_json_as_saved"]
    layer = c["vision_feature_layer"]
    if c["vision_feature_select_strategy"] != "default":
        raise ValueError(f"{fixture.name}: vision_feature_select_strategy is not the published one")
    out = {}
    for name in sorted({n for case in fixture.meta["cases"].values() for n in case["images"] + case["videos"]}):
        kind = "image" if name.startswith("image") else "video"
        tower = vision_model(c["vision_config"], fixture.part(f"weights/{kind}_tower."), fixture.name)
        pixels = fixture.input(name)
        states, _ = tower(pixels[None] if kind == "image" else pixels)
        tokens = states[layer][0]
        _close(report, fixture, f"{name}_tower_hidden_states_{layer}", tokens)
        projected = model.connector(tokens[:, 1:] if kind == "image" else tokens)
        _close(report, fixture, f"{name}_projected", projected)
        out[name] = projected.flatten(0, 1)
    return out


def rows_of(fixture: Fixture, case: str, visual: dict[str, Tensor]) -> list[PromptSequence]:
    """Return the prompts of a case without batch padding, each row with the media that its ids refer to."""
    media = fixture.meta["cases"][case]
    tags = {fixture.meta["tokens"][f"{kind}_token_index"]: iter(media[f"{kind}s"]) for kind in ("image", "video")}
    rows = []
    ids = fixture.tensors[f"in/{case}/input_ids"]
    keep = fixture.tensors.get(f"in/{case}/attention_mask", torch.ones_like(ids)).bool()
    for one, kept in zip(ids, keep, strict=True):
        flat = one[kept].numpy().astype(np.int64)
        slots = np.isin(flat, list(tags))
        ordered, at = [], 0
        while at < len(flat):
            if slots[at]:
                ordered.append(visual[next(tags[int(flat[at])])])
                at += len(ordered[-1])
            else:
                at += 1
        rows.append(PromptSequence(Prompt(flat, slots), tuple(ordered), n_new(fixture, case)))
    return rows


@torch.no_grad()
def check(fixture: Fixture) -> Report:
    """Compare everything that is stored."""
    report, model = fixture.report(), build(fixture)
    visual = seen(fixture, model, report)
    cases: dict[str, Sequence[PromptSequence]] = {
        case: rows_of(fixture, case, visual) for case in fixture.meta["cases"]
    }
    for case, rows in cases.items():
        compare_case(report, fixture, case, model, rows)
    compare_together(report, fixture, model, {case: list(rows) for case, rows in cases.items()})
    return fixture.close(report)


def _close(report: Report, fixture: Fixture, key: str, ours: Tensor) -> None:
    if fixture.has(key):
        report.close(key, ours, fixture.expected(key))
