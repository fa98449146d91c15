"""Check of vidqa's own GPU kernels: a device gets only kernels whose results match torch's own functions.

Kernels are written in Triton, which comes with torch's CUDA builds. Their modules are imported only here, when a model
runs in half precision on a CUDA device. They are optional: if Triton is missing or the results of a module differ on
the device at hand, torch's own functions are used and the log reports it once.
"""

from __future__ import annotations

import functools
import importlib
import logging
from typing import Any

import torch

log = logging.getLogger(__name__)

#: float32 is left to torch, whose matmuls keep its full precision.
_DTYPES = (torch.bfloat16, torch.float16)
#: Values of head_dim that the kernels support.
_HEAD_DIMS = (16, 32, 64, 128, 256)
#: Largest accepted error, for values around 1 in half precision after a few operations.
_MAX_DIFFERENCE = 0.03


def checked_kernels(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> Any:
    """Return a module of kernels, or None if torch's own functions are to be used.

    Kernels start on the thread's current device, so other devices get None.

    Args:
        name: name of the module. Its `max_difference(device, dtype, head_dim)` compiles all kernels and returns the
            largest difference from torch's own functions for values around 1.
        device: device of the model.
        dtype: dtype of the model's weights.
        head_dim: head_dim of the model.
    """
    if device.type != "cuda" or dtype not in _DTYPES or head_dim not in _HEAD_DIMS:
        return None
    if device.index is not None and device.index != torch.cuda.current_device():
        return None
    return check_kernels(name, device, dtype, head_dim)[0]


@functools.cache
def check_kernels(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[Any, str]:
    """Return the module of `checked_kernels`, or None and the reason; checked once per device, dtype and head_dim."""
    try:
        module = importlib.import_module(name)
        difference = module.max_difference(device, dtype, head_dim)
    except ImportError as error:
        log.info("%s is not used: %s", name, error)
        return None, str(error)
    except torch.OutOfMemoryError:  # not a fault of the kernels: the engine backs off and runs the step again
        raise
    except Exception as error:  # noqa: BLE001 - compiler and driver may raise anything, and torch's functions remain
        why = (str(error).splitlines() or [repr(error)])[0]
    else:
        if difference <= _MAX_DIFFERENCE:
            return module, ""
        why = f"its results differ by {difference:.2g}"
    log.warning("%s is not used, so answers take longer: %s", name, why)
    return None, why
