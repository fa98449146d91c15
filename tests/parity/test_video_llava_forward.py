"""Towers, connector, splice, LLM and our own decode loop against recorded outputs of the original Video-LLaVA.

Sizes come from the json, so another fixture of the same layout passes unchanged.
"""

from __future__ import annotations

import json
from itertools import chain
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
NAME = "video_llava_forward"
META = json.loads((GOLDEN / f"{NAME}.json").read_text())
CASES = list(META["media"])
TOLERANCE = {"atol": META["tolerance"]["atol"], "rtol": META["tolerance"]["rtol"]}
PLACEHOLDER, IGNORED = META["config"]["image_token_index"], META["config"]["ignore_index"]

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def data() -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{NAME}.safetensors")


def weights(data: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    whole = f"weights/{prefix}"
    return {k[len(whole) :]: v for k, v in data.items() if k.startswith(whole)}


def tower(data: dict[str, Tensor], kind: str) -> VisionModel:
    c = META["config"]["vision"][f"{kind}_tower"]
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
        temporal_length=c["num_frames"] if c.get("add_time_attn") else 0,
    )
    model = VisionModel(config).eval()
    load_strictly(model, weights(data, f"model.{kind}_tower.{kind}_tower."), NAME)
    return model


@pytest.fixture(scope="module")
def model(data: dict[str, Tensor]) -> VideoLlava:
    c = META["config"]
    config = LlamaConfig(**c["llm"], rope_theta=c["rope_theta"], bos_token_id=c["bos_token_id"])
    llm = LlamaForCausalLM(config).eval()
    own = {k: v for k, v in weights(data, "model.").items() if k.startswith(("layers.", "embed_tokens.", "norm."))}
    named = {f"model.{k}": v for k, v in own.items() if "inv_freq" not in k}
    load_strictly(llm, named | {"lm_head.weight": data["weights/lm_head.weight"]}, NAME)
    connector = build_connector(c["mm_projector_type"], c["mm_hidden_size"], c["llm"]["hidden_size"])
    load_strictly(connector, weights(data, "model.mm_projector."), NAME)
    context = c["llm"]["max_position_embeddings"]
    return VideoLlava(connector, llm, None, FORMATS["vicuna_v1"], context).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def visual(data: dict[str, Tensor], model: VideoLlava) -> dict[str, list[Tensor]]:
    """Projected tokens of each medium, one tensor a frame."""
    layer = META["config"]["mm_vision_select_layer"]
    out = {}
    with torch.no_grad():
        for name in ("image", "image2"):
            states, _ = tower(data, "image")(data[f"in/{name}"][None, None])
            tokens = states[layer][0, :, 1:]
            if name == "image":
                torch.testing.assert_close(tokens, data["out/image_tower_features"], **TOLERANCE)
            out[name] = list(model.connector(tokens))
        states, _ = tower(data, "video")(data["in/video"].transpose(0, 1)[None])
        torch.testing.assert_close(states[layer][0], data["out/video_tower_features"][0], **TOLERANCE)
        out["video"] = list(model.connector(states[layer][0]))
    torch.testing.assert_close(out["image"][0], data["out/image_projected"][0], **TOLERANCE)
    torch.testing.assert_close(torch.stack(out["video"]), data["out/video_projected"][0], **TOLERANCE)
    return out


def row(ids: Tensor, frames: list[Tensor], n: int = 1) -> Row:
    """Ids [S] with one placeholder a frame -> prompt with one slot a token."""
    left = iter(frames)
    pieces = ([PLACEHOLDER] * len(next(left)) if i == PLACEHOLDER else [i] for i in ids.tolist())
    flat = np.array(list(chain.from_iterable(pieces)), dtype=np.int64)
    assert next(left, None) is None
    return Row(Prompt(flat, flat == PLACEHOLDER), tuple(frames), n)


