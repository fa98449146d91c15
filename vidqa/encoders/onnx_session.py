"""One ONNX file -> a thing that runs: pixel values in, layer tokens and pooled embedding out.

The only place that imports onnxruntime, and only when a session is made. Knows providers, threads and memory. Does not
know media, batches of files or the cache.
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

__all__ = ["OnnxSession", "available_devices", "open_graph", "resolve_device"]

log = logging.getLogger(__name__)
Result = TypeVar("Result")

_INPUT, _OUTPUTS = "pixel_values", ("tokens", "embedding")
# The smallest graph there is (opset 13, Identity of a float), written out because building it would need `onnx`.
_PROBE_GRAPH = bytes.fromhex(
    "080812003a370a100a017812017922084964656e746974791201705a0f0a0178120a0a08080112040a02"
    "0801620f0a0179120a0a08080112040a02080142040a00100d"
)

_said: set[str] = set()


def resolve_device(device: str) -> str:
    """Turn what the user asked for into a device that works.

    Args:
        device: `auto` (a CUDA device when one really starts, else the CPU), `cpu`, `cuda` or `cuda:N`.

    Returns:
        `cpu` or `cuda:N`.

    Raises:
        DeviceError: unknown name, or a CUDA device was asked for and cannot be had.
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
        if any(d.name.startswith("cuda:") for d in available_devices()):  # whoever has a GPU must hear that it is idle
            log.warning("encoders run on the CPU, so a run takes longer: %s (vidqa doctor)", e)
        else:
            log.info("device auto: cpu (%s)", e.what)
        return "cpu"
    return name


class OnnxSession:
    """One encoder graph on one device.

    Args:
        path: the ONNX file, with its `.data` file beside it where it has one.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        sha256: what the file must have; None trusts it.
        external: digests of weight files beside the graph, by name.
        threads: CPU threads of one run; None takes all that the process may use.

    Raises:
        BundleError: the file is missing, altered, no ONNX graph, or not an encoder of this form.
        DeviceError: the device was asked for by name and cannot be had.
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
        _say_once(f"onnxruntime: {self.provider} on {self.device}")
        self._read_shapes()

    def _read_shapes(self) -> None:
        """Learn T, S, P, D and E from the graph, and see that it is an encoder at all."""
        ins = {i.name: i.shape for i in self._session.get_inputs()}
        outs = {o.name: o.shape for o in self._session.get_outputs()}
        pixels, tokens, embedding = ins.get(_INPUT, []), *(outs.get(n, []) for n in _OUTPUTS)
        fixed = [*pixels[1:], *tokens[1:], *embedding[1:]]
        if (len(pixels), len(tokens), len(embedding)) != (5, 4, 2) or not all(isinstance(n, int) for n in fixed):
            raise BundleError(f"{self.path}: not an encoder graph of this version: {ins} -> {outs}", hint=VERIFY_HINT)
        self.n_frames: int = pixels[1]
        self.image_size: int = pixels[3]
        self.n_tokens: int = tokens[2]  # class token counted
        self.hidden_size: int = tokens[3]
        self.embedding_size: int = embedding[1]
        types = {o.name: o.type for o in self._session.get_outputs()}
        self.bytes_per_weight = 2 if types[_OUTPUTS[0]] == "tensor(float16)" else 4

    def run(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Encode a batch.

        Args:
            values: float32 [B, T, 3, S, S].

        Returns:
            tokens float16 [B, T, P, D], class token first, and embedding float32 [B, E].

        Raises:
            MemoryError: the batch does not fit; a smaller one may.
            ValueError: the shape is not that of the graph.
        """
        if self.device == "cpu":
            self._check_shape(values.shape)
            with as_memory_error():
                tokens, embedding = self._session.run(list(_OUTPUTS), {_INPUT: np.ascontiguousarray(values)})
        else:
            tokens, embedding = (value.numpy() for value in self.run_on_device(values))
        return tokens.astype(np.float16, copy=False), embedding.astype(np.float32, copy=False)

    def run_on_device(self, values: Any) -> tuple[Any, Any]:
        """Encode a batch and leave the results where they were computed.

        Args:
            values: float32 [B, T, 3, S, S]: a numpy array, which is copied to the device once, or an
                `onnxruntime.OrtValue` that lies there already and is not copied.

        Returns:
            tokens [B, T, P, D] in the graph's own type and embedding float32 [B, E], as `onnxruntime.OrtValue` on
            `self.device`; they can be handed on by dlpack.

        Raises:
            MemoryError, ValueError: as `run`.
        """
        from onnxruntime import OrtValue

        self._check_shape(tuple(values.shape if isinstance(values, np.ndarray) else values.shape()))
        where, index = _ort_device(self.device)

        def run() -> tuple[Any, Any]:
            given = values
            if isinstance(values, np.ndarray):
                given = OrtValue.ortvalue_from_numpy(np.ascontiguousarray(values), where, index)
            binding = self._session.io_binding()
            binding.bind_ortvalue_input(_INPUT, given)
            for name in _OUTPUTS:
                binding.bind_output(name, where, index)
            self._session.run_with_iobinding(binding)
            tokens, embedding = binding.get_outputs()
            return tokens, embedding

        return _on_device(run)

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        want = (self.n_frames, 3, self.image_size, self.image_size)
        if len(shape) != 5 or tuple(shape[1:]) != want:
            raise ValueError(f"{self.path.name} takes [B, {', '.join(map(str, want))}], got {list(shape)}")


