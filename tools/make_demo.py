"""Build the bundled demo model from scratch: world, tokenizer, encoders, language model, training, bundle, scores.

    python tools/make_demo.py --work build/demo --install

Each step writes its result into the work folder. Steps with a result are skipped, so running the command again resumes
an interrupted build. Training uses a GPU if there is one, else two processes with one thread each. Budgets are minutes
of wall time or epochs: see `Plan` in demo_model/plan.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from demo_model import encoders, package, seen, tuning, words
from demo_model.plan import Plan, device, log

#: Step -> (function, result file that marks it as done, whether several processes share the work).
STEPS: dict[str, tuple[Callable[[Plan, Path], None], str, bool]] = {
    "world": (encoders.step_world, "world/conversations.json", False),
    "tokenizer": (encoders.step_tokenizer, "tokenizer/tokenizer.json", False),
    "arrays": (encoders.step_arrays, "arrays/stills_captions.json", False),
    "pictures": (encoders.step_pictures, "pictures.pt", True),
    "clips": (encoders.step_clips, "clips.pt", True),
    "more_clips": (encoders.step_more_clips, "more_clips.pt", True),
    "features": (encoders.step_features, "features/clips.npy", False),
    "language": (tuning.step_language, "language.pt", True),
    "connector": (tuning.step_connector, "connector.pt", True),
    "instruct": (tuning.step_instruct, "instruct.pt", True),
    "more_instruct": (tuning.step_more_instruct, "more_instruct.pt", True),
    "variety": (encoders.step_variety, "variety.pt", True),
    "encoders": (encoders.step_encoders, "encoders/text.onnx", False),
    "seen": (seen.step_seen, "seen.json", False),
    "words": (words.step_words, "words.pt", False),
    "base": (package.step_base, "base/bundle.json", False),
    "conversations": (tuning.step_conversations, "world/texts.jsonl", False),
    "tune": (tuning.step_tune, "tuned/bundle.json", False),
    "bundle": (package.step_bundle, "bundle/bundle.json", False),
    "scores": (package.step_scores, "scores.json", False),
}


def main() -> None:
    """Run the steps that have no result yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for all intermediate results")
    parser.add_argument("--steps", default=",".join(STEPS), help="comma-separated steps (default: all, %(default)s)")
    parser.add_argument(
        "--processes", type=int, default=2, help="training processes without a GPU (default: %(default)s)"
    )
    parser.add_argument(
        "--install", action="store_true", help="copy the bundle into vidqa/demo and write docs/demo_model.md"
    )
    for f in fields(Plan):
        parser.add_argument(f"--{f.name.replace('_', '-')}", type=type(f.default), default=f.default)
    args: Any = parser.parse_args()
    if unknown := set(args.steps.split(",")) - set(STEPS):
        parser.error(f"unknown steps: {', '.join(sorted(unknown))}")
    plan = Plan(**{f.name: getattr(args, f.name) for f in fields(Plan)})
    args.work.mkdir(parents=True, exist_ok=True)
    if "RANK" in os.environ:  # one of the processes that share a single step
        torch.distributed.init_process_group("gloo")
        STEPS[args.steps][0](plan, args.work)
        torch.distributed.destroy_process_group()
        return
    log(f"plan: {json.dumps(asdict(plan))}")
    for name in args.steps.split(","):
        run_step(name, plan, args.work, args.processes)
    if args.install:
        package.install(plan, args.work)


def run_step(name: str, plan: Plan, work: Path, processes: int) -> None:
    """Run one step unless it has a result; append its duration to seconds.json."""
    run, result, shared = STEPS[name]
    if (work / result).exists():
        log(f"{name}: done already")
        return
    log(f"{name}: {run.__doc__}")
    start = time.monotonic()
    if shared and device().type == "cpu" and processes > 1:
        run_shared(name, plan, work, processes)
    else:
        run(plan, work)
    spent = work / "seconds.json"
    seconds = json.loads(spent.read_text()) if spent.exists() else {}
    seconds[name] = round(time.monotonic() - start, 1)
    spent.write_text(json.dumps(seconds, indent=1))
    log(f"{name}: {seconds[name]} s")


def run_shared(name: str, plan: Plan, work: Path, processes: int) -> None:
    """Run a step in several processes with one thread each.

    Small matrices gain little from a second thread: two processes took twice as many steps as two threads.
    """
    options = [f"--{k.replace('_', '-')}={v}" for k, v in asdict(plan).items()]
    launcher = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launcher, __file__, f"--work={work}", f"--steps={name}", *options]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    main()
