"""Which devices could run a graph: a name asked for -> `cpu` or `cuda:N`, or a DeviceError.

Asks the driver only, through ctypes: no context is made and nothing heavy is imported, so `--help` and `doctor` can
afford it. Does not know graphs; whether the provider itself really starts, `session` finds out.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vidqa.errors import DeviceError

#: Held while a CUDA device does what another thread must not disturb: the recording of a graph on one side, calls of
#: onnxruntime, which wait for the whole device when a session opens, on the other.
UNDISTURBED = threading.RLock()
#: How others give back memory of CUDA devices that they hold and do not use (torch keeps what it freed): onnxruntime
#: asks for it, holding `UNDISTURBED`, before it says that a device is full.
GIVE_BACK: list[Callable[[], None]] = []
_CUDA_HINT = (
    "--device cpu, or install a driver and the CUDA and cuDNN wheels that onnxruntime-gpu names: "
    'pip install "onnxruntime-gpu[cuda,cudnn]"'
)


@dataclass(frozen=True)
class Device:
    """One line of `vidqa doctor`."""

    name: str  # `cpu`, `cuda:0`
    title: str  # what it is, for people
    usable: bool
    reason: str = ""  # why not, empty when usable


def available_devices() -> tuple[Device, ...]:
    """The CPU and every CUDA device that the driver shows, or one line that says why there is none."""
    cpu = Device("cpu", f"{cpu_threads()} threads", True)
    names, problem = _cuda_names()
    if problem:
        return cpu, Device("cuda", "", False, problem)
    missing = "" if has_cuda_build() else "the installed onnxruntime has no CUDA provider"
    return cpu, *(Device(f"cuda:{i}", name, not missing, missing) for i, name in enumerate(names))


def parse_device(device: str) -> tuple[str, int | None]:
    """Split a device's name.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Returns:
        `auto`, `cpu` or `cuda`, and N where it was given.

    Raises:
        DeviceError: any other text.
    """
    match = re.fullmatch(r"(auto|cpu|cuda)(?::(\d{1,3}))?", device)
    if match is None or (match[2] and match[1] != "cuda"):
        raise DeviceError(f"unknown device {device!r}", hint="auto, cpu, cuda or cuda:N")
    return match[1], int(match[2]) if match[2] else None


def find_cuda(index: int | None) -> str:
    """`cuda:N` for a device that driver and onnxruntime both know.

    Raises:
        DeviceError: there is none, with the reason.
    """
    names, problem = _cuda_names()
    if not problem and not has_cuda_build():
        problem = "the installed onnxruntime has no CUDA provider"
    if problem:
        raise DeviceError(f"no CUDA device can be used: {problem}", hint=_CUDA_HINT)
    if (index or 0) >= len(names):
        known = ", ".join(f"cuda:{i} ({name})" for i, name in enumerate(names))
        raise DeviceError(f"there is no device cuda:{index}", hint=f"one of {known}")
    return f"cuda:{index or 0}"


def cuda_error(device: str, detail: str) -> DeviceError:
    """The error for a CUDA device that is there but does not start."""
    return DeviceError(f"onnxruntime cannot use {device}: {detail}", hint=_CUDA_HINT)


def cpu_threads() -> int:
    """CPUs that this process may run on; a container or `taskset` may allow fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def has_cuda_build() -> bool:
    """Whether the installed onnxruntime was built with CUDA, told from its files without importing it."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return False
    capi = Path(spec.origin).parent / "capi"
    return any(capi.glob("*onnxruntime_providers_cuda*")) or any(capi.glob("*cuda*plugin*"))


@functools.cache
def _cuda_names() -> tuple[tuple[str, ...], str]:
    """Names of the CUDA devices in the driver's order, and what stands in the way (empty when nothing does)."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return (), "no NVIDIA driver is installed"
    if code := driver.cuInit(0):
        return (), f"the NVIDIA driver does not start (cuInit gives {code})"
    count = ctypes.c_int()
    if code := driver.cuDeviceGetCount(ctypes.byref(count)):
        return (), f"the NVIDIA driver does not tell its devices (code {code})"
    if count.value == 0:
        return (), "the NVIDIA driver shows no device"
    names = []
    for i in range(count.value):
        text = ctypes.create_string_buffer(100)
        handle = ctypes.c_int()
        known = driver.cuDeviceGet(ctypes.byref(handle), i) == 0 and driver.cuDeviceGetName(text, 100, handle) == 0
        names.append(text.value.decode(errors="replace") if known else "unknown")
    return tuple(names), ""
