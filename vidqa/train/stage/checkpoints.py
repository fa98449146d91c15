"""Checkpoints on disk: whole or absent, the last few kept, room looked for first.

A checkpoint is a folder `checkpoint-STEP`. It is written under a temporary name, brought to the disk, and only then
renamed; what a killed run left under a temporary name is removed by the next. Knows folders and bytes, not weights.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vidqa.common.atomic_io import fsync_folder
from vidqa.common.disk_space import free_disk_bytes, is_disk_full
from vidqa.common.display import human_bytes
from vidqa.errors import TrainError

_NAME = re.compile(r"checkpoint-(\d+)")
_PART = ".part"
_AGAIN = "free some space and run the same command again: it goes on from the last checkpoint"


def found_in(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) of the whole checkpoints of a stage, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(m[1]), path) for path in folder.iterdir() if (m := _NAME.fullmatch(path.name))]
    return sorted(found)


def clear_parts(folder: Path) -> None:
    """Remove what a killed run left half-written."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name.endswith(_PART):
                shutil.rmtree(path, ignore_errors=True)


def part_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is written before it has its name."""
    return folder / f".checkpoint-{step}{_PART}"


def settle(part: Path, folder: Path, step: int, keep: int) -> Path:
    """Bring a written checkpoint to the disk, give it its name, and remove those that are older than the last `keep`.

    Returns:
        The checkpoint.
    """
    for path in [*part.rglob("*"), part]:
        fsync_folder(path)
    target = folder / f"checkpoint-{step}"
    if target.exists():  # of a run that went this way before
        shutil.rmtree(target)
    part.rename(target)
    fsync_folder(folder)
    for _, old in found_in(folder)[:-keep]:
        # Renamed first: a checkpoint that is half removed must not look whole.
        gone = old.with_name(f".{old.name}{_PART}")
        old.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
    return target


def need_room(folder: Path, n_bytes: int, what: str, hint: str | None = None) -> None:
    """See whether a disk has room.

    Args:
        folder: on the disk; need not exist yet.
        n_bytes: wanted.
        what: for the message.
        hint: what to try; None names the recipe's own ways.

    Raises:
        TrainError: it has not; says how much is wanted and there.
    """
    free = free_disk_bytes(folder)
    if free < n_bytes:
        raise TrainError(
            f"no room for {what} in {folder}: {human_bytes(n_bytes)} needed, {human_bytes(free)} free",
            hint=hint or "free some space, another --out, or a smaller output.keep in the recipe",
        )


@contextmanager
def explained(folder: Path, what: str) -> Iterator[None]:
    """Turn a full disk inside the block into a TrainError, and remove what was half-written.

    Args:
        folder: what the block writes.
        what: for the message.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        if not is_disk_full(error):
            raise
        raise TrainError(f"no room for {what} in {folder.parent}: {error}", hint=_AGAIN) from error


@contextmanager
def room_needed(folder: Path) -> Iterator[None]:
    """Turn a full disk inside the block into a TrainError, whichever file of the run met it.

    Args:
        folder: of the run.
    """
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise TrainError(f"no room for the run in {folder}: {error.strerror or error}", hint=_AGAIN) from error


def folder_bytes(folder: Path) -> int:
    """Size of all files below a folder."""
    return sum(os.path.getsize(p) for p in folder.rglob("*") if p.is_file())
