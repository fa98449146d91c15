"""Write examples/clips: ten clips and two pictures of the demo world, each with its true caption.

    python tools/make_examples.py

The seeds are fixed and were never trained on. They were chosen for variety of motions before any model had seen them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from demo_world.language import CAPTION_QUESTIONS, caption, pairs
from demo_world.scene import MOTIONS, Scene, make_scene
from demo_world.write import media_bytes

FIRST_SEED = 90_000_000
N_CLIPS, N_STILLS = 10, 2


def choose() -> list[Scene]:
    """The first scenes from FIRST_SEED that each bring a motion not shown yet, then the first pictures."""
    chosen: list[Scene] = []
    open_motions = set(MOTIONS)
    seed = FIRST_SEED
    while len(chosen) < N_CLIPS:
        scene = make_scene(seed, still=False, held_out=True)
        motions = {t.motion for t in scene.things}
        if motions & open_motions or not open_motions:
            chosen.append(scene)
            open_motions -= motions
        seed += 1
    return chosen + [make_scene(s, still=True, held_out=True) for s in range(seed, seed + N_STILLS)]


def main() -> None:
    """Write the media and captions.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).parent.parent / "examples" / "clips"
    parser.add_argument("--out", type=Path, default=default, help="folder to write (default: examples/clips)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    records = []
    for number, scene in enumerate(choose(), start=1):
        name = f"{'picture' if scene.still else 'clip'}{number:02d}.{'png' if scene.still else 'mp4'}"
        (args.out / name).write_bytes(media_bytes(scene))
        asked = [p for p in pairs(scene, np.random.default_rng(scene.seed)) if p.topic in ("count", "motion", "colour")]
        records.append(
            {
                "file": name,
                "question": CAPTION_QUESTIONS[scene.still][0],
                "caption": caption(scene),
                "objects": [
                    {"size": t.size, "colour": t.colour, "shape": t.shape, "motion": None if scene.still else t.motion}
                    for t in scene.things
                ],
                "asked": [{"question": p.question, "answer": p.answer} for p in asked],
            }
        )
    records.sort(key=lambda r: str(r["file"]))
    (args.out / "captions.json").write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
