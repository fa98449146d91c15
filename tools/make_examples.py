"""Write examples/clips: ten clips and two images of the demo world, each with its true caption; and copy three of them.

    python tools/make_examples.py --model demo

None of the scenes was in the training data. Clips are chosen for a variety of motions and, with --model, from those
that the model describes correctly: they show what vidqa does, not how often the demo model is right
(docs/demo_model.md). The package itself contains the copies, for `vidqa examples`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from demo_world.language import CAPTION_QUESTIONS, caption, claims, pairs, truth
from demo_world.scene import MOTIONS, Scene, make_scene
from demo_world.write import media_bytes, media_name

from vidqa.pipeline.run.run_options import RunOptions

FIRST_SEED = 90_000_000
N_CLIPS, N_IMAGES = 10, 2
ROOT = Path(__file__).parent.parent
#: Clips that the package contains.
PACKAGED = ("clip01.mp4", "clip05.mp4", "clip06.mp4")


def choose(is_right: Callable[[Scene], bool]) -> list[Scene]:
    """Return the first scenes from FIRST_SEED that each add a new motion, then the first images."""
    chosen: list[Scene] = []
    new_motions = set(MOTIONS)
    for seed in range(FIRST_SEED, FIRST_SEED + 1000):
        still = len(chosen) >= N_CLIPS
        scene = make_scene(seed, still=still, held_out=True)
        motions = {t.motion for t in scene.things}
        if (still or motions & new_motions or not new_motions) and is_right(scene):
            chosen.append(scene)
            new_motions -= motions
        if len(chosen) == N_CLIPS + N_IMAGES:
            return chosen
    raise SystemExit("not enough suitable clips among the first thousand scenes: is this the right model?")


def judge(model: str | None) -> Callable[[Scene], bool]:
    """Return a function that tests whether the model describes a scene correctly; without a model it accepts all."""
    if model is None:
        return lambda scene: True
    import vidqa

    loaded = vidqa.load_model(model)

    def is_right(scene: Scene) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / media_name(scene)
            file.write_bytes(media_bytes(scene))
            options = RunOptions(cache_dir=Path(folder) / "cache", n_workers=1)
            rows = vidqa.ask(file, "Describe the video.", "What happens?", model=loaded, options=options)
        return all(claims(row.answer or "") == truth(scene) for row in rows)

    return is_right


def main() -> None:
    """Write the media and captions.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT / "examples" / "clips"
    parser.add_argument("--out", type=Path, default=default, help="folder to write (default: examples/clips)")
    parser.add_argument("--model", help="keep only scenes that this model (a name or a folder) describes correctly")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    records = []
    for number, scene in enumerate(choose(judge(args.model)), start=1):
        name = f"{'image' if scene.still else 'clip'}{number:02d}.{'png' if scene.still else 'mp4'}"
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
    if args.out == default:
        for name in PACKAGED:
            shutil.copyfile(default / name, ROOT / "vidqa" / "examples" / name)


if __name__ == "__main__":
    main()
