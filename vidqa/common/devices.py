"""CPU and CUDA devices, free memory, out-of-memory errors.

Device names such as `cuda:1` are resolved without importing torch or onnxruntime: the CUDA driver is queried through
ctypes, which creates no CUDA context, so `--help` and `doctor` stay fast. Whether onnxruntime's CUDA provider actually
starts is only certain once a session opens (encoders/onnx_session.py).
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
from importlib import import_module
from pathlib import Path

from vidqa.common.extras import install_hint
from vidqa.errors import DeviceError

#: Serializes CUDA graph capture with calls of onnxruntime, which synchronizes the whole device when a session opens
#: and would break a capture in another thread.
CUDA_EXCLUSIVE = threading.RLock()
#: Callbacks that return unused device memory to the driver (torch caches what it frees). encoders/onnx_session.py calls
#: them, holding `CUDA_EXCLUSIVE`, before it reports that a device is full.
RELEASE_MEMORY: list[Callable[[], None]] = []
_CUDA_HINT = (
    "--device cpu, or install a driver, and the CUDA and cuDNN wheels that onnxruntime-gpu requires; "
    f"{install_hint('cuda')}"
)
#: Messages of torch's allocators, onnxruntime's arenas, the CUDA runtime and driver, cuBLAS, cuDNN, Triton and the C++
#: library when memory runs out. onnxruntime and Triton have no exception class for it.
_OUT_OF_MEMORY = (
    "failed to allocate memory",
    "can't allocate memory",
    "bad_alloc",
    "bad allocation",
    "out of memory",
    "smaller than requested",
    "_status_alloc_failed",
)


@dataclass(frozen=True)
class Device:
    """A device as `vidqa doctor` lists it."""

    name: str  # `cpu`, `cuda:0`
    title: str  # such as the GPU's product name
    usable: bool
    reason: str = ""  # why it is not usable; empty if it is


def available_devices() -> tuple[Device, ...]:
    """Return the CPU and every CUDA device the driver reports, or one entry with the reason why there is none."""
    cpu = Device("cpu", f"{cpu_threads()} threads", True)
    names, problem = _cuda_names()
    if problem:
        return cpu, Device("cuda", "", False, problem)
    missing = "" if has_cuda_build() else "the installed onnxruntime has no CUDA provider"
    return cpu, *(Device(f"cuda:{i}", name, not missing, missing) for i, name in enumerate(names))


def parse_device(device: str) -> tuple[str, int | None]:
    """Split a device name.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Returns:
        `auto`, `cpu` or `cuda`, and N or None.

    Raises:
        DeviceError: any other text.
    """
    match = re.fullmatch(r"(auto|cpu|cuda)(?::(\d{1,3}))?", device)
    if match is None or (match[2] and match[1] != "cuda"):
        raise DeviceError(
            f"unknown device {device!r}", hint="auto, cpu, cuda or cuda:N; commands that answer also accept map"
        )
    return match[1], int(match[2]) if match[2] else None


def find_cuda(index: int | None) -> str:
    """Return `cuda:N` for a device that both the driver and onnxruntime support.

    Args:
        index: N; None means 0.

    Raises:
        DeviceError: no such device; the message has the reason.
    """
    names, problem = _cuda_names()
    if not problem and not has_cuda_build():
        problem = "the installed onnxruntime has no CUDA provider"
    if problem:
        raise DeviceError(f"no CUDA device can be used: {problem}", hint=_CUDA_HINT)
    if (index or 0) >= len(names):
        existing = ", ".join(f"cuda:{i} ({name})" for i, name in enumerate(names))
        raise DeviceError(f"there is no device cuda:{index}", hint=f"choose one of {existing}")
    return f"cuda:{index or 0}"


def cuda_error(device: str, detail: str) -> DeviceError:
    """Return the error for a CUDA device that exists but does not start."""
    return DeviceError(f"onnxruntime cannot use {device}: {detail}", hint=_CUDA_HINT)


def cpu_threads() -> int:
    """Return the number of CPUs this process may use; a container or `taskset` may allow only some of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def has_cuda_build() -> bool:
    """Return whether the installed onnxruntime has a CUDA provider, judged by its files without importing it."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return False
    capi = Path(spec.origin).parent / "capi"
    return any(capi.glob("*onnxruntime_providers_cuda*")) or any(capi.glob("*cuda*plugin*"))


@functools.cache
def _cuda_names() -> tuple[tuple[str, ...], str]:
    """Return the names of the CUDA devices in the driver's order, and the reason if there are none (else empty)."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return (), "no NVIDIA driver is installed"
    if code := driver.cuInit(0):
        return (), f"the NVIDIA driver does not start (cuInit returned {code})"
    count = ctypes.c_int()
    if code := driver.cuDeviceGetCount(ctypes.byref(count)):
        return (), f"the NVIDIA driver does not list its devices (error code {code})"
    if count.value == 0:
        return (), "the NVIDIA driver reports no device"
    names = []
    for i in range(count.value):
        text = ctypes.create_string_buffer(100)
        handle = ctypes.c_int()
        named = driver.cuDeviceGet(ctypes.byref(handle), i) == 0 and driver.cuDeviceGetName(text, 100, handle) == 0
        names.append(text.value.decode(errors="replace") if named else "unknown")
    return tuple(names), ""


def free_memory() -> dict[str, int]:
    """Return the free bytes of main memory (`cpu`) and of every CUDA device, omitting those that cannot be read."""
    free = {}
    if (cpu := _free_main_memory()) is not None:
        free["cpu"] = cpu
    try:
        cuda = import_module("torch").cuda
        if cuda.is_available():
            free |= {f"cuda:{i}": int(cuda.mem_get_info(i)[0]) for i in range(cuda.device_count())}
    except Exception:  # noqa: BLE001 - a broken torch or driver is reported by other checks of `doctor`
        pass
    return free


def available_main_memory() -> int | None:
    """Return the bytes that Linux reports as available to new programs; None on other systems."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of torch, onnxruntime, CUDA or Triton means that memory ran out, on a CPU or a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return any(part in text for part in _OUT_OF_MEMORY)


def _free_main_memory() -> int | None:
    if (available := available_main_memory()) is not None:
        return available
    try:  # the total, because this system does not report how much is free
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
