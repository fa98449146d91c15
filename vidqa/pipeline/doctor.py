"""`doctor`: what is installed and works. A missing or broken package is a finding, never an error of the command.

Everything that needs an installed package is therefore imported when its check runs. That a package can be imported
does not prove that vidqa can use it, so `decode`, `encode` and `answer` do a small piece of the work of a run.
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
from vidqa.common.display import human_bytes
from vidqa.errors import VidqaError
from vidqa.pipeline.memory_estimate import describe_fit


@dataclass(frozen=True)
class Check:
    """Result of one check. `needed` is False for what vidqa can work without."""

    name: str
    ok: bool
    detail: str
    needed: bool = True


class _NotUsable(Exception):
    """Something is missing or does not work; the message is the finding."""


def examine(cache_dir: Path, model: str) -> list[Check]:
    """Check everything that a run needs or can use.

    Args:
        cache_dir: folder of the feature cache.
        model: name or folder of the bundle that a run would load.

    Returns:
        The results. A run would work if all checks that are `needed` are ok.
    """
    checks: list[tuple[str, bool, Callable[[], str]]] = [
        ("python", True, _python),
        ("torch", True, _torch),
        ("transformers", True, lambda: _imported("transformers")),
        ("onnxruntime", True, _onnxruntime),
        ("av", True, _av),
        ("decord", False, lambda: f"{_imported('decord')}, {_decode('decord')}"),
        ("polars", True, lambda: _imported("polars")),
        ("decode", True, lambda: _decode("pyav")),
        ("encode", True, _encode),
        ("answer", True, _answer),
        ("cuda", False, _cuda),
        ("GPU kernels", False, _gpu_kernels),
        ("bitsandbytes", False, lambda: _imported("bitsandbytes")),
        *((f"7B on {device}", False, partial(_memory, free)) for device, free in free_memory().items()),
        ("cache", True, lambda: _cache(cache_dir)),
        ("model", True, lambda: _model(model)),
    ]
    return [_check(name, needed, run) for name, needed, run in checks]


def _check(name: str, needed: bool, run: Callable[[], str]) -> Check:
    try:
        return Check(name, True, run(), needed)
    except PackageNotFoundError:
        return Check(name, False, "not installed", needed)
    except (_NotUsable, VidqaError) as error:
        return Check(name, False, str(error).splitlines()[0], needed)
    except Exception as error:  # noqa: BLE001 - importing a broken package may raise anything; that is the finding
        return Check(name, False, _first_line(error), needed)


def _first_line(error: BaseException) -> str:
    text = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return f"{text} ({_first_line(error.__cause__)})" if error.__cause__ else text


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


def _decode(backend: str) -> str:
    """Decode a generated clip in a decoder process."""
    from vidqa.media.synthetic import write_test_video
    from vidqa.media.workers.decode_pool import DecodeJob, DecodePool

    with tempfile.TemporaryDirectory(prefix="vidqa-doctor-") as folder, DecodePool(1, backend=backend) as pool:
        clip = Path(folder) / "clip.mp4"
        write_test_video(clip, seconds=1)
        ((_, found),) = pool.run([DecodeJob(str(clip))])
    if isinstance(found, VidqaError):
        raise found
    return f"decoded a generated clip ({found.facts.codec}, {found.facts.width} x {found.facts.height})"


def _encode() -> str:
    """Encode black frames with the demo model."""
    import numpy as np

    from vidqa.pipeline.run.loaded_model import load_model
    from vidqa.records import EncoderInput

    model = load_model("demo")
    spec = model.bundle.spec.encoders.video
    size = spec.preprocess.image_size
    frames = np.zeros((spec.n_frames, 3, size, size), np.float32)
    model.encoder.encode([EncoderInput(frames, np.arange(spec.n_frames) / 1.0, np.zeros(spec.n_frames, bool), "video")])
    return f"encoded {spec.n_frames} frames with {model.encoder.provider}"


def _answer() -> str:
    """Generate one token with the demo model."""
    import numpy as np

    from vidqa.generate.engine import GenerationSettings, Request, generate
    from vidqa.pipeline.run.loaded_model import load_model
    from vidqa.records import Features

    model = load_model("demo")
    spec = model.bundle.spec.encoders.video
    tokens = np.zeros((spec.n_frames, spec.n_patches + spec.keep_cls, spec.hidden_size), np.float16)
    features = Features(tokens, np.zeros(spec.embedding_size, np.float32), spec.keep_cls, "video")
    request = Request((features,), (("What happens?", None),))
    (answer,) = generate(model.llava, [request], GenerationSettings(max_new_tokens=1))
    if isinstance(answer, VidqaError):
        raise answer
    return f"generated a token on {model.llava.device}"


def _cuda() -> str:
    from vidqa.common.devices import available_devices
    from vidqa.encoders.onnx_session import resolve_device

    devices = [device for device in available_devices() if device.name != "cpu"]
    usable = [device for device in devices if device.usable]
    if not usable:
        raise _NotUsable("; ".join(device.reason for device in devices) or "no CUDA device")
    for device in usable:  # driver and build may be fine while a library is missing: only opening a session shows that
        resolve_device(device.name)
    return ", ".join(f"{device.name} {device.title}" for device in usable)


def _gpu_kernels() -> str:
    torch = import_module("torch")
    if not torch.cuda.is_available():
        raise _NotUsable("no CUDA device")
    from vidqa.generate.attention import shared_prefix
    from vidqa.model.llama import model
    from vidqa.model.llama.kernel_check import check_kernels

    for name in (shared_prefix.KERNELS, model.KERNELS):
        if problem := check_kernels(name, torch.device("cuda", 0), torch.bfloat16, 128)[1]:
            raise _NotUsable(f"{name}: {problem}")
    return f"correct on cuda:0, compiled by Triton {version('triton')}"


def _memory(free: int) -> str:
    fits, text = describe_fit(free)
    if not fits:
        raise _NotUsable(text)
    return text


def _cache(folder: Path) -> str:
    existing = folder
    while not existing.exists():
        existing = existing.parent
    with tempfile.TemporaryFile(dir=existing):
        pass
    state = "writable" if existing == folder else "does not exist yet, can be created"
    return f"{folder}: {state}, {human_bytes(shutil.disk_usage(existing).free)} free"


def _model(name: str) -> str:
    from vidqa.model.bundle.bundle import load_bundle

    bundle = load_bundle(name)
    problems = bundle.verify()
    if problems:
        raise _NotUsable(f"{bundle.folder}: {'; '.join(problems)}")
    return f"{bundle.spec.name} ({bundle.folder}), model {bundle.model_id}, encoder {bundle.encoder_id}"
