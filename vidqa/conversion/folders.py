"""Sets of weights in a folder, as trainers and publishers leave it.

Such folders also contain optimizer states, earlier checkpoints, the same weights in another format, and more. What is
no part of the model is skipped and reported, unless its name is that of model weights: then it must be readable.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vidqa.common.foreign_files import read_settings
from vidqa.conversion.sources import WeightSource
from vidqa.errors import BundleError

_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
#: Weights in formats that are not read.
_OTHER_FORMATS = (
    ".h5",
    ".msgpack",
    ".gguf",
    ".ggml",
    ".onnx",
    ".ckpt",
    ".pkl",
    ".pickle",
    ".npz",
    ".tflite",
    ".distcp",
)
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
#: States of a training run, of transformers, accelerate, DeepSpeed and FSDP, and LLaMA's own format.
_TRAINING_STATE = re.compile(
    r"(training_args|trainer_state|(optimizer|scheduler|lr_scheduler|rng_state|random_states|scaler|sampler)(_.*)?"
    r"|dl_state_dict.*|custom_checkpoint.*|((bf|fp)16_)?zero_pp_rank_.*|mp_rank_.*|.*_(optim|model)_states"
    r"|pytorch_model_fsdp.*|consolidated.*)\.[a-z]+"
)
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.[a-z]+)")
#: Names of the weights of a whole model, and of the parts that trainers save next to them.
_MODEL = re.compile(r"(model|pytorch_model)[.-].*")
_PARTS = re.compile(r"(adapter_model|mm_projector|non_lora_trainables)\..*")
_MAX_NAMES = 40


@dataclass(frozen=True)
class FolderContent:
    """The sets of weights in a folder, and the names of files and subfolders that are not used."""

    sources: tuple[WeightSource, ...]
    not_model: tuple[str, ...] = ()  # no part of the model
    duplicates: tuple[str, ...] = ()  # the same weights in another format


def open_sources(path: Path, apart: Collection[Path] = ()) -> FolderContent:
    """Open all sets of weights in a file or folder.

    A folder may contain several: a LoRA adapter has its projector in a separate file. If the same weights exist as
    safetensors and in another format, the safetensors files are used. Subfolders are not searched.

    Args:
        path: the file or folder.
        apart: resolved files that were passed on their own, so that a folder leaves them out.

    Raises:
        BundleError: there are no weights, a set is incomplete, or a file cannot be read.
    """
    if path.is_file():
        if path.suffix not in _SUFFIXES:
            raise BundleError(
                f"{path}: not a weights file",
                hint=f"use a file with one of the suffixes {', '.join(_SUFFIXES)}, or a folder",
            )
        return FolderContent((WeightSource(path, [path]),))
    if not path.is_dir():
        raise BundleError(f"{path}: no such file or folder")
    not_model = list(_not_model(path))
    files = [p for p in sorted(path.iterdir()) if p.suffix in _SUFFIXES and p.name not in not_model and p.is_file()]
    groups, duplicates = _groups(path, files, apart)
    problems: list[BundleError] = []
    sources = []
    for group in groups:
        try:
            sources.append(WeightSource(path, group))
        except BundleError as e:
            if has_model_name(group[0]):
                raise
            problems.append(e)
            not_model.append(group[0].name)
    if not sources:
        raise problems[0] if problems else _no_weights(path)
    return FolderContent(tuple(sources), tuple(not_model), tuple(duplicates))


def listed(names: Sequence[str]) -> str:
    """Return names as text, at most 40 of them."""
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(sorted(names)[:_MAX_NAMES]) + more


def has_model_name(file: Path) -> bool:
    """Return whether a file has a name that trainers use for model weights, so that it must not be skipped."""
    return bool(_MODEL.fullmatch(file.name) or _PARTS.fullmatch(file.name) or _SHARD.fullmatch(file.name))


def _no_weights(folder: Path) -> BundleError:
    hint = None
    for inside in sorted(p for p in folder.iterdir() if p.is_dir()):
        names = [p for p in inside.glob("*.*") if p.suffix in _SUFFIXES and not _TRAINING_STATE.fullmatch(p.name)]
        hint = hint or (f"use its subfolder {inside.name}" if names else None)
    return BundleError(f"{folder}: the folder contains no weights ({', '.join(_SUFFIXES)})", hint=hint)


def _not_model(folder: Path) -> Iterator[str]:
    """Yield the names of subfolders, training states, and weights in formats that are not read."""
    for path in folder.iterdir():
        if path.is_dir():
            yield f"{path.name}/"
        elif path.suffix in _OTHER_FORMATS or (path.suffix in _SUFFIXES and _TRAINING_STATE.fullmatch(path.name)):
            yield path.name


def _groups(folder: Path, files: Sequence[Path], apart: Collection[Path]) -> tuple[list[list[Path]], list[str]]:
    """Return groups of files that belong together (shards), and the names of files in formats that are not used."""
    model = [p for p in files if _MODEL.fullmatch(p.name)]
    is_safe = any(p.suffix == ".safetensors" for p in model)
    index = next((n for n in _INDICES if (folder / n).is_file() and (not is_safe or "safetensors" in n)), None)
    chosen = _shards(folder / index) if index else _unindexed(model)
    others = [p for p in files if p not in model and p not in chosen and p.resolve() not in apart]
    loose = [p for p in others if p.suffix == ".safetensors" or p.with_suffix(".safetensors") not in others]
    duplicates = [p.name for p in (*model, *others) if p not in chosen and p not in loose]
    stems: dict[str, list[Path]] = {}
    for p in loose if index else chosen + loose:
        stems.setdefault(m[1] + m[3] if (m := _SHARD.fullmatch(p.name)) else p.name, []).append(p)
    for group in stems.values():
        m = _SHARD.fullmatch(group[0].name)
        if m and int(m[2]) != len(group):
            raise BundleError(f"{folder}: found {len(group)} of {int(m[2])} shards like {group[0].name}")
    return ([chosen] if index else []) + list(stems.values()), duplicates


def _unindexed(model: Sequence[Path]) -> list[Path]:
    """Choose among the weights of a whole model: safetensors before other formats, variants only if alone."""
    found = [p for p in model if p.suffix == ".safetensors"] or list(model)
    usual = [p for p in found if p.stem in ("model", "pytorch_model") or _SHARD.fullmatch(p.name)]
    return usual or found


def _shards(index: Path) -> list[Path]:
    """Return the files that an index lists; they must be in its folder."""
    settings = read_settings(index)
    names = (settings.section("weight_map") or {}).values()
    if not names:
        raise settings.error("weight_map", "must list the files of the weights")
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or not name.endswith(_SUFFIXES):
            raise settings.error("weight_map", f"must list weight files of this folder, got {name!r:.80}")
    shards = [index.parent / name for name in sorted(set(names))]
    if missing := [p.name for p in shards if not p.is_file()]:
        raise BundleError(f"{index}: lists {', '.join(missing)}, which this folder does not contain")
    return shards
