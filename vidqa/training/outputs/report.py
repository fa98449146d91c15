"""Results of finished stages -> `--out`: model, exports, tables, loss curves and `report.md`."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vidqa import __version__
from vidqa.common.atomic_io import atomic_write
from vidqa.common.display import human_bytes
from vidqa.common.path_text import escape_surrogates
from vidqa.model.bundle.bundle import Bundle
from vidqa.training.data.corpus import Corpus
from vidqa.training.data.rejects import Rejected, read_rejects, write_rejects
from vidqa.training.outputs.hf_export import export_transformers
from vidqa.training.outputs.plots import NO_MATPLOTLIB, has_matplotlib, loss_curves, save_figure
from vidqa.training.outputs.run_dir import StageFacts, load_stage_weights
from vidqa.training.outputs.trained_bundle import InitialModel, export_projector, write_bundle
from vidqa.training.recipe.definition import Recipe
from vidqa.training.stage.metrics import read_metrics


@dataclass(frozen=True)
class RunReport:
    """Facts about a run for `report.md`, besides those of its stages."""

    settings: Mapping[str, Any]  # recipe including defaults, with paths as written in its file
    overrides: Sequence[str]  # `PATH=VALUE` of the command line
    fingerprint: str  # digest of all training data
    device: str


def write_results(
    recipe: Recipe,
    initial: InitialModel,
    name: str,
    out: Path,
    stages: Sequence[StageFacts],
    corpora: Sequence[Corpus],
    report: RunReport,
) -> tuple[Bundle, int]:
    """Write everything that a run produces.

    Args:
        recipe: recipe of the run.
        initial: the model that the stages started from.
        name: name of the new model.
        out: folder of the run, with `metrics.jsonl`.
        stages: facts about all stages, in order.
        corpora: training data of all stages.
        report: facts about the run.

    Returns:
        The model, and the number of rejected records.

    Raises:
        VidqaError: a requested export is not possible.
        TrainError: the disk is full.
    """
    weights: dict[str, Tensor] = {}
    for stage in recipe.stage_names():
        weights |= load_stage_weights(out / "work" / stage)
    lora = next((stage.lora for stage in recipe.stage if "lora" in stage.parts), None)
    bundle = write_bundle(initial, weights, recipe, name, out, lora)
    if recipe.output.mm_projector:
        export_projector(bundle, out / "export")
    if recipe.output.transformers:
        export_transformers(bundle, out / "export" / "transformers")
    rejected = _rejected(recipe, out)
    write_rejects(out / "rejects.parquet", rejected)
    curves = None
    if has_matplotlib():
        curves = save_figure(out / "curves.png", loss_curves(read_metrics(out / "metrics.jsonl")))
    write_report(
        out / "report.md",
        title=name,
        facts={
            "base": f"{initial.base.spec.name} ({initial.base.model_id})",
            "result": f"{bundle.spec.name} ({bundle.model_id})",
            "data fingerprint": report.fingerprint,
            **({"set on the command line": ", ".join(f"`{o}`" for o in report.overrides)} if report.overrides else {}),
            "device": f"{report.device}, {platform.machine()} {platform.system()}",
            "vidqa": __version__,
        },
        curves=curves,
        stages=stages,
        data=_data_rows(recipe, corpora, report),
        settings=report.settings,
    )
    return bundle, len(rejected)


def write_report(
    path: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    curves: Path | None,
    stages: Sequence[StageFacts],
    data: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> None:
    """Write `report.md`.

    Args:
        path: path of the page.
        title: name of the model.
        facts: single lines: base, result, version, device, fingerprint.
        curves: PNG of the loss curves, in the folder of the page; None if there is none.
        stages: facts about all stages, in order.
        data: one row per source: file, records, weight, sha256.
        settings: settings of the recipe, including defaults.
    """
    lines = [f"# {title}", "", *(f"- {key}: {value}" for key, value in facts.items()), ""]
    if any(stage.n_steps for stage in stages):
        image = f"![Loss over the steps of all stages]({curves.name})" if curves else f"Loss curves: {NO_MATPLOTLIB}"
        lines += [image, ""]
    lines += ["## Stages", ""]
    lines += _table([_stage_row(stage) for stage in stages])
    lines += ["", "## Data", ""]
    lines += _table([{k: str(v) for k, v in source.items()} for source in data])
    lines += ["", "## Rejected records", ""]
    rejected = [(stage.name, kind, n) for stage in stages for kind, n in stage.rejects.items()]
    lines += [f"- {name}: {n} {kind}" for name, kind, n in rejected] or ["None."]
    lines += ["", "All of them are in rejects.parquet."] if rejected else []
    lines += ["", "## Settings", "", "```json"]
    lines += [json.dumps(settings, indent=1), "```", ""]
    with atomic_write(path) as f:
        f.write("\n".join(lines).encode())


def _stage_row(stage: StageFacts) -> dict[str, str]:
    rate = stage.n_tokens / stage.seconds if stage.seconds else 0.0
    return {
        "stage": stage.name,
        "steps": str(stage.n_steps),
        "samples": str(stage.n_samples),
        "trained weights": f"{stage.n_weights:,}",
        "processes x batch size": f"{stage.processes} x {stage.per_device}",
        "time": f"{stage.seconds:.1f} s",
        "tokens/s": f"{rate:.0f}",
        "peak memory": human_bytes(stage.peak_bytes),
        "final loss": "none" if stage.final_loss is None else f"{stage.final_loss:.4f}",
        "held-out loss": "" if stage.eval_loss is None else f"{stage.eval_loss:.4f}",
    }


def _table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    if not rows:
        return ["None."]
    names = list(rows[0])
    cells = [[str(row[name]).replace("|", "\\|") for name in names] for row in rows]
    return [f"| {' | '.join(line)} |" for line in (names, ["---"] * len(names), *cells)]


def _rejected(recipe: Recipe, out: Path) -> list[Rejected]:
    """Return the rejected records of all stages, each once."""
    found: dict[tuple[str, int], Rejected] = {}
    for stage in recipe.stage_names():
        table = out / "work" / stage / "rejects.parquet"
        found |= {(r.source, r.record): r for r in (read_rejects(table) if table.exists() else [])}
    return list(found.values())


def _data_rows(recipe: Recipe, corpora: Sequence[Corpus], report: RunReport) -> list[dict[str, object]]:
    """Return one row for each file of the training data and each weight that it was used with."""
    files = dict.fromkeys(f for corpus in corpora for f in corpus.files)
    written = report.settings["data"]
    names = {escape_surrogates(d.file): row["file"] for d, row in zip(recipe.data, written, strict=True)}
    return [{"file": names[f.path], "records": f.n_records, "weight": f.weight, "sha256": f.sha256[:16]} for f in files]
