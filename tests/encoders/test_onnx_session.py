"""OnnxSession: results, damaged files, devices."""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

from vidqa.common import devices
from vidqa.common.atomic_io import sha256_of_file
from vidqa.common.devices import Device, available_devices, cpu_threads, find_cuda, is_out_of_memory, parse_device
from vidqa.encoders import onnx_session
from vidqa.encoders.onnx_session import OnnxSession, resolve_device
from vidqa.errors import BundleError, DeviceError


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.setattr(devices, "_cuda_names", lambda: ((), "no NVIDIA driver is installed"))


@pytest.fixture
def one_gpu(monkeypatch):
    """Simulate a driver with one GPU, whatever this machine has."""
    monkeypatch.setattr(devices, "_cuda_names", lambda: (("Test GPU",), ""))
    monkeypatch.setattr(devices, "has_cuda_build", lambda: True)
    onnx_session._check_cuda.cache_clear()
    yield
    onnx_session._check_cuda.cache_clear()


class FakeRuntime:
    """onnxruntime without CUDA libraries: falls back to the CPU silently."""

    OrtValue = None

    def __init__(self, providers: list[str]) -> None:
        self.providers, self.requested_providers = providers, []

    class SessionOptions:
        def add_session_config_entry(self, key: str, value: str) -> None: ...

    def InferenceSession(self, graph: object, options: object, providers: list) -> SimpleNamespace:
        self.requested_providers.append(providers)
        return SimpleNamespace(get_providers=lambda: self.providers)


def test_run_equals_torch(video) -> None:
    pixels = torch.randn(3, 4, 3, 24, 24)
    s = OnnxSession(video.path, "cpu", sha256=sha256_of_file(video.path))
    assert (s.provider, s.device) == ("CPUExecutionProvider", "cpu")
    assert (s.n_frames, s.image_size, s.n_tokens, s.hidden_size, s.embedding_size) == (4, 24, 10, 32, 12)
    tokens, embedding = s.run(pixels.numpy())
    assert (tokens.dtype, embedding.dtype) == (np.float16, np.float32)
    with torch.no_grad():
        expected = video.tower(pixels)
    np.testing.assert_allclose(tokens, expected[0].half().numpy(), atol=2e-2, rtol=1e-3)
    np.testing.assert_allclose(embedding, expected[1].numpy(), atol=1e-4)


def test_run_on_device_equals_run_and_accepts_device_values(video) -> None:
    """The code path for CUDA, run on the CPU."""
    from onnxruntime import OrtValue

    s = OnnxSession(video.path, "cpu")
    pixels = np.random.default_rng(0).standard_normal((2, 4, 3, 24, 24)).astype(np.float32)
    expected = s.run(pixels)
    for values in (pixels, OrtValue.ortvalue_from_numpy(pixels)):
        tokens, embedding = s.run_on_device(values)
        assert tokens.device_name() == "cpu"
        np.testing.assert_array_equal(tokens.numpy().astype(np.float16), expected[0])
        np.testing.assert_array_equal(embedding.numpy(), expected[1])


def test_non_contiguous_input(video) -> None:
    s = OnnxSession(video.path, "cpu")
    pixels = np.random.default_rng(0).standard_normal((3, 4, 2, 24, 24)).astype(np.float32).transpose(2, 1, 0, 3, 4)
    np.testing.assert_array_equal(s.run(pixels)[0], s.run(np.ascontiguousarray(pixels))[0])


@pytest.mark.parametrize("shape", [(1, 3, 3, 24, 24), (1, 4, 3, 32, 32), (4, 3, 24, 24)])
def test_wrong_shapes_are_rejected(video, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"video.onnx takes \[B, 4, 3, 24, 24\]"):
        OnnxSession(video.path, "cpu").run(np.zeros(shape, np.float32))


def test_number_of_threads(video) -> None:
    assert OnnxSession(video.path, "cpu", threads=1)._session.get_session_options().intra_op_num_threads == 1
    assert OnnxSession(video.path, "cpu")._session.get_session_options().intra_op_num_threads == cpu_threads()