@pytest.fixture(scope="module")
def rows(data: dict[str, Tensor], visual: dict[str, list[Tensor]]) -> dict[str, Row]:
    n = data[f"out/{CASES[0]}/greedy_tokens"].shape[1]
    out = {}
    for case in CASES:
        frames = list(chain.from_iterable(visual[name] for name in META["media"][case]["images_list"]))
        out[case] = row(data[f"in/{case}/input_ids"][0], frames, n)
    return out


def test_all_cases_are_here() -> None:
    assert {"video", "image", "text", "video_image", "image_video", "two_images"} <= set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_embeddings_logits_and_loss(
    case: str, data: dict[str, Tensor], model: VideoLlava, rows: dict[str, Row]
) -> None:
    one = rows[case]
    embeds = model.embed_prompt(one.prompt, one.visual)
    if f"out/{case}/inputs_embeds" in data:
        torch.testing.assert_close(embeds, data[f"out/{case}/inputs_embeds"][0], **TOLERANCE)
    else:
        assert case == "text"
    labels = data[f"out/{case}/labels"]
    ids, slots = torch.from_numpy(one.prompt.ids)[None], torch.from_numpy(one.prompt.slots)[None]
    joined = torch.cat(one.visual) if one.visual else embeds[:0]
    out = model(ids, slots, joined, labels=labels)
    torch.testing.assert_close(out.logits, data[f"out/{case}/logits"], **TOLERANCE)
    torch.testing.assert_close(out.loss, data[f"out/{case}/loss"][0], **TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_and_scores_alone(
    case: str, data: dict[str, Tensor], model: VideoLlava, rows: dict[str, Row]
) -> None:
    scores = []

    def choose(logits: Tensor, lines: object) -> Tensor:
        scores.append(logits)
        return pick_greedy(logits)

    (said,) = decode(model, [rows[case]], frozenset(), choose, lambda ids: False)
    assert said.ids == data[f"out/{case}/greedy_tokens"][0].tolist()
    assert said.reason == "length"
    torch.testing.assert_close(torch.cat(scores), data[f"out/{case}/greedy_scores"][0], **TOLERANCE)


def test_greedy_tokens_all_cases_in_one_batch(data: dict[str, Tensor], model: VideoLlava, rows: dict[str, Row]) -> None:
    said = decode(model, list(rows.values()), frozenset(), lambda logits, lines: pick_greedy(logits), lambda ids: False)
    assert [s.ids for s in said] == [data[f"out/{case}/greedy_tokens"][0].tolist() for case in CASES]


def test_training_batch_padded_on_the_right(
    data: dict[str, Tensor], model: VideoLlava, visual: dict[str, list[Tensor]]
) -> None:
    """Rows of different media in one batch; the padding of a row changes neither its embeddings nor the loss."""
    embeds, mask, labels = (data[f"out/batch_right/{k}"] for k in ("inputs_embeds", "attention_mask", "labels"))
    media = [visual["video"], visual["image"], []]
    built = [
        row(ids[keep], frames)
        for ids, keep, frames in zip(data["in/batch/input_ids"], data["in/batch/attention_mask"], media, strict=True)
    ]
    assert [len(b.prompt.ids) for b in built] == mask.sum(1).tolist()
    ids = torch.zeros(mask.shape, dtype=torch.int64)
    slots = torch.zeros(mask.shape, dtype=torch.bool)
    for i, one in enumerate(built):
        ids[i, : len(one.prompt.ids)] = torch.from_numpy(one.prompt.ids)
        slots[i, : len(one.prompt.ids)] = torch.from_numpy(one.prompt.slots)
    joined = torch.cat(list(chain.from_iterable(media)))
    ours = model.embed(ids, slots, joined)
    torch.testing.assert_close(ours[mask], embeds[mask], **TOLERANCE)
    loss = model(ids, slots, joined, mask=mask.long(), labels=labels).loss
    torch.testing.assert_close(loss, data["out/batch_right/loss"][0], **TOLERANCE)
    assert (labels != IGNORED).sum() > 0
