"""Check that the values of a checkpoint are finite.

A single NaN makes every answer empty or meaningless. It is detected while the data is read, without an extra pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vidqa.errors import BundleError

if TYPE_CHECKING:
    from vidqa.conversion.lazy_tensors import LazyTensor


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
