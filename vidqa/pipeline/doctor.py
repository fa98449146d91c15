"""What is installed and works, one `Check` each; nothing here may fail because something is missing or broken.

Packages are asked by name at run time: a doctor that needed its patient to be well would be of no use.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from vidqa.common.devices import free_memory
from vidqa.errors import VidqaError
from vidqa.pipeline.memory_estimate import describe_fit


@dataclass(frozen=True)
class Check:
    """One line. `needed` is False for what vidqa can do without."""

    name: str
    ok: bool
    detail: str
    needed: bool = True


class _Lacking(Exception):
    """Looked at, and not as a run needs it: the sentence is the finding."""


def examine(cache_dir: Path, model: str) -> list[Check]:
    """Look at everything a run needs.

    Args:
        cache_dir: the folder of the feature cache.
        model: the bundle that a run would load.

    Returns:
        One check each; the run would work if every `needed` one is ok.
    """
    steps: list[tuple[str, bool, Callable[[], str]]] = [
        ("python", True, _python),
        ("torch", True, _torch),
        ("transformers", True, lambda: _imported("transformers")),
        ("onnxruntime", True, _onnxruntime),
        ("av", True, _av),
        ("decord", False, lambda: _imported("decord")),
        ("polars", True, lambda: _imported("polars")),
        ("cuda", False, _cuda),
        ("kernels", False, _kernels),
        ("bitsandbytes", False, lambda: _imported("bitsandbytes")),
        *((f"7B on {place}", False, partial(_room, place, free)) for place, free in free_memory().items()),
        ("cache", True, lambda: _cache(cache_dir)),
        ("model", True, lambda: _model(model)),
    ]
    return [_check(name, needed, look) for name, needed, look in steps]


def _check(name: str, needed: bool, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look(), needed)
    except PackageNotFoundError:
        return Check(name, False, "not installed", needed)
    except (_Lacking, VidqaError) as error:
        return Check(name, False, str(error).splitlines()[0], needed)
    except Exception as error:  # a broken package may raise anything on import; that is the finding
        first = (str(error).splitlines() or [""])[0]
        return Check(name, False, f"{type(error).__name__}: {first}", needed)


def _python() -> str:
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def _imported(package: str) -> str:
    found = version(package)
    import_module(package)
    return found


def _torch() -> str:
    found = version("torch")
    torch = import_module("torch")
    return f"{found}, CUDA {'yes' if torch.cuda.is_available() else 'no'}, {torch.get_num_threads()} threads"


def _onnxruntime() -> str:
    runtime = import_module("onnxruntime")
    return f"{runtime.__version__}, providers: {', '.join(runtime.get_available_providers())}"


def _av() -> str:
    found = version("av")
    av = import_module("av")
    ffmpeg = getattr(av, "ffmpeg_version_info", None)
    libraries = ", ".join(f"{name} {'.'.join(map(str, number))}" for name, number in av.library_versions.items())
    return f"{found}, FFmpeg {ffmpeg or libraries}"


def _cuda() -> str:
    from vidqa.common.devices import available_devices
    from vidqa.encoders.onnx_session import resolve_device

    devices = [device for device in available_devices() if device.name != "cpu"]
    usable = [device for device in devices if device.usable]
    if not usable:
        raise _Lacking("; ".join(device.reason for device in devices) or "no device")
    for device in usable:  # libraries may be missing although driver and build are there: only a start shows it
        resolve_device(device.name)
    return ", ".join(f"{device.name} {device.title}" for device in usable)


def _kernels() -> str:
    torch = import_module("torch")
    if not torch.cuda.is_available():
        raise _Lacking("there are none but for a CUDA device")
    from vidqa.generate.attention import shared_prefix
    from vidqa.model.llama import model
    from vidqa.model.llama.kernel_check import check_kernels

    for name in (shared_prefix.KERNELS, model.KERNELS):
        if why := check_kernels(name, torch.device("cuda", 0), torch.bfloat16, 128)[1]:
            raise _Lacking(f"{name}: {why}")
    return f"right on cuda:0, by Triton {version('triton')}"


def _room(place: str, free: int) -> str:
    fits, says = describe_fit(free)
    if not fits:
        raise _Lacking(says)
    return says


def _cache(folder: Path) -> str:
    there = folder
    while not there.exists():
        there = there.parent
    with tempfile.TemporaryFile(dir=there):
        pass
    free = shutil.disk_usage(there).free
    return f"{folder} {'' if there == folder else '(not made yet) '}writable, {free / 1e9:.1f} GB free"


def _model(name: str) -> str:
    from vidqa.model.bundle.bundle import load_bundle

    bundle = load_bundle(name)
    problems = bundle.verify()
    if problems:
        raise _Lacking(f"{bundle.folder}: {'; '.join(problems)}")
    return f"{bundle.spec.name} ({bundle.folder}), model {bundle.model_id}, encoder {bundle.encoder_id}"
