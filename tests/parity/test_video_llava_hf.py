"""The transformers port of Video-LLaVA in our own parts: towers without time, connector, splice, LLM, decode loop.

Sizes come from the json, so another fixture of the same layout passes unchanged.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from vidqa.generate.decode import Row, decode
from vidqa.generate.sampling import pick_greedy
from vidqa.model.connector import build_connector
from vidqa.model.llava import VideoLlava, load_strictly
from vidqa.model.vit import VisionConfig, VisionModel
from vidqa.prompts.formats import FORMATS
from vidqa.records import Prompt

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
NAME = "video_llava_hf"
META = json.loads((GOLDEN / f"{NAME}.json").read_text())
CONFIG = META["config_json_as_saved"]
CASES = list(META["cases"])
TOLERANCE = {"atol": META["tolerance"]["atol"], "rtol": META["tolerance"]["rtol"]}
IMAGE, VIDEO = META["tokens"]["image_token_index"], META["tokens"]["video_token_index"]

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def data() -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{NAME}.safetensors")


def weights(data: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    whole = f"weights/{prefix}"
    return {k[len(whole) :]: v for k, v in data.items() if k.startswith(whole)}


def tower(data: dict[str, Tensor], kind: str) -> VisionModel:
    c = CONFIG["vision_config"]
    config = VisionConfig(
        image_size=c["image_size"],
        patch_size=c["patch_size"],
        hidden_size=c["hidden_size"],
        intermediate_size=c["intermediate_size"],
        n_layers=c["num_hidden_layers"],
        n_heads=c["num_attention_heads"],
        projection_dim=c["projection_dim"],
        hidden_act=c["hidden_act"],
        layer_norm_eps=c["layer_norm_eps"],
    )
    model = VisionModel(config).eval()
    load_strictly(model, weights(data, f"{kind}_tower."), NAME)
    return model


@pytest.fixture(scope="module")
def model(data: dict[str, Tensor]) -> VideoLlava:
    text = {k: v for k, v in CONFIG["text_config"].items() if k != "model_type"}
    llm = LlamaForCausalLM(LlamaConfig(**text)).eval()
    load_strictly(llm, weights(data, "language_model."), NAME)
    connector = build_connector("mlp2x_gelu", CONFIG["vision_config"]["hidden_size"], text["hidden_size"])
    renamed = {
        f"{new}.{k}": data[f"weights/multi_modal_projector.{old}.{k}"]
        for old, new in (("linear_1", "0"), ("linear_2", "2"))
        for k in ("weight", "bias")
    }
    load_strictly(connector, renamed, NAME)
    return VideoLlava(connector, llm, None, FORMATS["hf"], text["max_position_embeddings"]).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def visual(data: dict[str, Tensor], model: VideoLlava) -> dict[str, Tensor]:
    """Projected tokens [T * P, L] of each medium of the fixture."""
    layer = CONFIG["vision_feature_layer"]
    assert CONFIG["vision_feature_select_strategy"] == "default"
    out = {}
    names = sorted({n for case in META["cases"].values() for n in case["images"] + case["videos"]})
    with torch.no_grad():
        for name in names:
            kind = "image" if name.startswith("image") else "video"
            pixels = data[f"in/{name}"]
            states, _ = tower(data, kind)(pixels[None] if kind == "image" else pixels)
            tokens = states[layer][0]
            if (recorded := data.get(f"out/{name}_tower_hidden_states_-2")) is not None:
                torch.testing.assert_close(tokens, recorded, **TOLERANCE)
            tokens = model.connector(tokens[:, 1:] if kind == "image" else tokens)
            if (recorded := data.get(f"out/{name}_projected")) is not None:
                torch.testing.assert_close(tokens, recorded, **TOLERANCE)
            out[name] = tokens.flatten(0, 1)
    return out


def row(ids: Tensor, images: list[Tensor], videos: list[Tensor], n: int) -> Row:
    """Expanded ids -> slots, and the media in the order in which the ids name them."""
    flat = ids.numpy().astype(np.int64)
    kinds = {IMAGE: list(images), VIDEO: list(videos)}
    ordered, at = [], 0
    while at < len(flat):
        if flat[at] in kinds:
            ordered.append(kinds[int(flat[at])].pop(0))
            at += len(ordered[-1])
        else:
            at += 1
    assert not any(kinds.values())
    return Row(Prompt(flat, np.isin(flat, list(kinds))), tuple(ordered), n)


def rows_of(case: str, data: dict[str, Tensor], visual: dict[str, Tensor]) -> list[Row]:
    """The case's prompts; padding of a batch is taken off."""
    images, videos = ([visual[n] for n in META["cases"][case][kind]] for kind in ("images", "videos"))
    n = data[f"out/{case}/greedy_tokens"].shape[1]
    ids = data[f"in/{case}/input_ids"]
    if len(ids) == 1:
        return [row(ids[0], images, videos, n)]
    keep = data[f"in/{case}/attention_mask"].bool()
    media = [(images if IMAGE in one else [], videos if VIDEO in one else []) for one in ids]
    return [row(one[k], *m, n) for one, k, m in zip(ids, keep, media, strict=True)]


def test_all_cases_are_here() -> None:
    assert {"video", "image", "text", "video_image", "two_images", "video_4_frames", "batch_left_padded"} <= set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_logits(case: str, data: dict[str, Tensor], model: VideoLlava, visual: dict[str, Tensor]) -> None:
    name = "logits" if f"out/{case}/logits" in data else "logits_last16"
    for i, one in enumerate(rows_of(case, data, visual)):
        embeds = model.embed_prompt(one.prompt, one.visual)
        ours = model.llm(inputs_embeds=embeds[None]).logits[0]
        recorded = data[f"out/{case}/{name}"][i]
        n = min(len(ours), len(recorded))
        assert n == len(recorded) or case == "batch_left_padded"
        torch.testing.assert_close(ours[-n:], recorded[-n:], **TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_and_scores(
    case: str, data: dict[str, Tensor], model: VideoLlava, visual: dict[str, Tensor]
) -> None:
    scores = []

    def choose(logits: Tensor, lines: object) -> Tensor:
        scores.append(logits)
        return pick_greedy(logits)

    said = decode(model, rows_of(case, data, visual), frozenset(), choose, lambda ids: False)
    assert [s.ids for s in said] == data[f"out/{case}/greedy_tokens"].tolist()
    torch.testing.assert_close(torch.stack(scores, dim=1), data[f"out/{case}/greedy_scores"], **TOLERANCE)


def test_greedy_tokens_all_cases_in_one_batch(
    data: dict[str, Tensor], model: VideoLlava, visual: dict[str, Tensor]
) -> None:
    rows = [r for case in CASES for r in rows_of(case, data, visual)]
    said = decode(model, rows, frozenset(), lambda logits, lines: pick_greedy(logits), lambda ids: False)
    assert [s.ids for s in said] == [t for case in CASES for t in data[f"out/{case}/greedy_tokens"].tolist()]
