"""Checkpoint folders: written atomically, with a check of the free disk space; only the latest ones are kept.

A checkpoint is a folder `checkpoint-STEP`. It is written under a temporary name, flushed to disk, and then renamed.
The next run removes temporary folders that a killed run left.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from vidqa.common.atomic_io import fsync_folder
from vidqa.common.disk_space import disk_full_as, free_disk_bytes
from vidqa.common.display import human_bytes
from vidqa.errors import TrainError

_NAME = re.compile(r"checkpoint-(\d+)")
_PART = ".part"
_RESUME_HINT = "free some disk space and run the same command again: it resumes from the last checkpoint"


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of each complete checkpoint of a stage, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(m[1]), path) for path in folder.iterdir() if (m := _NAME.fullmatch(path.name))]
    return sorted(found)


def remove_incomplete(folder: Path) -> None:
    """Remove incomplete checkpoints that a killed run left."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name.endswith(_PART):
                shutil.rmtree(path, ignore_errors=True)


def temporary_path(folder: Path, step: int) -> Path:
    """Return where the checkpoint of a step is written before it is renamed."""
    return folder / f".checkpoint-{step}{_PART}"


def publish(part: Path, folder: Path, step: int, save_total_limit: int) -> Path:
    """Flush a written checkpoint to disk, rename it, and remove all but the latest `save_total_limit` checkpoints.

    Returns:
        The folder of the checkpoint.
    """
    for path in [*part.rglob("*"), part]:
        fsync_folder(path)
    target = folder / f"checkpoint-{step}"
    if target.exists():  # from an earlier attempt
        shutil.rmtree(target)
    part.rename(target)
    fsync_folder(folder)
    for _, old in list_checkpoints(folder)[:-save_total_limit]:
        # Renamed first, because a partly removed checkpoint must not look complete.
        gone = old.with_name(f".{old.name}{_PART}")
        old.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
    return target


def require_disk_space(folder: Path, n_bytes: int, what: str, hint: str | None = None) -> None:
    """Check that a disk has enough free space.

    Args:
        folder: a folder on the disk; it need not exist yet.
        n_bytes: required size in bytes.
        what: noun for what is to be written, for the message.
        hint: what to try; None suggests settings of the recipe.

    Raises:
        TrainError: there is not enough; the message has the required and the free size.
    """
    free = free_disk_bytes(folder)
    if free < n_bytes:
        raise TrainError(
            f"not enough disk space for {what} in {folder}: {human_bytes(n_bytes)} required, {human_bytes(free)} free",
            hint=hint or "free some disk space, use another --out, or lower output.save_total_limit in the recipe",
        )


@contextmanager
def removed_if_disk_full(folder: Path, what: str) -> Iterator[None]:
    """Turn a full disk inside the block into a TrainError; after any error, remove the incomplete folder.

    Args:
        folder: the folder that the block writes.
        what: noun for what is written, for the message.
    """

    def new_error(error: Exception) -> TrainError:
        return TrainError(f"disk full while writing {what} in {folder.parent}: {error}", hint=_RESUME_HINT)

    try:
        with disk_full_as(new_error):
            yield
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def disk_full_as_train_error(folder: Path) -> AbstractContextManager[None]:
    """Turn a full disk inside the block into a TrainError, whichever file of the run caused it.

    Args:
        folder: folder of the run.
    """

    def new_error(error: Exception) -> TrainError:
        what = f"disk full while writing the run in {folder}: {getattr(error, 'strerror', None) or error}"
        return TrainError(what, hint=_RESUME_HINT)

    return disk_full_as(new_error)


def folder_bytes(folder: Path) -> int:
    """Return the total size in bytes of all files in a folder and its subfolders."""
    return sum(os.path.getsize(p) for p in folder.rglob("*") if p.is_file())
