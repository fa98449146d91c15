"""Score a model on clips and images of the demo world that were not in its training data.

    python tools/eval_demo.py --model demo --seed 1 --clips 1000

Renders new scenes, runs the files through vidqa (scan, decode, encode, answer) and compares every answer with the
scene. Each seed is a different world. The objects include color-shape pairs that no training scene has.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from demo_world.language import CAPTION_QUESTIONS, Pair, caption, claims, pairs, plain, truth
from demo_world.scene import HELD_OUT, Scene, make_scene
from demo_world.write import media_bytes, media_name, parallel

from vidqa.pipeline.monitor.reporter import Reporter
from vidqa.pipeline.run.answer_stage import answer_items
from vidqa.pipeline.run.feature_stages import encode_files
from vidqa.pipeline.run.pending import HashedFile, every_file
from vidqa.pipeline.run.run_context import RunContext
from vidqa.pipeline.run.run_options import RunOptions
from vidqa.pipeline.run.scanning import find_media
from vidqa.records import EncodedItem, Question, WorkItem

#: Target scores of the bundled model in percent, by topic; topics without a target are reported, too.
TARGETS = {
    "clip colour": 97, "clip shape": 97, "clip count": 97, "clip motion": 95, "clip yes_no": 95, "clip first": 90,
    "clip caption": 85, "image colour": 97, "image shape": 97,
}  # fmt: skip
FIRST_SEED = 50_000_000  # far from every training seed
STRIDE = 100_000


def main() -> None:
    """Render the scenes, answer, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="name or folder of a bundle (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="which unseen world (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=1000, help="number of clips; a quarter as many images are added")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print the first N wrong answers on stderr")
    args = parser.parse_args()
    if args.clips < 1:
        parser.error("--clips must be at least 1")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        scenes = write_media(Path(folder) / "media", args.seed, args.clips)
        asked = {name: ask_about(scene) for name, scene in scenes.items()}
        answers, who = answer_all(Path(folder), args.model, asked)
    scores, wrong = score(scenes, asked, answers)
    for line in wrong[: args.show]:
        print(line, file=sys.stderr)
    result = {
        "model": args.model,
        **who,
        "seed": args.seed,
        "clips": args.clips,
        "scores": scores,
        "seconds": round(time.monotonic() - start, 1),
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
    }
    print(json.dumps(result) if args.json else table(result))


def write_media(folder: Path, seed: int, n_clips: int) -> dict[str, Scene]:
    """Render new files; return the scenes by file name."""
    folder.mkdir()
    first = FIRST_SEED + seed * STRIDE
    n_images = math.ceil(n_clips / 4)
    scenes: dict[str, Scene] = {}
    for still, seeds in (
        (False, range(first, first + n_clips)),
        (True, range(first + n_clips, first + n_clips + n_images)),
    ):
        for scene in parallel(partial(_write, folder, still), seeds):
            scenes[media_name(scene)] = scene
    return scenes


def _write(folder: Path, still: bool, seed: int) -> Scene:
    scene = make_scene(seed, still=still, held_out=True)
    (folder / media_name(scene)).write_bytes(media_bytes(scene))
    return scene


def ask_about(scene: Scene) -> list[Pair]:
    """Return all questions about a scene, the caption first."""
    rng = np.random.default_rng([scene.seed, 81])
    asked = CAPTION_QUESTIONS[scene.still]
    ask = asked[int(rng.integers(len(asked)))]
    return [Pair("caption", ask, caption(scene)), *pairs(scene, rng), *plain(scene, rng)]


def answer_all(
    folder: Path, model: str, asked: dict[str, list[Pair]]
) -> tuple[dict[tuple[str, str], str | None], dict[str, Any]]:
    """Answer with vidqa's own pipeline; return the answers by (file name, question id), and the model's identity."""
    run = RunContext.create(model, RunOptions(cache_dir=folder / "cache"), Reporter())
    found = find_media(run, [str(folder / "media")])

    def pending(hashed: Iterable[HashedFile]) -> Iterator[WorkItem | EncodedItem]:
        for work in every_file(hashed):
            if isinstance(work, WorkItem):
                pairs = asked[Path(work.item.rel).name]
                work = replace(work, questions=tuple(Question(f"q{i}", pair.question) for i, pair in enumerate(pairs)))
            yield work

    answers: dict[tuple[str, str], str | None] = {}
    with closing(encode_files(run, found.items, pending)) as encoded:
        for answered in answer_items(encoded, run.model, run.options, run.clock):
            for row in answered.rows:
                answers[Path(row.path).name, row.question_id] = row.answer
    who = run.model.identity
    return answers, {"model_id": who.model_id, "encoder_id": who.encoder_id, "vidqa": who.vidqa_version}


def score(
    scenes: dict[str, Scene], asked: dict[str, list[Pair]], answers: dict[tuple[str, str], str | None]
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Return the share of correct answers by topic, and a description of every wrong answer."""
    right: dict[str, list[bool]] = defaultdict(list)
    wrong = []
    for name, scene in scenes.items():
        kind = "image" if scene.still else "clip"
        unseen = any((t.colour, t.shape) in HELD_OUT for t in scene.things)
        for i, pair in enumerate(asked[name]):
            answer = answers.get((name, f"q{i}")) or ""
            good = claims(answer) == truth(scene) if pair.topic == "caption" else answer.strip() == pair.answer
            right[f"{kind} {pair.topic}"].append(good)
            if pair.topic == "caption":
                right[f"{kind} caption, {'a pair never trained on' if unseen else 'only trained pairs'}"].append(good)
            if not good:
                wrong.append(f"{name} {pair.topic}: {pair.question} correct: {pair.answer} got: {answer}")
    scores = {}
    for topic in sorted(right):
        n, k = len(right[topic]), sum(right[topic])
        p = k / n
        scores[topic] = {"right": round(100 * p, 2), "n": n, "error": round(196 * math.sqrt(p * (1 - p) / n), 2)}
    return scores, wrong


def table(result: dict[str, Any]) -> str:
    """Format the scores as a Markdown table."""
    lines = [f"model {result['model']} ({result['model_id']}), seed {result['seed']}, {result['clips']} clips", ""]
    lines += ["| topic | correct, % | ± 95% | questions | target |", "| --- | --- | --- | --- | --- |"]
    for topic, s in result["scores"].items():
        target = TARGETS.get(topic)
        met = "" if target is None else f">= {target}{'' if s['right'] >= target else ' (missed)'}"
        lines.append(f"| {topic} | {s['right']:.1f} | {s['error']:.1f} | {s['n']} | {met} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
