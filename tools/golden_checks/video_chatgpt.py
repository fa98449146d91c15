"""Video-ChatGPT: pooling, projector, splice between markers, language model, frame indices."""

from __future__ import annotations

import re
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from golden_checks.fixture import Fixture
from golden_checks.language import build_model, compare_case, compare_together, make_row, n_new
from golden_checks.report import Report
from vidqa.generate.fallback import PromptSequence
from vidqa.media.frame_sampling import frame_indices
from vidqa.model.bundle.spec import CompressorSpec
from vidqa.model.connector import Connector, build_connector
from vidqa.model.video_llava import VideoLlava, load_strictly
from vidqa.records import Features, SamplingSpec

#: Default numbers of frames of the features of each case, in order.
USUAL_FRAMES = {"batch_text_then_video": [100, 37], "two_videos": [37, 100]}


def build(fixture: Fixture) -> VideoLlava:
    """Build the model of the fixture."""
    c = fixture.meta["config"]
    spec = CompressorSpec("video_chatgpt", n_frames=c["temporal_tokens"])
    connector: Connector = build_connector(c["projector"], c["mm_hidden_size"], c["llm"]["hidden_size"], spec)
    load_strictly(connector, fixture.part("weights/model.mm_projector."), fixture.name)
    return build_model(fixture, c["llm"], fixture.part("weights/"), connector, "video-chatgpt_v1")


def features_of(fixture: Fixture, n_frames: int) -> Features:
    """Return the first frames of the fixture's features, as the encoder returns them."""
    tokens = fixture.tensors["in/features"][:n_frames].half().numpy()
    return Features(tokens, np.zeros(1, np.float32), False, "video")


@torch.no_grad()
def check(fixture: Fixture, model: VideoLlava | None = None) -> Report:
    """Compare everything that is stored, with `model` or the model of the fixture's weights."""
    report, model = fixture.report(), model or build(fixture)
    for key in fixture.outputs():
        if m := re.fullmatch(r"(pool|projected)_T(\d+)", key):
            features = features_of(fixture, int(m[2]))
            if m[1] == "pool":
                pooled = model.connector.compressor(torch.from_numpy(features.tokens))  # type: ignore[misc]
                report.exact(f"{key} rows", sum(model.media_shape(features).lengths), len(fixture.expected(key)))
                report.close(key, pooled, fixture.expected(key), 1e-3, 1e-3)  # a step of float16
            else:
                report.close(key, model.visual_tokens([features])[0], fixture.expected(key))
    cases = {k.split("/")[0]: rows_of(fixture, model, k.split("/")[0]) for k in _cases(fixture)}
    for case, rows in cases.items():
        compare_case(report, fixture, case, model, rows, fixture.tensors.get(f"in/{case}/labels"))
    compare_together(report, fixture, model, cases)
    for n, indices in fixture.meta.get("frame_indices", {}).get("vectors", {}).items():
        most = fixture.meta["config"]["temporal_tokens"]
        report.exact(f"frame indices n={n}", frame_indices(int(n), SamplingSpec("segments", most))[0], indices)
    return fixture.close(report)


def _cases(fixture: Fixture) -> list[str]:
    return [k for k in fixture.part("in/") if k.endswith("/input_ids")]


def rows_of(fixture: Fixture, model: VideoLlava, case: str) -> list[PromptSequence]:
    """Return the prompts of a case with the features that the reference uses for them.

    Each video, and each row without video, takes the next features. If a row has several videos, the original inserts
    only the last one: the others keep the embedding of the placeholder. vidqa inserts all, so the slots of the others
    are turned into ordinary tokens here.
    """
    c = fixture.meta["config"]
    left = iter([model.visual_tokens([features_of(fixture, t)])[0] for t in _frames(fixture, case)])
    rows = []
    for ids in fixture.tensors[f"in/{case}/input_ids"]:
        runs = _runs(ids, c["vid_patch_token"])
        visual = [next(left) for _ in runs or [None]]
        row = make_row(ids, [c["vid_patch_token"]], visual[-1:] if runs else [], n_new(fixture, case))
        for start, end in runs[:-1]:
            row.prompt.slots[start:end] = False
        rows.append(row)
    return rows


def _frames(fixture: Fixture, case: str) -> list[int]:
    """Return the frame counts of the features of a case, as named in its description."""
    if case == "text":
        return [1]
    described = fixture.meta["inputs"]
    usual = USUAL_FRAMES.get(case) or _named(described.get("start_end/*", "")) or [37]
    return _named(described.get(case, described.get(f"{case}/*", ""))) or usual


def _named(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\bpool[_ ]T(\d+)", text)]


def _runs(ids: Tensor, token: int) -> list[tuple[int, int]]:
    """Return start and end of each run of a token."""
    out, at = [], 0
    for value, group in groupby(ids.tolist()):
        n = len(list(group))
        if value == token:
            out.append((at, at + n))
        at += n
    return out
