"""The running batch on a fake CUDA device: tensors have shapes, dtypes and devices, but no data.

Code that mixes devices fails here, and so does a decode step that cannot be captured as a CUDA graph because it
synchronizes with the device or copies from host memory. The results of kernels are tested elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig as LlamaConfigOfTransformers
from transformers import LlamaForCausalLM

from vidqa.generate.attention import shared_prefix
from vidqa.generate.attention.cuda_graphs import StepGraphs
from vidqa.generate.kv_cache.buffers import CacheCapacity
from vidqa.generate.running_batch import RunningBatch
from vidqa.generate.sampling import pick_greedy, pick_sampled
from vidqa.model.connector import build_connector
from vidqa.model.llama.model import Llama, LlamaConfig
from vidqa.model.video_llava import VideoLlava
from vidqa.prompts.chat_formats import get_format

CUDA = torch.device("cuda", 0)
SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


class Capture(TorchDispatchMode):
    """Rejects what the capture of a CUDA graph rejects."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name()
        assert name not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"), f"{name} synchronizes"
        if name == "aten::index.Tensor":
            assert all(i is None or i.dtype != torch.bool for i in args[1]), "a mask as an index synchronizes"
        out = function(*args, **kwargs or {})
        if name in ("aten::_to_copy", "aten::copy_"):
            from_ = args[-1] if name == "aten::copy_" else args[0]
            assert from_.device == out.device, f"{name} between devices synchronizes"
        return out


class WithoutCuda(TorchFunctionMode):
    """Replaces functions that would initialize CUDA by equivalent ones that do not."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        ops, kwargs = torch.ops.aten, dict(kwargs or {})
        if function is Tensor.__getitem__:
            view, index = _view(*args)
            return ops.index(view, index) if index else view
        if function is Tensor.__setitem__:
            view, index = _view(*args[:2])
            if index:
                ops.index_put_(view, index, args[2])
            elif isinstance(args[2], Tensor):
                ops.copy_(view, args[2])
            else:
                view.fill_(args[2])
            return None
        if function is torch.tensor:
            return torch.zeros(np.shape(args[0]), dtype=kwargs.get("dtype"), device=kwargs.get("device"))
        if function is Tensor.contiguous:
            whole = args[0]
            return whole if whole.is_contiguous() else whole.clone(memory_format=torch.contiguous_format)
        others = {Tensor.copy_: ops.copy_, Tensor.__invert__: torch.bitwise_not}
        return others.get(function, function)(*args, **kwargs)


def _view(tensor: Tensor, index: Any) -> tuple[Tensor, list[Tensor | None]]:
    """Apply integers and slices; return the view and the tensors among the indices."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(part is Ellipsis for part in parts):
        at = next(i for i, part in enumerate(parts) if part is Ellipsis)
        n_rest = tensor.dim() - sum(part is not None for part in parts) + 1
        parts[at : at + 1] = [slice(None)] * n_rest
    tensors: dict[int, Tensor] = {}
    dim = 0
    for part in parts:
        if isinstance(part, int):
            tensor = tensor.select(dim, part)
            continue
        if part is None:
            tensor = tensor.unsqueeze(dim)
        elif isinstance(part, Tensor):
            tensors[dim] = part
        else:
            tensor = torch.ops.aten.slice(tensor, dim, part.start, part.stop, part.step or 1)
        dim += 1
    return tensor, [tensors.get(i) for i in range(max(tensors, default=-1) + 1)]


@contextmanager
def fake_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Tensors without data; decode steps run under `Capture`, and their shapes are listed."""
    steps: list[str] = []

    def run(_: StepGraphs, shape: object, step: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
        steps.append(str(shape))
        with Capture():
            return step(ids)

    monkeypatch.setattr(StepGraphs, "run", run)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr(
        torch.cuda, "current_device", lambda: 1
    )  # kernels run on the thread's current device only: none here
    monkeypatch.setattr(shared_prefix, "_bmm_has_float32_output", lambda device, dtype: True)
    with FakeTensorMode(), WithoutCuda(), torch.inference_mode():
        yield steps


def make_llm(own: bool, dtype: torch.dtype) -> Any:
    llm: Any = Llama(LlamaConfig(**SIZES, head_dim=16, rope_theta=10000.0)) if own else None
    llm = (llm or LlamaForCausalLM(LlamaConfigOfTransformers(**SIZES))).eval()
    for module in llm.modules():  # not with `to`, which would initialize CUDA
        for name, weight in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(weight.to(CUDA, dtype), requires_grad=False))
        for name, values in list(module.named_buffers(recurse=False)):
            setattr(module, name, values.to(CUDA))
    return llm


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("own", [True, False])
def test_decode_steps_can_be_captured_and_stay_on_the_device(
    own: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_device(monkeypatch) as steps:
        connector = build_connector("linear", 8, 64)
        model = VideoLlava(connector, make_llm(own, dtype), None, get_format("v1", ""), 256)
        batch = RunningBatch(model, CacheCapacity(8, 4, 64, 32), static_shapes=True)

        def embedded(*lengths: int) -> list[Tensor]:
            return [torch.empty(n, 64, device=CUDA, dtype=dtype) for n in lengths]

        prefixes = batch.prefill_prefixes(embedded(20, 33))
        batch.prefill_suffixes([prefixes[0], prefixes[0], prefixes[1]], embedded(4, 7, 5))
        for _ in range(2):
            assert batch.logits is not None
            assert batch.logits.device == CUDA and batch.logits.dtype == torch.float32
            batch.decode_step(batch.logits.argmax(-1))
        batch.keep([0, 2])
        more = batch.prefill_prefixes(embedded(12))
        batch.prefill_suffixes(more * 2, embedded(3, 3))
        batch.decode_step(batch.logits.argmax(-1))
        batch.keep([3], prefixes=more)
        batch.decode_step(batch.logits[:1].argmax(-1))
        assert batch.pool is not None
        assert {t.device for pair in (*batch.pool.prefix_kv, *batch.pool.suffix_kv) for t in pair} == {CUDA}
        assert {t.dtype for pair in (*batch.pool.prefix_kv, *batch.pool.suffix_kv) for t in pair} == {dtype}
    assert len(steps) == 4


def test_tokens_are_picked_without_synchronization(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next step starts before the host reads them."""
    with fake_device(monkeypatch), Capture():
        logits, samples = torch.zeros(4, 100, device=CUDA), torch.zeros(4, dtype=torch.float64, device=CUDA)
        for picked in (pick_greedy(logits), pick_sampled(logits, 0.7, 0.9, samples)):
            assert (picked.device, picked.dtype, picked.shape) == (CUDA, torch.int64, (4,))


def test_capture_rejects_synchronizing_operations() -> None:
    with FakeTensorMode(), Capture(), WithoutCuda():
        there = torch.zeros(3, device=CUDA)
        for forbidden in (
            lambda: torch.zeros(3).to(CUDA),
            lambda: there.copy_(torch.zeros(3)),
            lambda: there[there > 0],
            lambda: torch.ops.aten.nonzero(there),
        ):
            with pytest.raises(AssertionError):
                forbidden()