def test_the_provider_is_logged_once(video, caplog, monkeypatch) -> None:
    monkeypatch.setattr(onnx_session, "_logged", set())
    with caplog.at_level(logging.INFO, "vidqa.encoders.onnx_session"):
        OnnxSession(video.path, "cpu")
        OnnxSession(video.path, "cpu")
    assert [r.getMessage() for r in caplog.records].count("onnxruntime: CPUExecutionProvider on cpu") == 1


# Files


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"image\.onnx: missing"):
        OnnxSession(tmp_path / "image.onnx", "cpu")


def test_altered_file(video, tmp_path: Path) -> None:
    path = tmp_path / "video.onnx"
    data = bytearray(video.path.read_bytes())
    data[len(data) // 2] ^= 1  # one bit of a weight: the graph would still load, with other features
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"video\.onnx: altered"):
        OnnxSession(path, "cpu", sha256=sha256_of_file(video.path))


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, b"<html>404</html>"])
def test_files_that_are_not_onnx(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "video.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"video\.onnx: cannot be loaded"):
        OnnxSession(path, "cpu")


def test_truncated_file(video, tmp_path: Path) -> None:
    path = tmp_path / "video.onnx"
    path.write_bytes(video.path.read_bytes()[:-1000])
    with pytest.raises(BundleError, match=r"video\.onnx"):
        OnnxSession(path, "cpu")


def test_not_an_encoder_graph(tmp_path: Path) -> None:
    path = tmp_path / "video.onnx"
    path.write_bytes(onnx_session._PROBE_GRAPH)
    with pytest.raises(BundleError, match=r"video\.onnx: not an encoder graph"):
        OnnxSession(path, "cpu")


def test_external_weights_are_found_and_checked(image, tmp_path: Path) -> None:
    data = image.path.with_name("image.onnx.data")
    digests = {data.name: sha256_of_file(data)}
    OnnxSession(image.path, "cpu", external=digests).run(np.zeros((1, 1, 3, 24, 24), np.float32))
    graph = shutil.copy(image.path, tmp_path)
    with pytest.raises(BundleError, match=r"image\.onnx\.data: missing"):
        OnnxSession(graph, "cpu", external=digests)
    with pytest.raises(BundleError, match=r"image\.onnx: cannot be loaded"):
        OnnxSession(graph, "cpu")
    (tmp_path / data.name).write_bytes(data.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(BundleError, match=r"image\.onnx\.data: altered"):
        OnnxSession(graph, "cpu", external=digests)


@pytest.mark.parametrize("path_kind", ["absolute", "parent"])
def test_external_weights_outside_the_folder_are_rejected(image, tmp_path: Path, path_kind: str) -> None:
    """Otherwise a model could load any file of the machine as weights."""
    secret = tmp_path / "secret.bin"
    secret.write_bytes(image.path.with_name("image.onnx.data").read_bytes())
    folder = tmp_path / "model"
    folder.mkdir()
    model = onnx.load(str(image.path), load_external_data=False)
    location = {"absolute": str(secret), "parent": "../secret.bin"}[path_kind]
    changed = 0
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value, changed = location, changed + 1
    assert changed
    (folder / "image.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match=r"image\.onnx: cannot be loaded"):
        OnnxSession(folder / "image.onnx", "cpu")


# Devices


@pytest.mark.parametrize("name", ["tpu", "cpu:0", "cuda:x", "", "CUDA", "cuda:-1"])
def test_unknown_device_names(name: str) -> None:
    with pytest.raises(DeviceError, match="unknown device"):
        resolve_device(name)


def test_device_names() -> None:
    assert parse_device("cuda:3") == ("cuda", 3)
    assert parse_device("auto") == ("auto", None)
    assert resolve_device("cpu") == "cpu"


def test_unavailable_cuda_is_an_error_with_a_hint(no_cuda, video) -> None:
    assert resolve_device("auto") == "cpu"
    for act in (lambda: resolve_device("cuda"), lambda: OnnxSession(video.path, "cuda:0")):
        with pytest.raises(DeviceError, match="no NVIDIA driver") as caught:
            act()
        assert caught.value.exit_code == 2
        assert "--device cpu" in str(caught.value)
    assert available_devices()[1] == Device("cuda", "", False, "no NVIDIA driver is installed")


def test_devices_of_the_driver(one_gpu) -> None:
    assert find_cuda(None) == find_cuda(0) == "cuda:0"
    assert available_devices()[1] == Device("cuda:0", "Test GPU", True, "")
    with pytest.raises(DeviceError, match="there is no device cuda:1") as caught:
        find_cuda(1)
    assert "cuda:0 (Test GPU)" in str(caught.value)


def test_onnxruntime_without_cuda(one_gpu, monkeypatch) -> None:
    monkeypatch.setattr(devices, "has_cuda_build", lambda: False)
    with pytest.raises(DeviceError, match="has no CUDA provider"):
        resolve_device("cuda")
    assert not available_devices()[1].usable


def test_a_silent_fallback_to_the_cpu_is_detected(one_gpu, monkeypatch, caplog) -> None:
    monkeypatch.setattr(onnx_session, "_runtime", lambda: FakeRuntime(["CPUExecutionProvider"]))
    with pytest.raises(DeviceError, match="CUDA provider does not start"):
        resolve_device("cuda:0")
    with caplog.at_level(logging.WARNING, logger="vidqa"):
        assert resolve_device("auto") == "cpu"
    assert "encoders run on the CPU" in caplog.text and "CUDA provider does not start" in caplog.text


def test_no_warning_without_a_gpu(no_cuda, caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="vidqa"):
        assert resolve_device("auto") == "cpu"
    assert not caplog.records


@pytest.mark.parametrize("fits_after", [True, False])
def test_unused_memory_of_torch_is_released_before_a_device_counts_as_full(
    one_gpu, video, monkeypatch, fits_after
) -> None:
    released = []

    class FullDevice(FakeRuntime):
        def InferenceSession(self, graph, options, providers):
            if not isinstance(graph, bytes) and not (released and fits_after):
                raise RuntimeError("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0")
            return super().InferenceSession(graph, options, providers)

    runtime = FullDevice(["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(onnx_session, "_runtime", lambda: runtime)
    monkeypatch.setattr(onnx_session, "RELEASE_MEMORY", [lambda: released.append(1)])
    if fits_after:
        onnx_session.open_graph(video.path, "cuda:0")
    else:
        with pytest.raises(DeviceError, match="does not fit"):
            onnx_session.open_graph(video.path, "cuda:0")
    assert released == [1]


def test_cuda_is_used_and_checked_again_with_the_real_graph(one_gpu, video, monkeypatch) -> None:
    runtime = FakeRuntime(["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(onnx_session, "_runtime", lambda: runtime)
    assert resolve_device("auto") == resolve_device("cuda") == "cuda:0"
    ((name, options), fallback) = runtime.requested_providers[0]
    assert (name, fallback) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert options["device_id"] == "0"
    runtime.providers = ["CPUExecutionProvider"]
    with pytest.raises(DeviceError, match="CUDA provider does not start"):
        OnnxSession(video.path, "cuda")


def test_preloading_prints_nothing(one_gpu, capfd) -> None:
    """Missing libraries that onnxruntime prints must not reach stdout, which is for results."""
    onnx_session._runtime.cache_clear()
    onnx_session._runtime()
    onnx_session._runtime.cache_clear()
    assert capfd.readouterr().out == ""


def test_listing_devices_imports_nothing_heavy() -> None:
    import subprocess

    code = (
        "import sys; from vidqa.common.devices import available_devices;"
        "from vidqa.encoders.onnx_session import resolve_device; available_devices();"
        "resolve_device('cpu'); print([m for m in ('onnxruntime', 'torch', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("text", "is_memory"),
    [
        ("BFCArena::AllocateRawInternal Available memory of 1 is smaller than requested bytes of 2", True),
        ("Failed to allocate memory for requested buffer of size 123", True),
        ("CUDA error: out of memory", True),
        ("CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED ; GPU=0", True),
        ("std::bad_alloc", True),
        ("Got invalid dimensions for input", False),
    ],
)
def test_out_of_memory_errors_are_recognized(text: str, is_memory: bool) -> None:
    assert is_out_of_memory(RuntimeError(text)) is is_memory
