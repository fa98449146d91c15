"""Values of a weight on their way to the disk: in the type that is wanted, and all of them finite numbers.

One NaN in a checkpoint makes every answer empty or nonsense, so it is found while the tensor is in memory anyway.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vidqa.convert.lazy_tensors import LazyTensor
from vidqa.errors import BundleError


def read_finite(origin: LazyTensor, dtype: torch.dtype | None) -> Tensor:
    """Read a tensor and convert it.

    Args:
        origin: the tensor to come; of sums (a LoRA, a difference) what is looked at is the sum.
        dtype: of the result; None keeps its own.

    Raises:
        BundleError: it cannot be read, or a number in it is not finite, as published or in the type that is wanted.
    """
    read = origin.read()
    tensor = read.to(dtype or read.dtype).contiguous()
    if _is_finite(tensor):
        return tensor
    n_bad, kind = int((~torch.isfinite(tensor)).sum()), str(tensor.dtype).removeprefix("torch.")
    what = f"{n_bad} of {tensor.numel()} numbers"
    if _is_finite(read):
        raise BundleError(f"{origin.label}: {what} are too large for {kind}", hint="--dtype bfloat16 or float32")
    raise BundleError(
        f"{origin.label}: {what} are NaN or infinite",
        hint="fetch the file again; if it was published so, ask its authors",
    )


def _is_finite(tensor: Tensor) -> bool:
    """One pass and no memory: a NaN is passed on by both ends, an infinite number is one."""
    return not tensor.numel() or all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor))
