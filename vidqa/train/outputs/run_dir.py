"""What is kept of a run between its processes: whose run it is, and the weights and facts of each finished stage.

Everything is whole or absent; the facts of a stage come last and mean that it is done. Knows files, not models.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from vidqa.common.atomic_io import atomic_write, fsync_folder
from vidqa.config.toml_lines import printable
from vidqa.errors import UsageError
from vidqa.train.data.unseen_pairs import UnseenPairs
from vidqa.train.outputs.report import StageFacts
from vidqa.train.recipe.definition import Recipe
from vidqa.train.stage import checkpoints
from vidqa.train.stage.trainable import save_weights

_SET = "set"  # in run.json: what was set on the command line
_RUN, _DONE, _WEIGHTS = "run.json", "done.json", "trained.safetensors"
#: Settings that change neither weights nor losses, or (how a step is cut up) the losses by no more than rounding. A run
#: that ran out of memory, or had more rejects than allowed, goes on with what its own message told people to change.
_IDLE: dict[str, Any] = {
    "logging": True,
    "output": True,
    "eval": True,
    "max_reject_rate": True,
    "model": {"base", "name"},  # the base counts by its content
    "hardware": {"workers", "gradient_checkpointing"},
    "data": {"__all__": {"file", "media"}},  # as the base
    "stage": {"__all__": {"per_device", "unseen_pairs"}},  # pairs count by what the file says
}
_SHOWN = 6  # settings that differ


def run_identity(
    recipe: Recipe, base_id: str, fingerprints: list[str], unseen: Sequence[UnseenPairs | None] = ()
) -> dict[str, Any]:
    """What has to be the same for a run to go on.

    Args:
        recipe: paths, and what only says how things are shown, kept or computed, do not count.
        base_id: model_id of the base.
        fingerprints: of the data of every stage.
        unseen: what the `unseen_pairs` of every stage says.
    """
    words = recipe.model_dump(mode="json", exclude=_IDLE)
    for stage, pairs in zip(words["stage"], unseen, strict=False):
        if pairs is not None:
            stage["unseen_pairs"] = pairs.model_dump(mode="json")
    return {
        "recipe": words,
        "base": base_id,
        "data": hashlib.sha256("".join(fingerprints).encode()).hexdigest()[:16],
    }


def open_run(work: Path, identity: dict[str, Any], resume: bool, overrides: Sequence[str] = ()) -> bool:
    """Get the folder of a run ready.

    Args:
        work: the folder.
        identity: of this run.
        resume: go on with what lies there; otherwise it is removed.
        overrides: `PATH=VALUE` of the command line; what they set counts as part of the recipe, and they are kept so
            that a refusal can name them.

    Returns:
        True when there is a run to go on with.

    Raises:
        UsageError: what lies there is another run; says what differs.
    """
    file = work / _RUN
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
    if file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
        if differs := [key for key, value in identity.items() if found.get(key) != value]:
            changed = _changes(found.get("recipe"), identity["recipe"]) if "recipe" in differs else []
            more = [*changed[:_SHOWN], f"and {len(changed) - _SHOWN} more"] if len(changed) > _SHOWN else changed
            raise UsageError(
                f"{work.parent} holds a run with another {' and '.join(differs)}; it cannot go on with this recipe"
                + "".join(f"\n  {line}" for line in [*more, *_told(found.get(_SET, []), overrides)]),
                hint="--resume never begins anew there, or give another --out",
            )
        return True
    work.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as f:
        f.write(json.dumps(identity | {_SET: list(overrides)}, indent=1).encode())
    return False


def _told(before: Sequence[str], now: Sequence[str]) -> list[str]:
    """What was set on the command line, then and now, where it differs."""
    if list(before) == list(now):
        return []

    def words(given: Sequence[str]) -> str:
        return " ".join(f"--set {shlex.quote(printable(one))}" for one in given) or "no --set"

    return [f"it was begun with {words(before)}; this is {words(now)}"]


def has_learned(work: Path) -> bool:
    """Whether a run has anything to go on with: a checkpoint, or a finished stage."""
    stages = [path for path in work.iterdir() if path.is_dir()] if work.is_dir() else []
    return any(checkpoints.found_in(stage) or (stage / _DONE).exists() for stage in stages)


def _changes(before: Any, now: Any, place: str = "") -> list[str]:
    """What differs between two trees of settings, one line each."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = dict.fromkeys([*before, *now])
        inner = [(f"{place}.{n}" if place else n, before.get(n), now.get(n)) for n in names]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        inner = [(f"{place}.{n}", *pair) for n, pair in enumerate(zip(before, now, strict=True), start=1)]
    else:
        return [] if before == now else [f"{place}: was {json.dumps(before):.60}, is {json.dumps(now):.60}"]
    return [line for name, one, other in inner for line in _changes(one, other, name)]


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
        fsync_folder(part / _WEIGHTS)
    (part / _WEIGHTS).replace(folder / _WEIGHTS)
    part.rmdir()
    with atomic_write(folder / _DONE) as f:
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
