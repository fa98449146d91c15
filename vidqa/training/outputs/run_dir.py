"""The work folder of a run: which run it belongs to, and weights and facts of each finished stage.

Every file is written atomically; the facts of a stage are written last and mark it as finished.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from vidqa.common.atomic_io import atomic_write, fsync_folder
from vidqa.common.output_paths import check_output_parent
from vidqa.config.toml_lines import printable
from vidqa.errors import UsageError
from vidqa.training.recipe.definition import Recipe
from vidqa.training.stage import checkpoints
from vidqa.training.stage.trainable import save_weights

_OVERRIDES = "set"  # key in run.json: the overrides of the command line
_RUN, _DONE, _WEIGHTS = "run.json", "done.json", "trained.safetensors"
#: Settings that change neither weights nor losses, or the losses by rounding only (how a step is split). After running
#: out of memory, or exceeding max_reject_rate, a run can be resumed with the settings that its error message suggests.
_NOT_IDENTITY: dict[str, Any] = {
    "logging": True,
    "output": True,
    "eval": True,
    "max_reject_rate": True,
    "model": {"base", "name"},  # the base is identified by its content
    "hardware": {"workers", "gradient_checkpointing"},
    "data": {"__all__": {"file", "media"}},  # likewise
    "stage": {"__all__": {"per_device_batch_size"}},
}
#: What a folder may contain before a run: the results of `--check-data`, and a work folder that a kill left empty.
_BEFORE_A_RUN = ("check", "work")
_MAX_CHANGES = 6  # shown in an error message


@dataclass(frozen=True)
class StageFacts:
    """Facts about a finished stage for the report; stored next to its weights."""

    name: str
    n_steps: int
    n_samples: int
    n_tokens: int  # positions that are not padding
    n_weights: int  # number of trained parameters
    seconds: float
    peak_bytes: int  # peak memory of the GPU or of the process
    per_device: int  # batch size per device
    processes: int
    final_loss: float | None  # of the last step that has a loss; None if all samples were rejected
    eval_loss: float | None
    rejects: Mapping[str, int]


def run_identity(recipe: Recipe, base_id: str, fingerprints: list[str]) -> dict[str, Any]:
    """Return everything that must be equal for a run to be resumed.

    Args:
        recipe: paths are ignored, and so are settings for logging, output and memory.
        base_id: model_id of the base.
        fingerprints: digests of the training data of each stage.
    """
    return {
        "recipe": recipe.model_dump(mode="json", exclude=_NOT_IDENTITY),
        "base": base_id,
        "data": hashlib.sha256("".join(fingerprints).encode()).hexdigest()[:16],
    }


def open_run(work: Path, identity: dict[str, Any], resume: bool, overrides: Sequence[str] = ()) -> bool:
    """Prepare the work folder of a run.

    Args:
        work: the folder.
        identity: identity of this run, from `run_identity`.
        resume: resume an existing run; otherwise it is removed.
        overrides: `PATH=VALUE` of the command line. Their settings are part of the recipe; they are stored so that an
            error message can name them.

    Returns:
        True if there is a run to resume.

    Raises:
        UsageError: the folder belongs to a different run; the message has the differences.
    """
    file = work / _RUN
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
    if file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
        if differences := [key for key, value in identity.items() if found.get(key) != value]:
            changes = _changes(found.get("recipe"), identity["recipe"]) if "recipe" in differences else []
            if len(changes) > _MAX_CHANGES:
                changes = [*changes[:_MAX_CHANGES], f"and {len(changes) - _MAX_CHANGES} more"]
            changes += _override_changes(found.get(_OVERRIDES, []), overrides)
            raise UsageError(
                f"{work.parent} has a run with a different {' and '.join(differences)}, so it cannot be resumed"
                + "".join(f"\n  {line}" for line in changes),
                hint="--resume never starts from scratch there, or use another --out",
            )
        return True
    work.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as f:
        f.write(json.dumps(identity | {_OVERRIDES: list(overrides)}, indent=1).encode())
    return False


def _override_changes(before: Sequence[str], now: Sequence[str]) -> list[str]:
    """Describe the overrides of both runs, if they differ."""
    if list(before) == list(now):
        return []

    def options(overrides: Sequence[str]) -> str:
        return " ".join(f"--set {shlex.quote(printable(one))}" for one in overrides) or "no --set"

    return [f"it was started with {options(before)}; this is {options(now)}"]


def require_own_folder(out: Path) -> None:
    """Check that a run may write to a folder: it is new or empty, or it has a run already.

    Raises:
        UsageError: `out` is a file, contains other files, or is in a folder that does not exist.
    """
    check_output_parent(out)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is not a folder", hint="another --out")
    if not out.is_dir() or (out / "work" / _RUN).exists():
        return
    if others := sorted(path.name for path in out.iterdir() if path.name not in _BEFORE_A_RUN):
        some = ", ".join(map(printable, others[:3])) + (" ..." if len(others) > 3 else "")
        raise UsageError(
            f"{out} contains other files ({some}); a training run needs a folder of its own", hint="another --out"
        )


def has_progress(work: Path) -> bool:
    """Return True if a run has anything to resume: a checkpoint, or a finished stage."""
    stages = [path for path in work.iterdir() if path.is_dir()] if work.is_dir() else []
    return any(checkpoints.list_checkpoints(stage) or (stage / _DONE).exists() for stage in stages)


def _changes(before: Any, now: Any, key: str = "") -> list[str]:
    """Describe the differences of two trees of settings, one line each."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = dict.fromkeys([*before, *now])
        inner = [(f"{key}.{n}" if key else n, before.get(n), now.get(n)) for n in names]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        inner = [(f"{key}.{n}", *pair) for n, pair in enumerate(zip(before, now, strict=True), start=1)]
    else:
        return [] if before == now else [f"{key}: was {json.dumps(before):.60}, is {json.dumps(now):.60}"]
    return [line for name, one, other in inner for line in _changes(one, other, name)]


def save_stage(folder: Path, weights: dict[str, Tensor], facts: StageFacts) -> None:
    """Store a finished stage and remove its checkpoints.

    Raises:
        TrainError: the disk is full; the checkpoints remain.
    """
    n_bytes = sum(w.numel() * w.element_size() for w in weights.values()) + (1 << 20)
    checkpoints.require_disk_space(folder, n_bytes, "the weights of the stage")
    part = folder / f".{_WEIGHTS}.part"
    part.mkdir(parents=True, exist_ok=True)
    with checkpoints.removed_if_disk_full(part, "the weights of the stage"):
        save_weights(weights, part / _WEIGHTS)
        fsync_folder(part / _WEIGHTS)
    (part / _WEIGHTS).replace(folder / _WEIGHTS)
    part.rmdir()
    with atomic_write(folder / _DONE) as f:
        f.write(json.dumps(asdict(facts)).encode())
    for _, checkpoint in checkpoints.list_checkpoints(folder):
        shutil.rmtree(checkpoint, ignore_errors=True)


def read_stage(folder: Path) -> StageFacts | None:
    """Read the facts about a stage; None if it is not finished."""
    file = folder / _DONE
    if not file.exists() or not (folder / _WEIGHTS).exists():
        return None
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return StageFacts(**found)


def load_stage_weights(folder: Path) -> dict[str, Tensor]:
    """Load the trained weights of a finished stage to the CPU."""
    return dict(load_file(folder / _WEIGHTS))
