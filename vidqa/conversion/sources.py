"""Weight files: keys with shapes and dtypes. Tensors are read one at a time, on request.

Supports safetensors files and files that `torch.save` wrote (`.bin`, `.pt`, `.pth`). The memory map is reopened
regularly, so that pages that were read do not accumulate in the process. Pickles may contain only tensors
(`weights_only`).
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

from vidqa.common.foreign_files import DOWNLOAD_AGAIN, JsonSettings, read_magic, read_settings
from vidqa.errors import BundleError

#: A memory map is reopened after this many bytes: pages that were read count as memory of the process.
_REOPEN_BYTES = 256 << 20
#: First bytes of torch's files: a zip archive, or the bare pickle of early versions.
_TORCH_MAGIC = (b"PK\x03\x04", b"\x80")

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
    """Shape, dtype and file of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path

    @property
    def n_bytes(self) -> int:
        """Size in the file, in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class WeightSource:
    """One set of weights, in one file or in shards.

    Args:
        path: the folder or file that the user passed.
        files: the shards.

    Raises:
        BundleError: a file cannot be read, contains more than tensors, or a key is in two files.
    """

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        self.path = path
        self.files = tuple(files)
        self.tensors: dict[str, TensorInfo] = {}
        for file in files:
            for key, info in _open(file).infos():
                if key in self.tensors:
                    raise BundleError(f"{file}: {key} is also in {self.tensors[key].file.name}")
                self.tensors[key] = info
        self._open: _File | None = None

    @property
    def folder(self) -> Path:
        """The folder in which the configuration and tokenizer of these weights are expected."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def label(self) -> str:
        """The file, or the folder of a set of shards, for messages."""
        return str(self.files[0] if len(self.files) == 1 else self.path)

    @cached_property
    def config(self) -> JsonSettings:
        """The `config.json` next to the weights; empty if there is none."""
        file = self.folder / "config.json"
        return read_settings(file) if file.is_file() else JsonSettings({}, file)

    def has_key(self, pattern: str) -> bool:
        """Return whether a key matches a regular expression at its start."""
        compiled = re.compile(pattern)
        return any(compiled.match(key) for key in self.tensors)

    def read(self, key: str) -> Tensor:
        """Read a tensor into memory of its own.

        Raises:
            BundleError: the file can no longer be read.
        """
        file = self.tensors[key].file
        if self._open is None or self._open.path != file:
            self._open = _open(file)
        return self._open.read(key)


def _open(path: Path) -> _File:
    return _SafetensorsFile(path) if path.suffix == ".safetensors" else _TorchFile(path)


class _File:
    """An open weights file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_bytes = 0

    def infos(self) -> Iterator[tuple[str, TensorInfo]]:
        raise AssertionError("implemented by subclasses")

    def read(self, key: str) -> Tensor:
        try:
            tensor = self._mapped(key).detach().clone()
        except (OSError, RuntimeError, SafetensorError) as e:
            raise BundleError(f"{self.path}: {key} cannot be read: {e}") from e
        self._read_bytes += tensor.nbytes
        if self._read_bytes > _REOPEN_BYTES:
            self._read_bytes = 0
            self._close()
        return tensor

    def _mapped(self, key: str) -> Tensor:
        raise AssertionError("implemented by subclasses")

    def _close(self) -> None:
        raise AssertionError("implemented by subclasses")


class _SafetensorsFile(_File):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._handle: Any = None

    def infos(self) -> Iterator[tuple[str, TensorInfo]]:
        try:
            read_magic(self.path)
            with safe_open(self.path, framework="pt") as f:
                for key in f.keys():  # noqa: SIM118  (not a mapping)
                    part = f.get_slice(key)
                    if part.get_dtype() not in _DTYPES:
                        raise BundleError(f"{self.path}: {key} has the type {part.get_dtype()}, which is not supported")
                    yield key, TensorInfo(tuple(part.get_shape()), _DTYPES[part.get_dtype()], self.path)
        except (SafetensorError, OSError) as e:
            raise BundleError(f"{self.path}: damaged safetensors file ({e})", hint=DOWNLOAD_AGAIN) from e

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
        self._reopen = True

    def infos(self) -> Iterator[tuple[str, TensorInfo]]:
        for key, tensor in self._load().items():
            yield key, TensorInfo(tuple(tensor.shape), tensor.dtype, self.path)

    def _mapped(self, key: str) -> Tensor:
        return self._load()[key]

    def _close(self) -> None:
        if self._reopen:
            self._map = None

    def _load(self) -> Mapping[str, Tensor]:
        if self._map is None:
            self._map = self._tensors(self._unpickled())
        return self._map

    def _unpickled(self) -> Any:
        # torch's own messages recommend loading such a file in the way that runs its code, so they are not shown.
        try:
            start = read_magic(self.path)
            if not start.startswith(_TORCH_MAGIC):
                raise BundleError(f"{self.path}: not a weights file, despite its name", hint=DOWNLOAD_AGAIN)
            zipped = start.startswith(b"PK")
            # Files from before torch 1.6 are not archives and cannot be memory-mapped: they are read once, completely.
            self._reopen = zipped
            return torch.load(self.path, map_location="cpu", weights_only=True, mmap=zipped)
        except pickle.UnpicklingError as e:
            if named := re.search(r"GLOBAL (\S+)", str(e)):
                what = f"contains more than tensors ({named[1]}); only tensors are accepted"
                raise BundleError(f"{self.path}: {what}") from e
            raise BundleError(f"{self.path}: damaged, or not a weights file", hint=DOWNLOAD_AGAIN) from e
        except (OSError, RuntimeError, EOFError, ValueError, KeyError) as e:
            why = str(e).partition(". ")[0][:200] or type(e).__name__
            raise BundleError(f"{self.path}: cannot be read as a weights file ({why})", hint=DOWNLOAD_AGAIN) from e

    def _tensors(self, data: Any) -> Mapping[str, Tensor]:
        if isinstance(data, dict) and set(data) == {"state_dict"}:
            data = data["state_dict"]
        if not isinstance(data, dict) or not all(isinstance(k, str) for k in data):
            raise BundleError(f"{self.path}: must contain a dictionary of tensors")
        for key, value in data.items():
            # A view that repeats one stored element could claim any size.
            if not isinstance(value, Tensor) or value.untyped_storage().nbytes() < value.nbytes:
                raise BundleError(f"{self.path}: {key} is not a plain tensor")
        return data
