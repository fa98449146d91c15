"""Compares the original Video-LLaVA: towers, projector, placeholders, language model, and a training batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

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
    c = fixture.meta["config"]
    connector = build_connector(c["mm_projector_type"], c["mm_hidden_size"], c["llm"]["hidden_size"])
    load_strictly(connector, fixture.part("weights/model.mm_projector."), fixture.name)
    config = c["llm"] | {"rope_theta": c.get("rope_theta", 10000.0), "bos_token_id": c.get("bos_token_id", 1)}
    return build_model(fixture, config, fixture.part("weights/"), connector, "vicuna_v1")


@torch.no_grad()
def seen(fixture: Fixture, model: VideoLlava, report: Report) -> dict[str, list[Tensor]]:
    """Return the projected tokens of each media item, one tensor per frame; compare the stored outputs on the way."""
    c = fixture.meta["config"]
    out: dict[str, list[Tensor]] = {}
    for name in sorted({n for case in fixture.meta["media"].values() for n in case["images_list"]}):
        kind = "video" if name.startswith("video") else "image"
        weights = fixture.part(f"weights/model.{kind}_tower.{kind}_tower.")
        tower = vision_model(c["vision"][f"{kind}_tower"], weights, fixture.name)
        pixels = fixture.input(name)
        states, _ = tower(pixels.transpose(0, 1)[None] if kind == "video" else pixels[None, None])
        tokens = states[c["mm_vision_select_layer"]][0]
        tokens = tokens if kind == "video" else tokens[:, 1:]  # the video tower always keeps the class token
        out[name] = list(model.connector(tokens))
        for key, ours in ((f"{name}_tower_features", tokens), (f"{name}_projected", torch.stack(out[name]))):
            if fixture.has(key):
                expected = fixture.expected(key)
                report.close(key, ours if kind == "image" else ours[None], expected)
    return out


def row_of(fixture: Fixture, ids: Tensor, frames: Sequence[Tensor], n: int = 1) -> PromptSequence:
    """Convert ids [S] with one placeholder per frame into a prompt with one slot per visual token."""
    placeholder = fixture.meta["config"]["image_token_index"]
    left = iter(frames)
    pieces = ([placeholder] * len(next(left)) if i == placeholder else [i] for i in ids.tolist())
    flat = np.array(list(chain.from_iterable(pieces)), dtype=np.int64)
    if next(left, None) is not None:
        raise ValueError("more frames than placeholders")
    return PromptSequence(Prompt(flat, flat == placeholder), tuple(frames), n)


@torch.no_grad()
def check(fixture: Fixture) -> Report:
    """Compare everything that is stored."""
    report, model = fixture.report(), build(fixture)
    visual = seen(fixture, model, report)
    cases = {}
    for case, media in fixture.meta["media"].items():
        frames = list(chain.from_iterable(visual[name] for name in media["images_list"]))
        row = row_of(fixture, fixture.tensors[f"in/{case}/input_ids"][0], frames, n_new(fixture, case))
        cases[case] = [row]
        if fixture.has(f"{case}/inputs_embeds"):
            report.close(
                f"{case} embeddings",
                model.embed_prompt(row.prompt, row.visual)[None],
                fixture.expected(f"{case}/inputs_embeds"),
            )
        if fixture.has(f"{case}/attention_mask"):
            report.exact(
                f"{case} length", [1] * len(row.prompt.ids), fixture.expected(f"{case}/attention_mask")[0].tolist()
            )
        labels = fixture.expected(f"{case}/labels") if fixture.has(f"{case}/labels") else None
        compare_case(report, fixture, case, model, [row], labels)
    compare_together(report, fixture, model, cases)
    for side in ("right", "left", "truncated"):
        if fixture.has(f"batch_{side}/labels"):
            _compare_batch(report, fixture, model, side, _rows_of_batch(fixture, cases))
    return fixture.close(report)


def _rows_of_batch(fixture: Fixture, cases: Mapping[str, Sequence[PromptSequence]]) -> list[PromptSequence]:
    """Return the single cases in a batch, identified by their ids."""
    by_ids = {tuple(fixture.tensors[f"in/{case}/input_ids"][0].tolist()): rows[0] for case, rows in cases.items()}
    batch = zip(fixture.tensors["in/batch/input_ids"], fixture.tensors["in/batch/attention_mask"].bool(), strict=True)
    return [by_ids[tuple(ids[mask].tolist())] for ids, mask in batch]


def _compare_batch(
    report: Report, fixture: Fixture, model: VideoLlava, side: str, rows: Sequence[PromptSequence]
) -> None:
    """Compare a training batch of rows with different media, padded on one side or cut after the visual tokens."""
    name = f"batch_{side}"
    mask, labels = fixture.expected(f"{name}/attention_mask"), fixture.expected(f"{name}/labels")
    width = mask.shape[1]
    lengths = [min(len(r.prompt.ids), width) for r in rows]
    report.exact(f"{name} lengths", lengths, mask.sum(1).tolist())
    ids, slots = torch.zeros(mask.shape, dtype=torch.int64), torch.zeros(mask.shape, dtype=torch.bool)
    media: list[Tensor] = []
    for i, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        at = slice(width - n, width) if side == "left" else slice(0, n)
        ids[i, at] = torch.from_numpy(row.prompt.ids)[:n]
        slots[i, at] = torch.from_numpy(row.prompt.slots)[:n]
        joined = torch.cat(row.visual) if row.visual else torch.empty(0, model.connector.out_size)
        media.append(joined[: int(slots[i].sum())])
    visual = torch.cat(media)
    if fixture.has(f"{name}/inputs_embeds"):
        embeds = fixture.expected(f"{name}/inputs_embeds")
        report.close(f"{name} embeddings", model.embed(ids, slots, visual)[mask], embeds[mask])
    loss = model(ids, slots, visual, mask=mask.long(), labels=labels).loss
    report.close(f"{name} loss", loss[None], fixture.expected(f"{name}/loss"))
