"""Files of weights -> keys with shapes and types; a tensor is read when it is asked for, one at a time.

Reads safetensors, and zip-form `.bin` files through a memory map that is renewed now and then, so that pages once read
do not add up. Of a pickle only tensors are accepted (`weights_only`). Does not know what a key means.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vidqa.convert.checks import AGAIN, read_json, refuse_pointer
from vidqa.errors import BundleError

#: After this many bytes a memory map is closed and opened again: its pages count as memory of the process.
_RENEW_BYTES = 256 << 20
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
#: What training leaves beside the weights; optimiser states and arguments are no part of a model.
_NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|rng_state.*|scaler|trainer_state)\.(bin|pt|pth)")
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.[a-z]+)")
#: Beginnings of torch's files: an archive, or the bare pickle of its early versions.
_TORCH_STARTS = (b"PK\x03\x04", b"\x80")

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path

    @property
    def n_bytes(self) -> int:
        """Size in the file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class WeightSource:
    """One set of weights, in one file or in shards.

    Args:
        place: what the user named: the folder or the file.
        files: the shards.

    Raises:
        BundleError: a file cannot be read, holds something else than tensors, or a key is in two files.
    """

    def __init__(self, place: Path, files: Sequence[Path]) -> None:
        self.place = place
        self.files = tuple(files)
        self.tensors: dict[str, TensorInfo] = {}
        for file in files:
            for key, info in _open(file).infos():
                if key in self.tensors:
                    raise BundleError(f"{file}: {key} is in {self.tensors[key].file.name} too")
                self.tensors[key] = info
        self._open: _File | None = None

    @property
    def folder(self) -> Path:
        """Where the configuration and the tokenizer of these weights would lie."""
        return self.place if self.place.is_dir() else self.place.parent

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json` beside the weights; empty where there is none."""
        return read_json(self.folder / "config.json") if (self.folder / "config.json").is_file() else {}

    def has(self, pattern: str) -> bool:
        """Whether some key matches a regular expression from its beginning."""
        wanted = re.compile(pattern)
        return any(wanted.match(key) for key in self.tensors)

    def read(self, key: str) -> Tensor:
        """One tensor in memory of its own.

        Raises:
            BundleError: the file cannot be read any more.
        """
        file = self.tensors[key].file
        if self._open is None or self._open.path != file:
            self._open = _open(file)
        return self._open.read(key)


def open_sources(place: Path) -> list[WeightSource]:
    """All sets of weights that a file or folder holds.

    A folder may hold several: a LoRA adapter has its projector in a file of its own. Where the same weights are there
    as safetensors and as `.bin`, the former are taken.

    Raises:
        BundleError: there are none, one is incomplete, or one cannot be read.
    """
    if place.is_file():
        if place.suffix not in _SUFFIXES:
            raise BundleError(f"{place}: not a file of weights", hint=f"one of {', '.join(_SUFFIXES)}, or a folder")
        return [WeightSource(place, [place])]
    if not place.is_dir():
        raise BundleError(f"{place}: no such file or folder")
    sources = [WeightSource(place, group) for group in _groups(place)]
    if not sources:
        raise BundleError(f"{place}: no weights here ({', '.join(_SUFFIXES)})")
    return sources


def _groups(folder: Path) -> Iterator[list[Path]]:
    """Files that belong together."""
    files = sorted(p for p in folder.iterdir() if p.suffix in _SUFFIXES and not _NO_WEIGHTS.fullmatch(p.name))
    for name in _INDICES:
        if not (folder / name).is_file():
            continue
        names = read_json(folder / name).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(n, str) and Path(n).name == n for n in names.values()):
            raise BundleError(f"{folder / name}: `weight_map` must name files of this folder")
        shards = [folder / n for n in sorted(set(names.values()))]
        if missing := [p.name for p in shards if not p.is_file()]:
            raise BundleError(f"{folder / name}: names {', '.join(missing)}, missing in this folder")
        yield shards
        files = [p for p in files if p not in shards and not _is_main(p)]
        break
    if any(_is_main(p) and p.suffix == ".safetensors" for p in files):
        files = [p for p in files if not _is_main(p) or p.suffix == ".safetensors"]
    stems: dict[str, list[Path]] = {}
    for p in files:
        stems.setdefault(m[1] + m[3] if (m := _SHARD.fullmatch(p.name)) else p.name, []).append(p)
    for group in stems.values():
        m = _SHARD.fullmatch(group[0].name)
        if m and int(m[2]) != len(group):
            raise BundleError(f"{folder}: {len(group)} of {int(m[2])} shards like {group[0].name} are here")
        yield group


def _is_main(path: Path) -> bool:
    """Whether a file holds the model itself, as transformers names it."""
    return path.name.startswith(("model.", "model-", "pytorch_model.", "pytorch_model-"))


def _open(path: Path) -> _File:
    return _SafetensorsFile(path) if path.suffix == ".safetensors" else _TorchFile(path)


class _File:
    """One open file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_bytes = 0

    def infos(self) -> Iterator[tuple[str, TensorInfo]]:
        raise AssertionError("of a subclass")

    def read(self, key: str) -> Tensor:
        try:
            tensor = self._mapped(key).detach().clone()
        except (OSError, RuntimeError, SafetensorError) as e:
            raise BundleError(f"{self.path}: {key} cannot be read: {e}") from e
        self._read_bytes += tensor.nbytes
        if self._read_bytes > _RENEW_BYTES:
            self._read_bytes = 0
            self._close()
        return tensor

    def _mapped(self, key: str) -> Tensor:
        raise AssertionError("of a subclass")

    def _close(self) -> None:
        raise AssertionError("of a subclass")


class _SafetensorsFile(_File):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._handle: Any = None

    def infos(self) -> Iterator[tuple[str, TensorInfo]]:
        try:
            refuse_pointer(self.path)
            with safe_open(self.path, framework="pt") as f:
                for key in f.keys():  # noqa: SIM118  (not a mapping)
                    part = f.get_slice(key)
                    if part.get_dtype() not in _DTYPES:
                        raise BundleError(f"{self.path}: {key} has the type {part.get_dtype()}, which is not supported")
                    yield key, TensorInfo(tuple(part.get_shape()), _DTYPES[part.get_dtype()], self.path)
        except (SafetensorError, OSError) as e:
            raise BundleError(f"{self.path}: damaged safetensors file ({e})", hint=AGAIN) from e

    def _mapped(self, key: str) -> Tensor:
        if self._handle is None:
            self._handle = safe_open(self.path, framework="pt")
        return self._handle.get_tensor(key)

    def _close(self) -> None:
        self._handle = None


class _TorchFile(_File):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._map: Mapping[str, Tensor] | None = None
        self._renew = True

    def infos(self) -> Iterator[tuple[str, TensorInfo]]:
        for key, tensor in self._load().items():
            yield key, TensorInfo(tuple(tensor.shape), tensor.dtype, self.path)

    def _mapped(self, key: str) -> Tensor:
        return self._load()[key]

    def _close(self) -> None:
        if self._renew:
            self._map = None

    def _load(self) -> Mapping[str, Tensor]:
        if self._map is None:
            self._map = self._tensors(self._unpickled())
        return self._map

    def _unpickled(self) -> Any:
        # torch's own words advise to load such a file in the way that runs its code, so they are not passed on.
        try:
            start = refuse_pointer(self.path)
            if not start.startswith(_TORCH_STARTS):
                raise BundleError(f"{self.path}: not a file of weights, whatever its name says", hint=AGAIN)
            zipped = start.startswith(b"PK")
            # The form before torch 1.6 is no archive and cannot be mapped: it is read whole, once.
            self._renew = zipped
            return torch.load(self.path, map_location="cpu", weights_only=True, mmap=zipped)
        except pickle.UnpicklingError as e:
            if named := re.search(r"GLOBAL (\S+)", str(e)):
                what = f"holds more than tensors ({named[1]}), and only weights are read"
                raise BundleError(f"{self.path}: {what}") from e
            raise BundleError(f"{self.path}: damaged, or not a file of weights", hint=AGAIN) from e
        except (OSError, RuntimeError, EOFError, ValueError, KeyError) as e:
            why = str(e).partition(". ")[0][:200] or type(e).__name__
            raise BundleError(f"{self.path}: cannot be read as a file of weights ({why})", hint=AGAIN) from e

    def _tensors(self, data: Any) -> Mapping[str, Tensor]:
        if isinstance(data, dict) and set(data) == {"state_dict"}:
            data = data["state_dict"]
        if not isinstance(data, dict) or not all(isinstance(k, str) for k in data):
            raise BundleError(f"{self.path}: must hold a table of tensors by name")
        for key, value in data.items():
            # A view that repeats one element could claim any size.
            if not isinstance(value, Tensor) or value.untyped_storage().nbytes() < value.nbytes:
                raise BundleError(f"{self.path}: {key} is not a plain tensor")
        return data
