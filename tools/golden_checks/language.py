"""A language model from stored weights, and the comparison of its logits, loss and greedy tokens."""

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
from vidqa.generate.fallback_decode import Row, decode
from vidqa.generate.sampling import pick_greedy
from vidqa.model.connector import Connector
from vidqa.model.video_llava import VideoLlava, load_strictly
from vidqa.prompts.chat_formats import FORMATS
from vidqa.records import Prompt


def build_model(
    fixture: Fixture, config: dict[str, Any], weights: dict[str, Tensor], connector: Connector, chat: str
) -> VideoLlava:
    """A whole model around `connector`; `weights` by the names of a Llama of transformers, others are left alone."""
    llm = LlamaForCausalLM(LlamaConfig(**config)).eval()
    own = ("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.")
    kept = {k: v for k, v in weights.items() if k.startswith(own) and "inv_freq" not in k}
    load_strictly(llm, kept, fixture.name)
    model = VideoLlava(connector, llm, None, FORMATS[chat], config["max_position_embeddings"])
    return model.eval().requires_grad_(False)


def make_row(ids: Tensor, places: Sequence[int], visual: Sequence[Tensor], n: int) -> Row:
    """A prompt [S] whose ids name the places of visual tokens one by one."""
    flat = ids.numpy().astype(np.int64)
    return Row(Prompt(flat, np.isin(flat, list(places))), tuple(visual), n)


def greedy(model: VideoLlava, rows: Sequence[Row]) -> tuple[list[list[int]], Tensor]:
    """New tokens of each row by our own decode loop, and the logits of each step, float [B, n, vocabulary]."""
    scores: list[Tensor] = []

    def choose(logits: Tensor, lines: object) -> Tensor:
        scores.append(logits)
        return pick_greedy(logits)

    said = decode(model, rows, frozenset(), choose, lambda ids: False)
    return [s.ids for s in said], torch.stack(scores, dim=1)


def n_new(fixture: Fixture, case: str) -> int:
    """How many tokens the reference said."""
    return int(fixture.tensors[f"out/{case}/greedy_tokens"].shape[1])


def compare_case(
    report: Report, fixture: Fixture, case: str, model: VideoLlava, rows: Sequence[Row], labels: Tensor | None = None
) -> None:
    """Logits (whole, the last ones, or every n-th), loss, greedy tokens and their scores of one stored case."""
    forms = [k for k in fixture.outputs(f"{case}/") if k.startswith("logits")]
    logits = [model.llm(inputs_embeds=model.embed_prompt(r.prompt, r.visual)[None]).logits[0] for r in rows]
    for form in forms:
        want = fixture.want(f"{case}/{form}")
        for i, (ours, theirs) in enumerate(zip(logits, want, strict=True)):
            got, theirs = _cut(form, ours, theirs)
            report.close(f"{case} {form}" + (f" row {i}" if len(rows) > 1 else ""), got, theirs)
    if labels is not None and fixture.has(f"{case}/loss"):
        ids = torch.stack([torch.from_numpy(r.prompt.ids) for r in rows])
        slots = torch.stack([torch.from_numpy(r.prompt.slots) for r in rows])
        media = [v for r in rows for v in r.visual]
        width = model.connector.out_size
        loss = model(ids, slots, torch.cat(media) if media else torch.empty(0, width), labels=labels).loss
        report.close(f"{case} loss", loss[None], fixture.want(f"{case}/loss"))
    if fixture.has(f"{case}/greedy_tokens"):
        ids_said, scores = greedy(model, rows)
        report.tokens(f"{case} greedy tokens", ids_said, fixture.want(f"{case}/greedy_tokens"))
        if fixture.has(f"{case}/greedy_scores"):
            report.close(f"{case} greedy scores", scores, fixture.want(f"{case}/greedy_scores"))


def compare_together(report: Report, fixture: Fixture, model: VideoLlava, cases: dict[str, list[Row]]) -> None:
    """All cases in one batch say what each says alone."""
    flat = [row for rows in cases.values() for row in rows]
    wanted = [fixture.tensors[f"out/{case}/greedy_tokens"].tolist() for case in cases]
    said, _ = greedy(model, flat)
    report.tokens("all cases in one batch", said, [row for rows in wanted for row in rows])


def _cut(form: str, ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """The part of our logits [S, vocabulary] that is stored under a name; a row that was padded in front is shorter."""
    if m := re.fullmatch(r"logits_every_(\d+)th", form):
        return ours[:: int(m[1])], theirs
    if form == "logits" or re.fullmatch(r"logits_last\d+", form):
        n = min(len(ours), len(theirs)) if form != "logits" else len(ours)
        return ours[-n:], theirs[-n:] if form != "logits" else theirs
    raise ValueError(f"unknown form of logits {form!r}")
