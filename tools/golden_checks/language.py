"""Builds a language model from stored weights and compares its logits, loss and greedy tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from golden_checks.fixture import Fixture
from golden_checks.report import Report
from vidqa.generate.fallback import PromptSequence, decode
from vidqa.generate.requests import StoppingCriteria
from vidqa.generate.sampling import pick_greedy
from vidqa.model.connector import Connector
from vidqa.model.video_llava import VideoLlava, load_strictly
from vidqa.prompts.chat_formats import FORMATS
from vidqa.records import Prompt


def build_model(
    fixture: Fixture, config: dict[str, Any], weights: dict[str, Tensor], connector: Connector, chat: str
) -> VideoLlava:
    """Build a model around `connector`; `weights` are named as in transformers' Llama, others are ignored."""
    llm = LlamaForCausalLM(LlamaConfig(**config)).eval()
    own = ("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.")
    kept = {k: v for k, v in weights.items() if k.startswith(own) and "inv_freq" not in k}
    load_strictly(llm, kept, fixture.name)
    model = VideoLlava(connector, llm, None, FORMATS[chat], config["max_position_embeddings"])
    return model.eval().requires_grad_(False)


def make_row(ids: Tensor, slot_ids: Sequence[int], visual: Sequence[Tensor], n: int) -> PromptSequence:
    """Build a row from a prompt [S]; every id in `slot_ids` is the slot of one visual token."""
    flat = ids.numpy().astype(np.int64)
    return PromptSequence(Prompt(flat, np.isin(flat, list(slot_ids))), tuple(visual), n)


def greedy(model: VideoLlava, rows: Sequence[PromptSequence]) -> tuple[list[list[int]], Tensor]:
    """Decode greedily with vidqa's loop; return the new ids of each row and the logits float [B, n, vocabulary]."""
    scores: list[Tensor] = []

    def pick(logits: Tensor, indices: object) -> Tensor:
        scores.append(logits)
        return pick_greedy(logits)

    sequences = decode(model, rows, StoppingCriteria(frozenset(), lambda ids: False), pick)
    return [s.ids for s in sequences], torch.stack(scores, dim=1)


def n_new(fixture: Fixture, case: str) -> int:
    """Return the number of tokens that the reference generated."""
    return int(fixture.tensors[f"out/{case}/greedy_tokens"].shape[1])


def compare_case(
    report: Report,
    fixture: Fixture,
    case: str,
    model: VideoLlava,
    rows: Sequence[PromptSequence],
    labels: Tensor | None = None,
) -> None:
    """Compare logits (all, the last, or every n-th), loss, greedy tokens and their scores of one stored case."""
    forms = [k for k in fixture.outputs(f"{case}/") if k.startswith("logits")]
    logits = [model.llm(inputs_embeds=model.embed_prompt(r.prompt, r.visual)[None]).logits[0] for r in rows]
    for form in forms:
        expected = fixture.expected(f"{case}/{form}")
        for i, (ours, theirs) in enumerate(zip(logits, expected, strict=True)):
            got, theirs = _cut(form, ours, theirs)
            report.close(f"{case} {form}" + (f" row {i}" if len(rows) > 1 else ""), got, theirs)
    if labels is not None and fixture.has(f"{case}/loss"):
        ids = torch.stack([torch.from_numpy(r.prompt.ids) for r in rows])
        slots = torch.stack([torch.from_numpy(r.prompt.slots) for r in rows])
        media = [v for r in rows for v in r.visual]
        width = model.connector.out_size
        loss = model(ids, slots, torch.cat(media) if media else torch.empty(0, width), labels=labels).loss
        report.close(f"{case} loss", loss[None], fixture.expected(f"{case}/loss"))
    if fixture.has(f"{case}/greedy_tokens"):
        new_ids, scores = greedy(model, rows)
        report.tokens(f"{case} greedy tokens", new_ids, fixture.expected(f"{case}/greedy_tokens"))
        if fixture.has(f"{case}/greedy_scores"):
            report.close(f"{case} greedy scores", scores, fixture.expected(f"{case}/greedy_scores"))


def compare_together(
    report: Report, fixture: Fixture, model: VideoLlava, cases: dict[str, list[PromptSequence]]
) -> None:
    """Check that all cases decoded in one batch produce the same tokens as separately."""
    flat = [row for rows in cases.values() for row in rows]
    expected = [fixture.tensors[f"out/{case}/greedy_tokens"].tolist() for case in cases]
    new_ids, _ = greedy(model, flat)
    report.tokens("all cases in one batch", new_ids, [row for rows in expected for row in rows])


def _cut(form: str, ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Select the stored part of our logits [S, vocabulary]; a row with left padding is shorter."""
    if m := re.fullmatch(r"logits_every_(\d+)th", form):
        return ours[:: int(m[1])], theirs
    if form == "logits" or re.fullmatch(r"logits_last\d+", form):
        n = min(len(ours), len(theirs)) if form != "logits" else len(ours)
        return ours[-n:], theirs[-n:] if form != "logits" else theirs
    raise ValueError(f"unknown form of logits {form!r}")
