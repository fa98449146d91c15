"""Checks on files and values of a checkpoint: complete files, valid JSON, finite numbers.

An interrupted download or an unfinished clone may leave other content in place of a file, and a single NaN in a
checkpoint makes every answer empty or meaningless. Both are detected while the data is read, without an extra pass.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vidqa.errors import BundleError

if TYPE_CHECKING:
    from vidqa.convert.lazy_tensors import LazyTensor

#: Hint for a file whose content is not what was published.
DOWNLOAD_AGAIN = "download the file again: it may be incomplete, or an error page that a server sent instead"
#: What a clone of a repository contains in place of a large file until Git LFS has fetched it.
_LFS_POINTER = b"version https://git-lfs.github.com/"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        BundleError: the file cannot be read, or is not a JSON object.
    """
    try:
        read_magic(path)
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise BundleError(f"{path} cannot be read: {e}") from e
    if not isinstance(data, dict):
        raise BundleError(f"{path}: must contain a JSON object, got {type(data).__name__}")
    return data


def read_magic(path: Path) -> bytes:
    """Return the first bytes of a file, after checking that it is not a placeholder.

    Raises:
        BundleError: the file is empty, or a pointer to a file that Git LFS has not fetched.
        OSError: the file cannot be opened.
    """
    with path.open("rb") as f:
        start = f.read(len(_LFS_POINTER))
    if not start:
        raise BundleError(f"{path}: an empty file", hint=DOWNLOAD_AGAIN)
    if start == _LFS_POINTER:
        raise BundleError(f"{path}: a Git LFS pointer instead of the file itself", hint="git lfs pull")
    return start


def read_finite(tensor: LazyTensor, dtype: torch.dtype | None) -> Tensor:
    """Read a tensor, convert it and check that all values are finite.

    Args:
        tensor: the tensor to read. If it is computed (LoRA, delta weights), the computed values are checked.
        dtype: dtype of the result; None keeps the stored dtype.

    Raises:
        BundleError: the tensor cannot be read, or a value is not finite as stored or in the requested dtype.
    """
    stored = tensor.read()
    converted = stored.to(dtype or stored.dtype).contiguous()
    if _is_finite(converted):
        return converted
    n_bad, name = int((~torch.isfinite(converted)).sum()), str(converted.dtype).removeprefix("torch.")
    what = f"{n_bad} of {converted.numel()} values"
    if _is_finite(stored):
        raise BundleError(f"{tensor.label}: {what} are too large for {name}", hint="--dtype bfloat16 or float32")
    raise BundleError(
        f"{tensor.label}: {what} are NaN or infinite",
        hint="download the file again; if it was published like this, ask its authors",
    )


def _is_finite(tensor: Tensor) -> bool:
    """Return whether all values are finite: NaN propagates to minimum and maximum, and an infinity is one of them."""
    return not tensor.numel() or all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor))
