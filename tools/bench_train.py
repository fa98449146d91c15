"""Benchmark training: seconds per step with cached features and with features encoded again at every step.

    python tools/bench_train.py                    the demo model on the example clips
    python tools/bench_train.py --steps 20 --batch 16

Both stages (connector; connector and LLM) run twice over the same batches from the same weights: once with
`--encode cache`, which encodes before the clock starts, and once with `--encode on-the-fly`. The largest difference of
their losses is printed next to the times. Prints a table; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from vidqa import __version__
from vidqa.common.devices import cpu_threads
from vidqa.pipeline.run.run_options import RunOptions
from vidqa.pipeline.train import train
from vidqa.training.stage.metrics import read_metrics

RECIPES = Path(__file__).resolve().parent.parent / "examples" / "recipes"
WAYS = ("cache", "on-the-fly")
#: Warm-up steps of each stage, not measured: they open sessions and allocate buffers.
WARM = 2
#: Allowed difference of the losses of the two ways in any step; on a GPU a margin for bfloat16, not yet measured.
LOSS_TOLERANCE = {"cpu": 1e-3, "cuda": 0.1}


def recipe(folder: Path, model: str, batch: int, steps: int) -> Path:
    """Write the recipe of the benchmark."""
    stage = f"steps = {steps + WARM}\nbatch_size = {batch}\nper_device_batch_size = {batch}\n"
    text = (
        f"[model]\nbase = {json.dumps(model)}\n"
        f"[[data]]\nfile = {json.dumps(str(RECIPES / 'small.json'))}\n"
        f"media = {json.dumps(str(RECIPES.parent / 'clips'))}\n"
        f'[[stage]]\nkind = "connector"\nlearning_rate = 1e-4\n{stage}'
        f'[[stage]]\nkind = "instruct"\nlearning_rate = 1e-5\n{stage}'
        "[output]\nmm_projector = false\n"
    )
    path = folder / "bench.toml"
    path.write_text(text)
    return path


def run(way: str, path: Path, folder: Path, device: str) -> list[dict[str, float]]:
    """Train once and return the metrics."""
    options = RunOptions(cache_dir=folder / "cache")
    train(path, folder / way, encode="cache" if way == "cache" else "on-the-fly", device=device, options=options)
    return read_metrics(folder / way / "metrics.jsonl")


def compare(lines: dict[str, list[dict[str, float]]]) -> list[dict[str, object]]:
    """Compare the two ways; return one row per stage."""
    rows: list[dict[str, object]] = []
    for stage in (1, 2):
        row: dict[str, object] = {"stage": stage}
        mine = {way: [line for line in lines[way] if line["stage"] == stage] for way in WAYS}
        for way in WAYS:
            times = sorted(line["seconds"] for line in mine[way][WARM:])
            quarter = len(times) // 4
            row[way] = round(statistics.median(times), 4)
            row[f"{way}_spread"] = round((times[-1 - quarter] - times[quarter]) / 2, 4)
        pairs = zip(mine["cache"], mine["on-the-fly"], strict=True)
        row["loss_difference"] = max(abs(a["loss"] - b["loss"]) for a, b in pairs)
        rows.append(row)
    return rows


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="name or folder of a bundle [demo]")
    parser.add_argument("--batch", type=int, default=8, help="conversations per step [8]")
    parser.add_argument("--steps", type=int, default=10, help="measured steps per stage and way [10]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda [auto]")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both ways and print the comparison."""
    args = parse(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = recipe(folder, args.model, args.batch, args.steps)
        lines = {way: run(way, path, folder, args.device) for way in WAYS}
    rows = compare(lines)
    print(f"{'stage':<8}{'cache s/step':>16}{'on-the-fly s/step':>22}{'ratio':>8}{'largest loss difference':>26}")
    for row in rows:
        cached, live = (f"{row[w]} +- {row[f'{w}_spread']}" for w in WAYS)
        ratio = float(str(row["on-the-fly"])) / max(1e-9, float(str(row["cache"])))
        print(f"{row['stage']:<8}{cached:>16}{live:>22}{ratio:>8.2f}{row['loss_difference']:>26.2e}")
    facts = {
        "vidqa": __version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cpus": cpu_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    print(json.dumps({"bench": "train", "batch": args.batch, "steps": args.steps, "rows": rows, **facts}))
    # A GPU computes in bfloat16: features that differ in the last bit can round sums differently.
    on_gpu = args.device != "cpu" and torch.cuda.is_available()
    most = LOSS_TOLERANCE["cuda" if on_gpu else "cpu"]
    return 0 if all(float(str(row["loss_difference"])) < most for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
