"""What a run was -> one page of Markdown, and its loss curves as a picture. Pillow draws: nothing else is needed.

Knows numbers and texts. Does not know models.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from vidqa.common.atomic_io import atomic_write
from vidqa.common.display import human_bytes

_SIZE, _MARGIN = (960, 480), (70, 30, 30, 45)  # pixels; left, top, right, bottom
_INK, _GRID, _COLOURS = (40, 40, 40), (225, 225, 225), ((31, 119, 180), (214, 39, 40))
#: Share of the latest value in the drawn mean: single steps of small batches hide the trend. Of a short stage, the mean
#: goes over about a fifth of the steps.
_SMOOTH, _FIFTH = 0.05, 5


@dataclass(frozen=True)
class StageFacts:
    """What the report says of a stage; kept beside its weights, so that a run that goes on can tell it."""

    name: str
    n_steps: int
    n_samples: int
    n_tokens: int
    n_weights: int  # that learned
    seconds: float
    peak_bytes: int
    per_device: int
    processes: int
    final_loss: float
    eval_loss: float | None
    rejects: Mapping[str, int]


def write_report(
    path: Path,
    *,
    title: str,
    recipe: Mapping[str, Any],
    data: Sequence[Mapping[str, Any]],
    stages: Sequence[StageFacts],
    facts: Mapping[str, str],
) -> None:
    """Write `report.md`.

    Args:
        path: of the page.
        title: name of the model.
        recipe: all settings, defaults included.
        data: one mapping for each source: file, records, weight, sha256.
        stages: in order.
        facts: single lines: base, result, versions, device, fingerprint.
    """
    lines = [f"# {title}", "", *(f"- {key}: {value}" for key, value in facts.items()), ""]
    if any(stage.n_steps for stage in stages):
        lines += ["![Loss over the steps of all stages](curves.png)", ""]
    lines += ["## Stages", ""]
    lines += _table([_stage_row(stage) for stage in stages])
    lines += ["", "## Data", ""]
    lines += _table([{k: str(v) for k, v in source.items()} for source in data])
    lines += ["", "## Left out", ""]
    rejected = [(stage.name, kind, n) for stage in stages for kind, n in stage.rejects.items()]
    lines += [f"- {name}: {n} {kind}" for name, kind, n in rejected] or ["Nothing."]
    lines += ["", "All of them are in rejects.parquet."] if rejected else []
    lines += ["", "## Settings", "", "```json"]
    lines += [json.dumps(recipe, indent=1), "```", ""]
    with atomic_write(path) as f:
        f.write("\n".join(lines).encode())


def _stage_row(stage: StageFacts) -> dict[str, str]:
    rate = stage.n_tokens / stage.seconds if stage.seconds else 0.0
    return {
        "stage": stage.name,
        "steps": str(stage.n_steps),
        "samples": str(stage.n_samples),
        "weights that learned": f"{stage.n_weights:,}",
        "processes x at once": f"{stage.processes} x {stage.per_device}",
        "time": f"{stage.seconds:.1f} s",
        "tokens/s": f"{rate:.0f}",
        "peak memory": human_bytes(stage.peak_bytes),
        "last loss": f"{stage.final_loss:.4f}",
        "held-out loss": "" if stage.eval_loss is None else f"{stage.eval_loss:.4f}",
    }


def _table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    if not rows:
        return ["Nothing."]
    names = list(rows[0])
    cells = [[str(row[name]).replace("|", "\\|") for name in names] for row in rows]
    return [f"| {' | '.join(line)} |" for line in (names, ["---"] * len(names), *cells)]


def draw_curves(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the loss over the steps, stage after stage: each step faint, their running mean, held-out points in red.

    Args:
        lines: of metrics.jsonl.
        path: a PNG.
    """
    picture = Image.new("RGB", _SIZE, "white")
    pen = ImageDraw.Draw(picture)
    losses = [float(line["loss"]) for line in lines]
    held_out = [(n, float(line["eval_loss"])) for n, line in enumerate(lines) if "eval_loss" in line]
    top = max([*losses, *(y for _, y in held_out), 1e-9]) * 1.05
    left, up, right, down = _MARGIN
    width, height = _SIZE[0] - left - right, _SIZE[1] - up - down

    def at(n: float, loss: float) -> tuple[float, float]:
        return left + width * n / max(1, len(lines) - 1), up + height * (1 - loss / top)

    for k in range(6):
        y = at(0, top * k / 5)[1]
        pen.line([(left, y), (left + width, y)], fill=_GRID)
        pen.text((8, y - 6), f"{top * k / 5:.3g}", fill=_INK)
    for n, line in enumerate(lines):
        if n == 0 or line["stage"] != lines[n - 1]["stage"]:
            x = at(n, 0)[0]
            pen.line([(x, up), (x, up + height)], fill=_INK)
            pen.text((x + 4, up + 4), str(line["name"]), fill=_INK)
    if len(lines) > 1:
        pen.line([at(n, y) for n, y in enumerate(losses)], fill=tuple(255 - (255 - c) // 3 for c in _COLOURS[0]))
        pen.line([at(n, y) for n, y in enumerate(_smoothed(lines))], fill=_COLOURS[0], width=2)
    for n, y in held_out:
        a, b = at(n, y)
        pen.ellipse([a - 4, b - 4, a + 4, b + 4], fill=_COLOURS[1])
    pen.text((left, _SIZE[1] - 24), f"{len(lines)} steps; loss per token, held-out points in red", fill=_INK)
    with atomic_write(path) as f:
        picture.save(f, "PNG")


def _smoothed(lines: Sequence[Mapping[str, Any]]) -> list[float]:
    """Mean of a stage so far, in which older steps count less and less."""
    out: list[float] = []
    n_before = 0
    n_steps = Counter(line["stage"] for line in lines)
    for n, line in enumerate(lines):
        n_before = 0 if n == 0 or line["stage"] != lines[n - 1]["stage"] else n_before + 1
        mean = out[-1] if n_before else 0.0
        share = max(_SMOOTH, _FIFTH / n_steps[line["stage"]], 1 / (n_before + 1))
        out.append(mean + min(1.0, share) * (float(line["loss"]) - mean))
    return out
