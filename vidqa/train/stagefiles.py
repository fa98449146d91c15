"""What is kept of a run between its processes: whose run it is, and the weights and facts of each finished stage.

Everything is whole or absent; the facts of a stage come last and mean that it is done. Knows files, not models.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from vidqa.errors import UsageError
from vidqa.fsio import commit, sync_folder
from vidqa.train import checkpoints
from vidqa.train.recipe import Recipe
from vidqa.train.report import StageFacts
from vidqa.train.stages import save_weights

_RUN, _DONE, _WEIGHTS = "run.json", "done.json", "trained.safetensors"
#: Settings that change neither weights nor losses.
_IDLE = {"logging": True, "hardware": {"workers"}, "output": {"save_every", "keep", "mm_projector", "transformers"}}


def run_identity(recipe: Recipe, base_id: str, fingerprints: list[str]) -> dict[str, str]:
    """What has to be the same for a run to go on.

    Args:
        recipe: paths and what only says how things are shown do not count.
        base_id: model_id of the base.
        fingerprints: of the data of every stage.
    """
    settings = recipe.model_dump(mode="json", exclude=_IDLE)  # type: ignore[arg-type]
    for source in (*settings["data"], *([settings["eval"]] if settings["eval"] else [])):
        source.pop("file"), source.pop("media")
    text = json.dumps(settings, sort_keys=True)
    return {
        "recipe": hashlib.sha256(text.encode()).hexdigest()[:16],
        "base": base_id,
        "data": hashlib.sha256("".join(fingerprints).encode()).hexdigest()[:16],
    }


def open_run(work: Path, identity: dict[str, str], resume: bool) -> bool:
    """Get the folder of a run ready.

    Args:
        work: the folder.
        identity: of this run.
        resume: go on with what lies there; otherwise it is removed.

    Returns:
        True when there is a run to go on with.

    Raises:
        UsageError: what lies there is another run.
    """
    file = work / _RUN
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
    if file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
        if differs := [key for key, value in identity.items() if found.get(key) != value]:
            raise UsageError(
                f"{work.parent} holds a run with another {' and '.join(differs)}; it cannot go on with this recipe",
                hint="--resume never begins anew there, or give another --out",
            )
        return True
    work.mkdir(parents=True, exist_ok=True)
    with commit(file) as f:
        f.write(json.dumps(identity, indent=1).encode())
    return False


def save_stage(folder: Path, weights: dict[str, Tensor], facts: StageFacts) -> None:
    """Keep a finished stage; its checkpoints are not needed any more and go.

    Raises:
        TrainError: no room; the checkpoints stay.
    """
    need = sum(w.numel() * w.element_size() for w in weights.values()) + (1 << 20)
    checkpoints.need_room(folder, need, "the weights of the stage")
    part = folder / f".{_WEIGHTS}.part"
    part.mkdir(parents=True, exist_ok=True)
    with checkpoints.explained(part, "the weights of the stage"):
        save_weights(weights, part / _WEIGHTS)
        sync_folder(part / _WEIGHTS)
    (part / _WEIGHTS).replace(folder / _WEIGHTS)
    part.rmdir()
    with commit(folder / _DONE) as f:
        f.write(json.dumps(asdict(facts)).encode())
    for _, checkpoint in checkpoints.found_in(folder):
        shutil.rmtree(checkpoint, ignore_errors=True)


def finished(folder: Path) -> StageFacts | None:
    """Facts of a stage, if it is done."""
    file = folder / _DONE
    if not file.exists() or not (folder / _WEIGHTS).exists():
        return None
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return StageFacts(**found)


def stage_weights(folder: Path) -> dict[str, Tensor]:
    """Weights that learned in a finished stage, on the CPU."""
    return dict(load_file(folder / _WEIGHTS))
