"""Sizes and arms of the ablations, and the recipe of each run."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """All sizes. The defaults produced the table in docs/notes/ablations.md."""

    clips: int = 500  # training clips, and as many images
    told: int = 3000  # scenes described in text, for the language model that all runs start from
    language_steps: int = 500
    pixel_steps: int = 400  # of the image encoder trained without language
    connector_steps: int = 60
    instruct_steps: int = 240
    batch: int = 8  # sequences per step
    packing: int = 6  # conversations about one file per sequence
    llm_width: int = 96
    llm_layers: int = 3
    scored_clips: int = 240  # evaluation clips; a quarter as many images are added
    scored_seed: int = 7  # of the evaluation world


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    name: str
    start: str  # a bundle of `starts`
    media: tuple[str, ...]
    share: float  # fraction of the steps of a full run

    def steps(self, full: int) -> int:
        """Return the steps of a stage that has `full` steps in a full run."""
        return max(1, round(self.share * full))


BOTH = ("clips", "stills")
ARMS = (
    Arm("joint, united", "united", BOTH, 1.0),
    Arm("joint, separated", "separated", BOTH, 1.0),
    Arm("video only, same clips", "united", ("clips",), 0.5),
    Arm("video only, same steps", "united", ("clips",), 1.0),
)
#: The comparisons: (title, arm, other arm).
COMPARED = (
    ("united vs. separated", "joint, united", "joint, separated"),
    ("joint vs. video only, same clips", "joint, united", "video only, same clips"),
    ("joint vs. video only, same steps", "joint, united", "video only, same steps"),
)


def recipe(arm: Arm, seed: int, sizes: Sizes) -> str:
    """Return the recipe of a run. It is written to `runs/NAME`, two levels below the world and the bundles."""
    captions = [f"{part}_captions" for part in arm.media]
    common = (
        f"batch_size = {sizes.batch}\nper_device_batch_size = {sizes.batch}\n"
        f'packing = {sizes.packing}\nsequences_per_media = "one"\n'
    )
    parts = [
        f'seed = {seed}\n[model]\nbase = "../../{arm.start}"\nconnector = "reinitialize"\n',
        *(source(f"../../world/{part}", kind) for part in arm.media for kind in ("conversations", "captions")),
        f'[[stage]]\nkind = "connector"\ndata = {json.dumps(captions)}\nlearning_rate = 2e-3\n{common}'
        f"steps = {arm.steps(sizes.connector_steps)}\n",
        f'[[stage]]\nkind = "instruct"\ndata = {json.dumps(list(arm.media))}\nlearning_rate = 1e-3\n{common}'
        f"steps = {arm.steps(sizes.instruct_steps)}\n",
        '[hardware]\nprecision = "fp32"\n[output]\nmm_projector = false\nsave_steps = 100\nsave_total_limit = 1\n',
    ]
    return "\n".join(parts)


def source(folder: str, kind: str) -> str:
    """Return the recipe section of one data file of the world."""
    name = folder.rpartition("/")[2] + ("_captions" if kind == "captions" else "")
    return f'[[data]]\nname = "{name}"\nfile = "{folder}/{kind}.json"\nmedia = "{folder}/media"\n'


def language_recipe(sizes: Sizes) -> str:
    """Return the recipe of the language model trained on text only."""
    return (
        '[model]\nbase = "blank"\nname = "read"\n[[data]]\nname = "told"\nfile = "world/told.jsonl"\n'
        f'[[stage]]\nkind = "language"\nlearning_rate = 2e-3\nsteps = {sizes.language_steps}\n'
        f"batch_size = {sizes.batch}\n"
        f'per_device_batch_size = {sizes.batch}\npacking = {sizes.packing}\nsequences_per_media = "one"\n'
        '[hardware]\nprecision = "fp32"\n[output]\nmm_projector = false\nsave_steps = 100\nsave_total_limit = 1\n'
    )
