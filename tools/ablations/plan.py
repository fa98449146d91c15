"""Sizes and arms of the ablations, and the recipe of each run."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """How large everything is. The defaults made the table in docs/notes/ablations.md."""

    clips: int = 500  # that are trained on; as many pictures
    told: int = 3000  # scenes in words, for the language model that all runs begin with
    language_steps: int = 500
    pixel_steps: int = 400  # of the picture encoder that knows no language
    connector_steps: int = 60
    instruct_steps: int = 240
    batch: int = 8  # sequences of a step
    packing: int = 6  # conversations about one medium in a sequence
    llm_width: int = 96
    llm_layers: int = 3
    scored_clips: int = 240  # unseen; a quarter as many pictures are added
    scored_seed: int = 7  # a world of its own


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    name: str
    start: str  # a bundle of `starts`
    media: tuple[str, ...]
    share: float  # of the steps of a full run

    def steps(self, full: int) -> int:
        """Of a stage that has `full` steps in a full run."""
        return max(1, round(self.share * full))


BOTH = ("clips", "stills")
ARMS = (
    Arm("joint, united", "united", BOTH, 1.0),
    Arm("joint, separated", "separated", BOTH, 1.0),
    Arm("video only, same clips", "united", ("clips",), 0.5),
    Arm("video only, same steps", "united", ("clips",), 1.0),
)
#: What is compared with what: (question, arm, other arm).
COMPARED = (
    ("united vs. separated", "joint, united", "joint, separated"),
    ("joint vs. video only, same clips", "joint, united", "video only, same clips"),
    ("joint vs. video only, same steps", "joint, united", "video only, same steps"),
)


def recipe(arm: Arm, seed: int, sizes: Sizes) -> str:
    """Both stages of a run; it lies in `runs/NAME`, two folders below world and bundles."""
    captions = [f"{medium}_captions" for medium in arm.media]
    common = f'batch_size = {sizes.batch}\nper_device = {sizes.batch}\npacking = {sizes.packing}\nvisits = "draw"\n'
    parts = [
        f'seed = {seed}\n[model]\nbase = "../../{arm.start}"\nconnector = "fresh"\n',
        *(source(f"../../world/{medium}", kind) for medium in arm.media for kind in ("conversations", "captions")),
        f'[[stage]]\nkind = "connector"\ndata = {json.dumps(captions)}\nlr = 2e-3\n{common}'
        f"steps = {arm.steps(sizes.connector_steps)}\n",
        f'[[stage]]\nkind = "instruct"\ndata = {json.dumps(list(arm.media))}\nlr = 1e-3\n{common}'
        f"steps = {arm.steps(sizes.instruct_steps)}\n",
        '[hardware]\nprecision = "fp32"\n[output]\nmm_projector = false\nsave_every = 100\nkeep = 1\n',
    ]
    return "\n".join(parts)


def source(folder: str, kind: str) -> str:
    """A file of the world."""
    name = folder.rpartition("/")[2] + ("_captions" if kind == "captions" else "")
    return f'[[data]]\nname = "{name}"\nfile = "{folder}/{kind}.json"\nmedia = "{folder}/media"\n'


def language_recipe(sizes: Sizes) -> str:
    """The language model that has read, and not seen."""
    return (
        '[model]\nbase = "blank"\nname = "read"\n[[data]]\nname = "told"\nfile = "world/told.jsonl"\n'
        f'[[stage]]\nkind = "language"\nlr = 2e-3\nsteps = {sizes.language_steps}\nbatch_size = {sizes.batch}\n'
        f'per_device = {sizes.batch}\npacking = {sizes.packing}\nvisits = "draw"\n'
        '[hardware]\nprecision = "fp32"\n[output]\nmm_projector = false\nsave_every = 100\nkeep = 1\n'
    )
