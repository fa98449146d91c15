"""Compares Valley: tower, projector, the three temporal modules, visual tokens between markers, language model."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from golden_checks.fixture import Fixture
from golden_checks.language import build_model, compare_case, compare_together, make_row, n_new
from golden_checks.report import Report
from golden_checks.towers import vision_model
from vidqa.generate.fallback import PromptSequence
from vidqa.model.bundle.spec import CompressorSpec
from vidqa.model.compressors import Valley, WeightedValley
from vidqa.model.connector import build_connector
from vidqa.model.video_llava import VideoLlava, load_strictly

#: Name prefix in the original -> prefix in our connector; a copy that the original never uses is ignored.
RENAMED = {
    "model.mm_projector.": "",
    "model.pooling_layer.": "compressor.pooling_layer.",
    "model.position_matrix": "compressor.position_matrix",
    "model.transformer_delta_encoder.": "compressor.encoder.",
}
UNUSED = "model.transforemr_adding_layer."


def build(fixture: Fixture, version: str) -> VideoLlava:
    """Build the model with the temporal module `v1`, `v2` or `v3`."""
    c = fixture.meta["config"]
    weights = fixture.part("weights/") | fixture.part(f"weights_{version}/")
    v3 = c.get("v3", {})
    positions = weights.get("model.position_matrix", torch.empty(1, 1))
    n_patches = (c["clip"]["image_size"] // c["clip"]["patch_size"]) ** 2
    spec = CompressorSpec(
        f"valley_{version}",  # type: ignore[arg-type]
        n_frames=len(positions),
        n_patches=n_patches,
        n_heads=v3.get("nhead", 8),
        inner_size=v3.get("dim_feedforward", 2048),
    )
    if v3 and (v3["num_layers"], v3["activation"], v3["norm"]) != (1, "relu", "post-norm"):
        raise ValueError(f"{fixture.name}: the temporal module v3 of the fixture is not the published one: {v3}")
    connector = build_connector("linear", c["mm_hidden_size"], c["llm"]["hidden_size"], spec)
    own = {new + k[len(old) :]: v for k, v in weights.items() for old, new in RENAMED.items() if k.startswith(old)}
    load_strictly(connector, own, f"{fixture.name} {version}")
    return build_model(fixture, c["llm"], weights, connector, "valley")


@torch.no_grad()
def seen(fixture: Fixture, report: Report) -> dict[str, Tensor]:
    """Return the tower's tokens of each media item, float [T, 1 + P, D], and compare the stored ones."""
    c = fixture.meta["config"]
    tower = vision_model(c["clip"], fixture.part("weights/model.vision_tower.vision_model."), fixture.name)
    out = {}
    for name in ("video", "image"):
        if f"in/{name}" in fixture.tensors:
            states, _ = tower(fixture.input(name)[None])
            out[name] = states[c["mm_vision_select_layer"]][0]
            for key in fixture.outputs():
                m = re.fullmatch(r"vision_hidden_states_(-?\d+)_every_(\d+)th_token", key)
                if m and name == "video":
                    report.close(key, states[int(m[1])][0][:, :: int(m[2])], fixture.expected(key))
    return out


@torch.no_grad()
def check(fixture: Fixture) -> Report:
    """Compare everything that is stored."""
    report = fixture.report()
    tokens = seen(fixture, report)
    for version in sorted({m[1] for k in fixture.outputs() if (m := re.match(r"(v\d)/", k))}):
        compare(report, fixture, version, build(fixture, version), tokens)
    return fixture.close(report)


@torch.no_grad()
def compare(report: Report, fixture: Fixture, version: str, model: VideoLlava, tokens: dict[str, Tensor]) -> None:
    """Compare what is stored of one temporal module.

    Args:
        report: takes the findings.
        fixture: the recorded outputs.
        version: `v1`, `v2` or `v3`.
        model: any model with the fixture's weights.
        tokens: tower tokens of each media item, float [T, 1 + P, D].
    """
    projected = model.connector(tokens["video"])
    if fixture.has("projected"):
        report.close("projected", projected, fixture.expected("projected"))
    _compare_pooled(report, fixture, version, model, projected)
    cases = {}
    for key in fixture.outputs(f"{version}/"):
        case, _, what = key.partition("/")
        if what == "greedy_tokens":
            cases[f"{version}/{case}"] = [row_of(fixture, version, case, model, tokens)]
    for name, rows in cases.items():
        compare_case(report, fixture, name, model, rows)
    compare_together(report, fixture, model, cases)


def _compare_pooled(report: Report, fixture: Fixture, version: str, model: VideoLlava, projected: Tensor) -> None:
    compressor = model.connector.compressor
    assert isinstance(compressor, Valley)
    for key in fixture.outputs(f"{version}/"):
        if m := re.fullmatch(r"(pooled|frame_weights)_T(\d+)", key):
            part = projected[: int(m[2]), 1:]
            if m[1] == "pooled":
                ours = compressor.pool(part)
            else:
                assert isinstance(compressor, WeightedValley)
                ours = compressor.frame_weights(part)
            report.close(f"{version}/{key}", ours, fixture.expected(f"{version}/{key}"))


def row_of(fixture: Fixture, version: str, case: str, model: VideoLlava, tokens: dict[str, Tensor]) -> PromptSequence:
    """Return the prompt of a case; its media item has the name of the case."""
    ids = fixture.meta["config"]["token_ids"]
    slot_ids = [ids["im_patch"], ids["vi_frame"]]
    visual = model.connector.visual_tokens([tokens[case]], torch.float32) if case in tokens else []
    return make_row(
        fixture.tensors[f"in/{case}_case/input_ids"][0], slot_ids, visual, n_new(fixture, f"{version}/{case}")
    )
