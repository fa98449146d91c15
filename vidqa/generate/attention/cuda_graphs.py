"""CUDA graphs of decode steps: capture a step of one shape once, then replay it without CPU launch overhead.

A captured graph is used only after its result was compared with that of an eager step. If capture or comparison fails,
for example because there is no memory for a graph, steps run eagerly and the log reports it once.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vidqa.common.devices import CUDA_EXCLUSIVE

log = logging.getLogger(__name__)

#: A shape is captured once it has occurred this many times; a capture costs about as much as a few steps.
_CAPTURE_AFTER = 4
#: Maximum number of graphs; each needs memory for the activations of one step, shared between all graphs.
_MAX_GRAPHS = 12
#: Largest accepted error of a sequence's logits, relative to their norm. It is 0 if the same kernels run, but matmuls
#: may select another algorithm, whose rounding is visible in a deep half-precision model. The error of a wrong step is
#: far larger.
_MAX_RELATIVE_ERROR = 0.05
#: Graphs whose capture failed. They stay alive, because torch's pinned-memory allocator still queries them.
_FAILED: list[Any] = []


@dataclass
class _Graph:
    graph: Any
    ids: Tensor
    result: Tensor


@dataclass
class StepGraphs:
    """Captured decode steps of one KV pool, by shape."""

    _graphs: dict[Hashable, _Graph] = field(default_factory=dict)
    _seen: Counter[Hashable] = field(default_factory=Counter)
    _memory: Any = None
    _disabled: bool = False

    def run(self, shape: Hashable, step: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
        """Run a step: replay its graph if there is one, else run it eagerly and perhaps capture it.

        Args:
            shape: identifies steps that differ in tensor values only.
            step: computes logits from `ids` and from tensors that keep their addresses; must be safe to repeat.
            ids: token ids, int64 [n].

        Returns:
            The result of `step`, float [n, vocabulary]; the next run of the same shape overwrites it.
        """
        if (captured := self._graphs.get(shape)) is not None:
            captured.ids.copy_(ids)
            captured.graph.replay()
            return captured.result
        self._seen[shape] += 1
        if self._disabled or self._seen[shape] < _CAPTURE_AFTER or len(self._graphs) >= _MAX_GRAPHS:
            return step(ids)
        eager, stream = step(ids), torch.cuda.current_stream(ids.device)
        try:
            with CUDA_EXCLUSIVE:
                captured = self._capture(step, ids)
            captured.graph.replay()
            torch.cuda.synchronize(ids.device)
        except RuntimeError as error:  # the step has an operation that cannot be captured, or memory ran out
            torch.cuda.synchronize(ids.device)  # the side stream may still read and write
            self._disable(str(error).splitlines()[0])
            return eager
        finally:
            torch.cuda.set_stream(stream)  # torch does not restore the stream if ending a capture fails
        error_norm, norm = (captured.result - eager).norm(dim=-1), eager.norm(dim=-1)
        comparable = norm.isfinite()  # a sequence whose logits overflow fails with or without the graph
        error_norm, norm = error_norm[comparable], norm[comparable]
        if not bool((error_norm <= _MAX_RELATIVE_ERROR * norm).all()):
            self._disable(f"its result differs by {float((error_norm / norm).max()):.2g}")
            return eager
        self._graphs[shape] = captured
        return eager

    def _capture(self, step: Callable[[Tensor], Tensor], ids: Tensor) -> _Graph:
        """Warm up on a side stream, as torch requires, then capture."""
        static_ids, stream = ids.clone(), _side_stream(ids.device)
        stream.wait_stream(torch.cuda.current_stream(ids.device))
        with torch.cuda.stream(stream):
            for _ in range(2):
                step(static_ids)
        torch.cuda.current_stream(ids.device).wait_stream(stream)
        if self._memory is None:
            self._memory = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads use the device meanwhile: their calls must neither fail nor end the capture.
            with torch.cuda.graph(graph, pool=self._memory, stream=stream, capture_error_mode="thread_local"):
                result = step(static_ids)
        except RuntimeError:
            _end_capture(ids.device, self._memory, graph)
            raise
        return _Graph(graph, static_ids, result)

    def _disable(self, why: str) -> None:
        self._disabled = True
        log.warning("decode steps are not captured as CUDA graphs: %s", why)


@functools.cache
def _side_stream(device: torch.device) -> Any:
    """Return the stream of all captures: matrix libraries keep a workspace of up to 32 MB for each stream they used."""
    return torch.cuda.Stream(device)


def _end_capture(device: torch.device, memory: Any, graph: Any) -> None:
    """Inform torch's allocator that a failed capture is over.

    torch (2.13) does this only if CUDA ends the capture without an error. An allocator that still assumes a capture
    never returns cached memory, so that a full device stays full. The functions are those of
    `torch.cuda.use_mem_pool`.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    try:
        torch._C._cuda_endAllocateToPool(index, memory)
    except (RuntimeError, AttributeError):  # it was already informed
        return
    torch._C._cuda_releasePool(index, memory)
    _FAILED.append(graph)
