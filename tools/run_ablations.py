"""The paper's two ablations in miniature, on the demo world: one command, several seeds, a table with its spread.

    python tools/run_ablations.py --work build/ablations --seeds 3

United against separated: the picture encoder is aligned with language, or learned from pixels alone. Joint against
video only: pictures and clips are trained on, or clips alone (with each clip seen as often, or with as many steps). All
runs begin with the same language model, which has read about scenes and never seen one, and with a new connector; both
stages go through `vidqa train`; answers are scored by the code of tools/eval_demo.py. A run that was stopped goes on
where it was when the command is given again.
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
    """Do what is not done yet, and print the table."""
    args = parse(arguments)
    sizes = Sizes(**{f.name: getattr(args, f.name) for f in fields(Sizes)})
    work: Path = args.work.absolute()
    if not _same_sizes(work, sizes):
        print(f"{work} holds runs of other sizes ({work / SETTINGS}); give another --work", file=sys.stderr)
        return 2
    torch.set_num_threads(args.threads)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    begin(work, sizes)
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
    for seed in range(args.seeds):  # all arms of a seed, then the next: a run cut short still compares
        for arm in ARMS:
            runs[arm.name].append(run(work, arm, seed, sizes))
            with atomic_write(work / RESULT) as f:
                f.write(json.dumps(facts | {"runs": runs}, indent=1).encode())
    print(table(runs, guess))
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is made on the way")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="processor threads (default: %(default)s)")
    for f in fields(Sizes):
        parser.add_argument(f"--{f.name.replace('_', '-')}", type=int, default=f.default)
    args = parser.parse_args(arguments)
    if args.seeds < 1:
        parser.error("--seeds must be at least 1")
    return args


def _same_sizes(work: Path, sizes: Sizes) -> bool:
    """Whether what lies in the folder is of these sizes; notes them where nothing lies there."""
    work.mkdir(parents=True, exist_ok=True)
    file = work / SETTINGS
    if file.exists():
        return bool(json.loads(file.read_text()) == asdict(sizes))
    with atomic_write(file) as f:
        f.write(json.dumps(asdict(sizes)).encode())
    return True


def begin(work: Path, sizes: Sizes) -> None:
    """World, language model, encoders, and the files that are asked about."""
    starts.whole(work / "world", partial(starts.make_world, sizes=sizes))
    starts.whole(work / "blank", partial(starts.make_blank, sizes=sizes))
    if not (work / "read" / "bundle.json").exists():
        (work / "read.toml").write_text(language_recipe(sizes))
        vidqa_train(work / "read.toml", work / "read", work)
    starts.whole(work / "pixels", partial(starts.make_pixels, sizes=sizes))
    starts.whole(work / "united", partial(starts.make_united, read=work / "read"))
    graph = work / "pixels" / "image.onnx"
    starts.whole(work / "separated", partial(starts.make_separated, read=work / "read", image_graph=graph))
    starts.whole(work / "scored", lambda part: _scored(part, sizes))


def _scored(part: Path, sizes: Sizes) -> None:
    write_media(part / "media", sizes.scored_seed, sizes.scored_clips)


def asked_of(work: Path) -> tuple[dict[str, Scene], dict[str, list[Pair]]]:
    """File name -> scene, and file name -> questions, of what is asked about."""
    scenes = {
        file.name: make_scene(int(file.stem), still=file.suffix == ".png", held_out=True)
        for file in sorted((work / "scored" / "media").iterdir())
    }
    return scenes, {name: ask_about(scene) for name, scene in scenes.items()}


def run(work: Path, arm: Arm, seed: int, sizes: Sizes) -> Scores:
    """One arm with one seed: trained, asked, scored; read back where it was done already."""
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


def vidqa_train(words: Path, out: Path, work: Path) -> None:
    """`vidqa train`, with one cache for all runs: each encoder sees each file once."""
    command = [
        sys.executable,
        "-m",
        "vidqa",
        "train",
        str(words),
        "--out",
        str(out),
        "--cache-dir",
        str(work / "cache"),
    ]
    subprocess.run(command, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
