"""Steps of one shape, recorded once and replayed: a CUDA graph takes the launching of kernels off the CPU.

Knows a function of one tensor whose other inputs keep their addresses. Does not know models. A recording is believed
only after its result was compared with that of an ordinary run; where recording or comparison fails, steps go on in the
ordinary way, and the log says so once. A device without room for a recording has room for the steps all the same.
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

#: A shape is recorded when it has come so often; recording costs about as much as a few steps.
_RECORD_AFTER = 4
#: Graphs that are kept; each holds the memory of one step's activations, shared between them.
_MOST_GRAPHS = 12
#: Of a line's logits, as a share of their size. Same kernels on the same numbers give 0; products of matrices may pick
#: another algorithm, whose rounding a deep model in half precision makes visible. A wrong step is far above.
_MOST_DIFFERENCE = 0.05
#: What recorded when CUDA ended it with an error: torch's allocator of pinned memory goes on asking it.
_FAILED: list[Any] = []


@dataclass
class _Graph:
    graph: Any
    given: Tensor
    result: Tensor


@dataclass
class StepGraphs:
    """Recorded steps of one pool, by shape."""

    _graphs: dict[Hashable, _Graph] = field(default_factory=dict)
    _seen: Counter[Hashable] = field(default_factory=Counter)
    _memory: Any = None
    _given_up: bool = False

    def run(self, shape: Hashable, step: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
        """Run a step, by its recording where there is one.

        Args:
            shape: steps of one shape differ in nothing but values.
            step: reads `given` and tensors that keep their addresses; may be run again without harm.
            given: int64 [n].

        Returns:
            What `step` gives; it is overwritten by the next run of the same shape.
        """
        if (known := self._graphs.get(shape)) is not None:
            known.given.copy_(given)
            known.graph.replay()
            return known.result
        self._seen[shape] += 1
        if self._given_up or self._seen[shape] < _RECORD_AFTER or len(self._graphs) >= _MOST_GRAPHS:
            return step(given)
        wanted, usual = step(given), torch.cuda.current_stream(given.device)
        try:
            with CUDA_EXCLUSIVE:
                recorded = self._record(step, given)
            recorded.graph.replay()
            torch.cuda.synchronize(given.device)
        except RuntimeError as error:  # an operation that cannot be recorded, or no memory; CUDA says so in many words
            torch.cuda.synchronize(given.device)  # what runs beside still reads and writes
            self._give_up(str(error).splitlines()[0])
            return wanted
        finally:
            torch.cuda.set_stream(usual)  # torch leaves its block on another one where the end of a recording fails
        far, size = (recorded.result - wanted).norm(dim=-1), wanted.norm(dim=-1)
        if not bool((far <= _MOST_DIFFERENCE * size).all()):
            self._give_up(f"its result differs by {float((far / size).max()):.2g}")
            return wanted
        self._graphs[shape] = recorded
        return wanted

    def _record(self, step: Callable[[Tensor], Tensor], given: Tensor) -> _Graph:
        """Warm up beside the main stream, as torch asks for, then record."""
        mine, stream = given.clone(), _side_stream(given.device)
        stream.wait_stream(torch.cuda.current_stream(given.device))
        with torch.cuda.stream(stream):
            for _ in range(2):
                step(mine)
        torch.cuda.current_stream(given.device).wait_stream(stream)
        if self._memory is None:
            self._memory = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            # Others use the device meanwhile: what they call must neither fail nor end the recording.
            with torch.cuda.graph(graph, pool=self._memory, stream=stream, capture_error_mode="thread_local"):
                result = step(mine)
        except RuntimeError:
            _end_recording(given.device, self._memory, graph)
            raise
        return _Graph(graph, mine, result)

    def _give_up(self, why: str) -> None:
        self._given_up = True
        log.warning("steps are not recorded as CUDA graphs: %s", why)


@functools.cache
def _side_stream(device: torch.device) -> Any:
    """One for all recordings: matrix libraries keep a workspace of up to 32 MB for every stream that they saw."""
    return torch.cuda.Stream(device)


def _end_recording(device: torch.device, memory: Any, graph: Any) -> None:
    """Have torch's allocator know that a recording is over which ended with an error.

    torch (2.13) tells it only where CUDA ends the recording without one. An allocator that believes in a recording
    never gives cached memory back, so that a full device stays full. The functions are those of
    `torch.cuda.use_mem_pool`.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    try:
        torch._C._cuda_endAllocateToPool(index, memory)
    except (RuntimeError, AttributeError):  # it knew
        return
    torch._C._cuda_releasePool(index, memory)
    _FAILED.append(graph)
