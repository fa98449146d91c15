"""One ONNX encoder graph on one device: pixel values -> tokens and pooled embedding.

Axes: B batch, T frames, S side of the input in pixels, P tokens per frame including the class token, D width of a
token, E width of the pooled embedding.

Scope: the only module in encoders/ that imports onnxruntime, and only when it is first needed.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vidqa.common.devices import (
    CUDA_EXCLUSIVE,
    RELEASE_MEMORY,
    available_devices,
    cpu_threads,
    cuda_error,
    find_cuda,
    is_out_of_memory,
    parse_device,
)
from vidqa.encoders.onnx_errors import VERIFY_HINT, as_memory_error, first_line, verify_file
from vidqa.errors import BundleError, DeviceError

log = logging.getLogger(__name__)
Result = TypeVar("Result")

_INPUT, _OUTPUTS = "pixel_values", ("tokens", "embedding")
# A minimal graph (opset 13, Identity of a float), stored as bytes because building it would need `onnx`.
_PROBE_GRAPH = bytes.fromhex(
    "080812003a370a100a017812017922084964656e746974791201705a0f0a0178120a0a08080112040a02"
    "0801620f0a0179120a0a08080112040a02080142040a00100d"
)

_logged: set[str] = set()


def resolve_device(device: str) -> str:
    """Return a working device for the requested one.

    Args:
        device: `auto` (a CUDA device if onnxruntime can use it, otherwise the CPU), `cpu`, `cuda` or `cuda:N`.

    Returns:
        `cpu` or `cuda:N`.

    Raises:
        DeviceError: unknown name, or the requested CUDA device is not available.
    """
    kind, index = parse_device(device)
    if kind == "cpu":
        return "cpu"
    try:
        name = find_cuda(index)
        _check_cuda(name)
    except DeviceError as e:
        if kind == "cuda":
            raise
        if any(d.name.startswith("cuda:") for d in available_devices()):  # warn, because a GPU stays idle
            log.warning("encoders run on the CPU, which is slower: %s (see vidqa doctor)", e)
        else:
            log.info("device auto: cpu (%s)", e.what)
        return "cpu"
    return name


class OnnxSession:
    """One encoder graph on one device.

    Args:
        path: the ONNX file, with its `.data` file next to it if it has one.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        sha256: expected digest of the file; None skips the check.
        external: digests of external weight files by path, absolute or relative to the graph's folder.
        threads: CPU threads of one run; None uses all that the process may use.

    Raises:
        BundleError: the file is missing, altered, not an ONNX graph, or not an encoder graph.
        DeviceError: the requested device is not available.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: str = "auto",
        *,
        sha256: str | None = None,
        external: dict[str, str] | None = None,
        threads: int | None = None,
    ) -> None:
        self.path = Path(path)
        self.device = resolve_device(device)
        verify_file(self.path, sha256)
        for name, digest in (external or {}).items():
            verify_file(self.path.parent / name, digest)
        self._session = open_graph(self.path, self.device, threads)
        self.provider: str = self._session.get_providers()[0]
        _log_once(f"onnxruntime: {self.provider} on {self.device}")
        self._read_shapes()

    def _read_shapes(self) -> None:
        """Read T, S, P, D and E from the graph, and check that it is an encoder."""
        ins = {i.name: i.shape for i in self._session.get_inputs()}
        outs = {o.name: o.shape for o in self._session.get_outputs()}
        pixels, tokens, embedding = ins.get(_INPUT, []), *(outs.get(n, []) for n in _OUTPUTS)
        fixed = [*pixels[1:], *tokens[1:], *embedding[1:]]
        if (len(pixels), len(tokens), len(embedding)) != (5, 4, 2) or not all(isinstance(n, int) for n in fixed):
            raise BundleError(f"{self.path}: not an encoder graph of this version: {ins} -> {outs}", hint=VERIFY_HINT)
        self.n_frames: int = pixels[1]
        self.image_size: int = pixels[3]
        self.n_tokens: int = tokens[2]  # including the class token
        self.hidden_size: int = tokens[3]
        self.embedding_size: int = embedding[1]
        types = {o.name: o.type for o in self._session.get_outputs()}
        self.bytes_per_weight = 2 if types[_OUTPUTS[0]] == "tensor(float16)" else 4

    def run(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Encode a batch.

        Args:
            values: pixel values, float32 [B, T, 3, S, S].

        Returns:
            tokens float16 [B, T, P, D], class token first, and embedding float32 [B, E].

        Raises:
            MemoryError: out of memory; a smaller batch may fit.
            ValueError: the graph expects another shape.
        """
        if self.device == "cpu":
            self._check_shape(values.shape)
            with as_memory_error():
                tokens, embedding = self._session.run(list(_OUTPUTS), {_INPUT: np.ascontiguousarray(values)})
        else:
            tokens, embedding = (value.numpy() for value in self.run_on_device(values))
        with np.errstate(over="ignore"):  # values beyond float16 become infinity, which `Encoder` reports
            return tokens.astype(np.float16, copy=False), embedding.astype(np.float32, copy=False)

    def run_on_device(self, values: Any) -> tuple[Any, Any]:
        """Encode a batch and keep the results on the device.

        Args:
            values: pixel values, float32 [B, T, 3, S, S]: a numpy array, which is copied to the device, or an
                `onnxruntime.OrtValue` on the device, which is not copied.

        Returns:
            tokens [B, T, P, D] in the graph's dtype and embedding float32 [B, E], as `onnxruntime.OrtValue` on
            `self.device`; other libraries can read them through DLPack.

        Raises:
            MemoryError, ValueError: as `run`.
        """
        from onnxruntime import OrtValue

        self._check_shape(tuple(values.shape if isinstance(values, np.ndarray) else values.shape()))
        kind, index = _ort_device(self.device)

        def run() -> tuple[Any, Any]:
            source = values
            if isinstance(values, np.ndarray):
                source = OrtValue.ortvalue_from_numpy(np.ascontiguousarray(values), kind, index)
            binding = self._session.io_binding()
            binding.bind_ortvalue_input(_INPUT, source)
            for name in _OUTPUTS:
                binding.bind_output(name, kind, index)
            self._session.run_with_iobinding(binding)
            tokens, embedding = binding.get_outputs()
            return tokens, embedding

        return _retry_when_full(run)

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        expected = (self.n_frames, 3, self.image_size, self.image_size)
        if len(shape) != 5 or tuple(shape[1:]) != expected:
            raise ValueError(f"{self.path.name} takes [B, {', '.join(map(str, expected))}], got {list(shape)}")


def _retry_when_full(run: Callable[[], Result]) -> Result:
    """Run a function on a CUDA device. If the device is full, release unused memory of other libraries and retry once.

    Raises:
        MemoryError: the device is still full.
    """
    with CUDA_EXCLUSIVE:
        try:
            with as_memory_error():
                return run()
        except MemoryError:
            if not RELEASE_MEMORY:
                raise
        for release in RELEASE_MEMORY:
            release()
        with as_memory_error():
            return run()


def open_graph(path: Path, device: str, threads: int | None = None) -> Any:
    """Create an InferenceSession and verify that it runs on `device`.

    Args:
        path: the ONNX file.
        device: `cpu` or `cuda:N`.
        threads: CPU threads; None uses all that the process may use.

    Raises:
        BundleError: the file is not a valid ONNX graph.
        DeviceError: the graph does not fit into the device's memory, or the CUDA provider does not start.
    """
    runtime = _runtime()

    def create() -> Any:
        return runtime.InferenceSession(str(path), _options(threads), providers=_providers(device))

    try:
        session = create() if device == "cpu" else _retry_when_full(create)
    except Exception as e:  # exceptions of onnxruntime have no common base class
        if is_out_of_memory(e):
            raise DeviceError(f"{path.name} does not fit into the memory of {device}", hint="--device cpu") from e
        raise BundleError(f"{path}: cannot be loaded as an ONNX graph: {first_line(e)}", hint=VERIFY_HINT) from e
    # onnxruntime only prints a line to stderr and falls back to the CPU; the run would be slow without an explanation.
    if device != "cpu" and "CUDAExecutionProvider" not in session.get_providers():
        raise cuda_error(device, "its CUDA provider does not start (are the CUDA and cuDNN libraries installed?)")
    return session


def _options(threads: int | None) -> Any:
    options = _runtime().SessionOptions()
    # onnxruntime counts the cores of the machine, not those that a container or taskset allows.
    options.intra_op_num_threads = threads or cpu_threads()
    options.inter_op_num_threads = 1
    # Idle threads must not spin on cores that the decoder processes need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def _providers(device: str) -> list[Any]:
    if device == "cpu":
        return ["CPUExecutionProvider"]
    cuda = {
        "device_id": str(_ort_device(device)[1]),
        # Grow by the requested size, not to the next power of two: the language model needs the rest of the memory.
        "arena_extend_strategy": "kSameAsRequested",
        # The graph has one convolution: an exhaustive search for every new batch size costs more than it saves.
        "cudnn_conv_algo_search": "HEURISTIC",
        # TF32 has a mantissa of 10 bits; a float32 graph is used if features must equal those of the CPU.
        "use_tf32": "0",
    }
    return [("CUDAExecutionProvider", cuda), "CPUExecutionProvider"]


def _ort_device(device: str) -> tuple[str, int]:
    kind, index = parse_device(device)
    return kind, index or 0


@functools.cache
def _check_cuda(device: str) -> None:
    """Start the CUDA provider with a minimal graph: CUDA libraries may be missing although the driver is installed."""
    runtime = _runtime()
    try:
        session = runtime.InferenceSession(_PROBE_GRAPH, _options(1), providers=_providers(device))
    except Exception as e:  # exceptions of onnxruntime have no common base class
        raise cuda_error(device, first_line(e)) from e
    if "CUDAExecutionProvider" not in session.get_providers():
        raise cuda_error(device, "its CUDA provider does not start (are the CUDA and cuDNN libraries installed?)")


@functools.cache
def _runtime() -> Any:
    """Import onnxruntime; if there is a CUDA device, load the CUDA and cuDNN libraries of installed nvidia-* wheels."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)  # vidqa raises its own error if a provider does not start
    if any(d.name.startswith("cuda") and d.usable for d in available_devices()) and hasattr(
        onnxruntime, "preload_dlls"
    ):
        printed = io.StringIO()
        # preload_dlls prints the libraries that it cannot load, but stdout is for results. open_graph reports failures.
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            onnxruntime.preload_dlls()
        for line in printed.getvalue().splitlines():
            log.debug("onnxruntime.preload_dlls: %s", line)
    return onnxruntime


def _log_once(text: str) -> None:
    if text not in _logged:
        _logged.add(text)
        log.info(text)
