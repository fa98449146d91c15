"""Finished stages -> what lies in `--out`: the model, its exports, the tables, the picture and the page.

Reads what `stagefiles` kept of each stage. Does not train, and does not know how the run came this far.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vidqa import __version__
from vidqa.common.path_text import escape_surrogates
from vidqa.model.bundle.bundle import Bundle
from vidqa.train.data import Corpus
from vidqa.train.data.rejects import Rejected, read_rejects, write_rejects
from vidqa.train.outputs.hf_export import to_transformers
from vidqa.train.outputs.report import StageFacts, draw_curves, write_report
from vidqa.train.outputs.run_dir import stage_weights
from vidqa.train.outputs.trained_bundle import InitialModel, export_projector, write_bundle
from vidqa.train.recipe.definition import Recipe
from vidqa.train.stage.metrics import read_metrics


@dataclass(frozen=True)
class RunReport:
    """What the page says of a run beside its stages."""

    settings: Mapping[str, Any]  # of the recipe, defaults included, paths as its file has them
    overrides: Sequence[str]  # `PATH=VALUE`, by which the settings are others than the file's
    fingerprint: str  # of all data
    device: str


def write_results(
    recipe: Recipe,
    start: InitialModel,
    name: str,
    out: Path,
    stages: Sequence[StageFacts],
    corpora: Sequence[Corpus],
    told: RunReport,
) -> tuple[Bundle, int]:
    """Write all that comes out of a run.

    Args:
        recipe: of the run.
        start: the base.
        name: of the model.
        out: folder of the run; `metrics.jsonl` is there.
        stages: what each of them was, in order.
        corpora: of the stages.
        told: the rest of the page.

    Returns:
        The model, and how many records were left out.

    Raises:
        VidqaError: an export is asked for that the model cannot be written as.
        TrainError: no room.
    """
    weights: dict[str, Tensor] = {}
    for stage in recipe.stage_names():
        weights |= stage_weights(out / "work" / stage)
    lora = next((stage.lora for stage in recipe.stage if "lora" in stage.parts), None)
    bundle = write_bundle(start, weights, recipe, name, out, lora)
    if recipe.output.mm_projector:
        export_projector(bundle, out / "export")
    if recipe.output.transformers:
        to_transformers(bundle, out / "export" / "transformers")
    rejected = _rejected(recipe, out)
    write_rejects(out / "rejects.parquet", rejected)
    draw_curves(read_metrics(out / "metrics.jsonl"), out / "curves.png")
    write_report(
        out / "report.md",
        title=name,
        recipe=told.settings,
        data=_sources(recipe, corpora, told),
        stages=stages,
        facts={
            "base": f"{start.base.spec.name} ({start.base.model_id})",
            "result": f"{bundle.spec.name} ({bundle.model_id})",
            "data fingerprint": told.fingerprint,
            **({"set on the command line": ", ".join(f"`{o}`" for o in told.overrides)} if told.overrides else {}),
            "device": f"{told.device}, {platform.machine()} {platform.system()}",
            "vidqa": __version__,
        },
    )
    return bundle, len(rejected)


def _rejected(recipe: Recipe, out: Path) -> list[Rejected]:
    """The rejects of all stages, each record once."""
    found: dict[tuple[str, int], Rejected] = {}
    for stage in recipe.stage_names():
        table = out / "work" / stage / "rejects.parquet"
        found |= {(r.source, r.record): r for r in (read_rejects(table) if table.exists() else [])}
    return list(found.values())


def _sources(recipe: Recipe, corpora: Sequence[Corpus], told: RunReport) -> list[dict[str, object]]:
    """A line of the page for each file that a stage learned from, and each weight that it had."""
    files = dict.fromkeys(f for corpus in corpora for f in corpus.files)
    names = {
        escape_surrogates(d.file): said["file"] for d, said in zip(recipe.data, told.settings["data"], strict=True)
    }
    return [{"file": names[f.path], "records": f.n_records, "weight": f.weight, "sha256": f.sha256[:16]} for f in files]
