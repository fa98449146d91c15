"""Which kernels of our own a device gets: those that are right there, and only where they are faster.

Kernels are written in Triton, which comes with torch's CUDA builds, in modules that nothing imports but this one, when
a model computes in half precision on a CUDA device. Nothing needs them: where Triton is missing, or a module's kernels
do not give what torch's own functions give on the device at hand, those are used, and the log says so once.
"""

from __future__ import annotations

import functools
import importlib
import logging
from typing import Any

import torch

log = logging.getLogger(__name__)

#: float32 is left to torch, which is exact in it.
_DTYPES = (torch.bfloat16, torch.float16)
#: Widths of a head that the kernels are made for.
_WIDTHS = (16, 32, 64, 128, 256)
#: Numbers around 1 in half precision, after a few operations.
_MOST_DIFFERENCE = 0.03


def proven(name: str, device: torch.device, dtype: torch.dtype, width: int) -> Any:
    """A module of kernels, or None where torch's own functions are to be used.

    Kernels start on the thread's current device, so no other gets them.

    Args:
        name: of the module. Its `difference(device, dtype, width)` compiles all that may be called, and gives the
            largest difference from torch's own functions on numbers around 1.
        device: of the model.
        dtype: of its weights.
        width: of a head.
    """
    if device.type != "cuda" or dtype not in _DTYPES or width not in _WIDTHS:
        return None
    if device.index is not None and device.index != torch.cuda.current_device():
        return None
    return prove(name, device, dtype, width)[0]


@functools.cache
def prove(name: str, device: torch.device, dtype: torch.dtype, width: int) -> tuple[Any, str]:
    """The module of `proven`, or None and the reason; once for each device, type and width."""
    try:
        module = importlib.import_module(name)
        far = module.difference(device, dtype, width)
    except ImportError as error:
        log.info("%s is not used: %s", name, error)
        return None, str(error)
    except torch.OutOfMemoryError:  # says nothing about the kernels: whoever runs steps backs off and comes again
        raise
    except Exception as error:  # a compiler and a driver stand behind it: whatever they say, there is another way
        why = (str(error).splitlines() or [repr(error)])[0]
    else:
        if far <= _MOST_DIFFERENCE:
            return module, ""
        why = f"its results differ by {far:.2g}"
    log.warning("%s is not used, so answers take longer: %s", name, why)
    return None, why
