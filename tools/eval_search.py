"""Measure search: query held-out clips of the demo world by their captions.

    python tools/eval_search.py --model demo --clips 200 --out docs/notes/search.md

The clips are rendered from a world that was not in the training data (`--seed` picks which), and include color-shape
pairs that no training scene has. All captions differ, so each one has exactly one correct clip. Each caption is
searched for among all clips with `vidqa.search`; the first search encodes the clips. recall@k is the share of captions
whose clip is among the first k results; a clip with an equal score counts as ranked higher. By chance it is k divided
by the number of clips.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from demo_world.language import caption
from demo_world.scene import HELD_OUT, Scene, make_scene
from demo_world.write import media_bytes, media_name, parallel

import vidqa
from vidqa.pipeline.monitor.reporter import Reporter
from vidqa.pipeline.run.run_options import RunOptions

FIRST_SEED = 50_000_000  # far from every training seed, as in eval_demo.py
STRIDE = 100_000
AT = (1, 5, 10)


def main() -> None:
    """Render the clips, search them, and print the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="name or folder of a bundle (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the held-out world (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=200, help="number of clips, at least 2 (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the page")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print the N worst captions on stderr")
    parser.add_argument("--out", type=Path, help="write the page there as well")
    args = parser.parse_args()
    if args.clips < 2:
        parser.error("--clips must be at least 2")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        scenes = choose(FIRST_SEED + args.seed * STRIDE, args.clips)
        (Path(folder) / "media").mkdir()
        for _ in parallel(partial(write, Path(folder) / "media"), [s.seed for s in scenes]):
            pass
        ranks, who = search_all(Path(folder), args.model, scenes)
    worst = sorted(scenes, key=lambda scene: -ranks[scene.seed])[: args.show]
    for scene in worst:
        print(f"rank {ranks[scene.seed]}: {media_name(scene)}: {caption(scene)}", file=sys.stderr)
    result: dict[str, Any] = {
        "model": args.model,
        **who,
        "seed": args.seed,
        "clips": args.clips,
        "scores": score(scenes, ranks),
        "seconds": round(time.monotonic() - start, 1),
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
    }
    if args.out:
        args.out.write_text(page(result))
    print(json.dumps(result) if args.json else page(result), end="\n" if args.json else "")


def choose(first: int, n_clips: int) -> list[Scene]:
    """Return the first scenes of a world whose captions all differ."""
    scenes: dict[str, Scene] = {}
    seed = first
    while len(scenes) < n_clips:
        scene = make_scene(seed, still=False, held_out=True)
        scenes.setdefault(caption(scene), scene)
        seed += 1
    return list(scenes.values())


def write(folder: Path, seed: int) -> None:
    """Write one clip."""
    scene = make_scene(seed, still=False, held_out=True)
    (folder / media_name(scene)).write_bytes(media_bytes(scene))


def search_all(folder: Path, model: str, scenes: list[Scene]) -> tuple[dict[int, int], dict[str, Any]]:
    """Return the rank of the correct clip by seed, and the ids of encoder and vidqa version."""
    opened = vidqa.load_model(model)
    options, reporter = RunOptions(cache_dir=folder / "cache"), Reporter()
    ranks = {}
    for number, scene in enumerate(scenes):
        found = vidqa.search(caption(scene), str(folder / "media"), model=opened, options=options, reporter=reporter)
        if found.failed or len(found.hits) != len(scenes) or (number and found.n_encoded):
            raise RuntimeError(f"{len(found.hits)} hits, {found.n_encoded} encoded: {found.failed}")
        (own,) = (hit.score for hit in found.hits if Path(hit.path).name == media_name(scene))
        ranks[scene.seed] = sum(hit.score >= own for hit in found.hits)
    who = opened.identity
    return ranks, {"encoder_id": who.encoder_id, "vidqa": who.vidqa_version}


def score(scenes: list[Scene], ranks: dict[int, int]) -> dict[str, dict[str, float]]:
    """Return recall@k in percent and the median rank, for all captions and for groups of them."""
    groups = {
        "all captions": scenes,
        **{f"{n} object{'s' if n > 1 else ''}": [s for s in scenes if len(s.things) == n] for n in (1, 2, 3)},
        "an unseen color-shape pair": [s for s in scenes if unseen(s)],
        "only seen pairs": [s for s in scenes if not unseen(s)],
    }
    out = {}
    for name, group in groups.items():
        if not group:
            continue
        found, n = sorted(ranks[s.seed] for s in group), len(group)
        shares = {k: sum(rank <= k for rank in found) / n for k in AT}
        out[name] = {
            "n": n,
            **{f"recall@{k}": round(100 * p, 1) for k, p in shares.items()},
            "error@1": round(196 * math.sqrt(shares[1] * (1 - shares[1]) / n), 1),
            "median rank": found[(n - 1) // 2],
        }
    return out


def unseen(scene: Scene) -> bool:
    """Whether a clip shows a color-shape pair that no training scene has."""
    return any((t.colour, t.shape) in HELD_OUT for t in scene.things)


def page(result: dict[str, Any]) -> str:
    """Return the result as a Markdown page."""
    lines = [
        "# Notes: how well search works",
        "",
        f"Written by `python tools/eval_search.py --model {result['model']} --seed {result['seed']} "
        f"--clips {result['clips']} --out docs/notes/search.md`.",
        "",
        f"{result['clips']} clips of the demo world that were not in the training data, all with different captions.",
        f"Each caption is searched for among all of them. Encoder {result['encoder_id']}, vidqa {result['vidqa']}.",
        "recall@k is the percentage of captions whose clip is among the first k results; a clip with an equal score",
        f"counts as ranked higher. By chance, recall@1 would be {100 / result['clips']:.1f}.",
        "",
        "| captions | number | recall@1 | ± (95%) | recall@5 | recall@10 | median rank |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, s in result["scores"].items():
        cells = (s["n"], s["recall@1"], s["error@1"], s["recall@5"], s["recall@10"], s["median rank"])
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    lines += ["", "Not measured: published models and real videos.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