def _on_device(run: Callable[[], Result]) -> Result:
    """Run something on a CUDA device; where it is full, once more after others have given back what they do not use.

    Raises:
        MemoryError: there is no room all the same.
    """
    with CUDA_EXCLUSIVE:
        try:
            with as_memory_error():
                return run()
        except MemoryError:
            if not RELEASE_MEMORY:
                raise
        for give_back in RELEASE_MEMORY:
            give_back()
        with as_memory_error():
            return run()


def open_graph(path: Path, device: str, threads: int | None = None) -> Any:
    """An InferenceSession that really runs on `device`; BundleError or DeviceError where there is none."""
    runtime = _runtime()

    def opened() -> Any:
        return runtime.InferenceSession(str(path), _options(threads), providers=_providers(device))

    try:
        session = opened() if device == "cpu" else _on_device(opened)
    except Exception as e:  # onnxruntime's exceptions share no base class of their own
        if is_out_of_memory(e):
            raise DeviceError(f"{path.name} does not fit into the memory of {device}", hint="--device cpu") from e
        raise BundleError(f"{path}: cannot be loaded as an ONNX graph: {first_line(e)}", hint=VERIFY_HINT) from e
    # onnxruntime falls back to the CPU with no more than a line on stderr; a slow surprise is not what was asked for.
    if device != "cpu" and "CUDAExecutionProvider" not in session.get_providers():
        raise cuda_error(device, "its CUDA provider does not start (CUDA or cuDNN libraries not found?)")
    return session


def _options(threads: int | None) -> Any:
    options = _runtime().SessionOptions()
    # onnxruntime counts the cores of the machine, not those that a container or taskset leaves to this process.
    options.intra_op_num_threads = threads or cpu_threads()
    options.inter_op_num_threads = 1
    # Waiting threads must not burn the cores that the decode workers need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def _providers(device: str) -> list[Any]:
    if device == "cpu":
        return ["CPUExecutionProvider"]
    cuda = {
        "device_id": str(_ort_device(device)[1]),
        # Grow by what is asked, not to the next power of two: the language model needs the rest of the memory.
        "arena_extend_strategy": "kSameAsRequested",
        # One convolution in the whole graph: an exhaustive search for every new batch size would never pay.
        "cudnn_conv_algo_search": "HEURISTIC",
        # TF32 keeps 10 bits of mantissa; a float32 graph is asked for when features must equal those of the CPU.
        "use_tf32": "0",
    }
    return [("CUDAExecutionProvider", cuda), "CPUExecutionProvider"]


def _ort_device(device: str) -> tuple[str, int]:
    kind, index = parse_device(device)
    return kind, index or 0


@functools.cache
def _check_cuda(device: str) -> None:
    """Start the CUDA provider with a graph of one node; the libraries may be missing although the driver is there."""
    runtime = _runtime()
    try:
        session = runtime.InferenceSession(_PROBE_GRAPH, _options(1), providers=_providers(device))
    except Exception as e:  # onnxruntime's exceptions share no base class of their own
        raise cuda_error(device, first_line(e)) from e
    if "CUDAExecutionProvider" not in session.get_providers():
        raise cuda_error(device, "its CUDA provider does not start (CUDA or cuDNN libraries not found?)")


@functools.cache
def _runtime() -> Any:
    """onnxruntime, with the CUDA and cuDNN libraries of installed nvidia-* wheels loaded where there is a device."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)  # a provider that does not start is told by an error of ours
    if any(d.name.startswith("cuda") and d.usable for d in available_devices()) and hasattr(
        onnxruntime, "preload_dlls"
    ):
        said = io.StringIO()
        # It prints what it cannot load; stdout is for results, and a provider that does not start says it anyway.
        with contextlib.redirect_stdout(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            onnxruntime.preload_dlls()
        for line in said.getvalue().splitlines():
            log.debug("onnxruntime.preload_dlls: %s", line)
    return onnxruntime


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        log.info(text)
