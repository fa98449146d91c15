"""Run the paper's two ablations at small scale on the demo world, with several seeds; print a table with the spread.

    python tools/run_ablations.py --work build/ablations --seeds 3

United vs. separated: the image encoder is aligned with language, or trained on pixels only. Joint vs. video only:
training uses images and clips, or only clips (with the same number of epochs, or of steps). All runs start from the
same language model, trained on text descriptions of scenes only, and a new connector. Both stages use `vidqa train`;
the answers are scored as in tools/eval_demo.py. Run the command again to resume an interrupted run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from ablations import starts
from ablations.plan import ARMS, Arm, Sizes, language_recipe, recipe
from ablations.table import Scores, most_frequent, table
from demo_model.plan import log
from demo_world.language import Pair
from demo_world.scene import Scene, make_scene
from eval_demo import answer_all, ask_about, score, write_media

from vidqa import __version__
from vidqa.common.atomic_io import atomic_write
from vidqa.model.bundle.bundle import load_bundle

SETTINGS, RESULT = "sizes.json", "ablations.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the pending runs and print the table."""
    args = parse(arguments)
    sizes = Sizes(**{f.name: getattr(args, f.name) for f in fields(Sizes)})
    work: Path = args.work.absolute()
    if not _same_sizes(work, sizes):
        print(f"{work} has runs with other sizes ({work / SETTINGS}); use another --work", file=sys.stderr)
        return 2
    torch.set_num_threads(args.threads)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    prepare(work, sizes)
    runs: dict[str, list[Scores]] = {arm.name: [] for arm in ARMS}
    guess = most_frequent(*asked_of(work))
    facts: dict[str, Any] = {
        "vidqa": __version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores, {args.threads} used",
        "encoders": {name: load_bundle(work / name).encoder_id for name in ("united", "separated")},
        "sizes": asdict(sizes),
        "most frequent answer": guess,
    }
    for seed in range(args.seeds):  # all arms of one seed first, so that an interrupted run can be compared
        for arm in ARMS:
            runs[arm.name].append(run(work, arm, seed, sizes))
            with atomic_write(work / RESULT) as f:
                f.write(json.dumps(facts | {"runs": runs}, indent=1).encode())
    print(table(runs, guess))
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for all intermediate results")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="processor threads (default: %(default)s)")
    for f in fields(Sizes):
        parser.add_argument(f"--{f.name.replace('_', '-')}", type=int, default=f.default)
    args = parser.parse_args(arguments)
    if args.seeds < 1:
        parser.error("--seeds must be at least 1")
    return args


def _same_sizes(work: Path, sizes: Sizes) -> bool:
    """Return whether the folder has runs of these sizes; writes the sizes into an empty folder."""
    work.mkdir(parents=True, exist_ok=True)
    file = work / SETTINGS
    if file.exists():
        return bool(json.loads(file.read_text()) == asdict(sizes))
    with atomic_write(file) as f:
        f.write(json.dumps(asdict(sizes)).encode())
    return True


def prepare(work: Path, sizes: Sizes) -> None:
    """Create the world, the language model, the encoders, and the evaluation files."""
    starts.build_once(work / "world", partial(starts.make_world, sizes=sizes))
    starts.build_once(work / "blank", partial(starts.make_blank, sizes=sizes))
    if not (work / "read" / "bundle.json").exists():
        (work / "read.toml").write_text(language_recipe(sizes))
        vidqa_train(work / "read.toml", work / "read", work)
    starts.build_once(work / "pixels", partial(starts.make_pixels, sizes=sizes))
    starts.build_once(work / "united", partial(starts.make_united, read=work / "read"))
    graph = work / "pixels" / "image.onnx"
    starts.build_once(work / "separated", partial(starts.make_separated, read=work / "read", image_graph=graph))
    starts.build_once(work / "scored", lambda part: _scored(part, sizes))


def _scored(part: Path, sizes: Sizes) -> None:
    write_media(part / "media", sizes.scored_seed, sizes.scored_clips)


def asked_of(work: Path) -> tuple[dict[str, Scene], dict[str, list[Pair]]]:
    """Return the scenes and the questions of the evaluation files, both by file name."""
    scenes = {
        file.name: make_scene(int(file.stem), still=file.suffix == ".png", held_out=True)
        for file in sorted((work / "scored" / "media").iterdir())
    }
    return scenes, {name: ask_about(scene) for name, scene in scenes.items()}


def run(work: Path, arm: Arm, seed: int, sizes: Sizes) -> Scores:
    """Train and score one arm with one seed, or read the scores of an earlier run."""
    folder = work / "runs" / f"{arm.name.replace(', ', '-').replace(' ', '-')}-{seed}"
    result = folder / "scores.json"
    if not result.exists():
        start = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.toml").write_text(recipe(arm, seed, sizes))
        vidqa_train(folder / "recipe.toml", folder / "model", work)
        scenes, asked = asked_of(work)
        answers, _ = answer_all(work / "scored", str(folder / "model"), asked)
        scores, _ = score(scenes, asked, answers)
        with atomic_write(result) as f:
            f.write(json.dumps(scores, indent=1).encode())
        log(f"{arm.name}, seed {seed}: {time.monotonic() - start:.0f} s")
    found: Scores = json.loads(result.read_text())
    return found


def vidqa_train(recipe_file: Path, out: Path, work: Path) -> None:
    """Call `vidqa train`; all runs share one cache, so that each encoder encodes each file once."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "vidqa",
        "train",
        str(recipe_file),
        "--out",
        str(out),
        "--cache-dir",
        str(work / "cache"),
    ]
    subprocess.run(command, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
