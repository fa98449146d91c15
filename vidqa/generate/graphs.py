"""Steps of one shape, recorded once and replayed: a CUDA graph takes the launching of kernels off the CPU.

Knows a function of one tensor whose other inputs keep their addresses. Does not know models. A recording is believed
only after its result was compared with that of an ordinary run; where recording or comparison fails, steps go on in the
ordinary way, and the log says so once.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vidqa.encoders.devices import UNDISTURBED

log = logging.getLogger(__name__)

#: A shape is recorded when it has come so often; recording costs about as much as a few steps.
_RECORD_AFTER = 4
#: Graphs that are kept; each holds the memory of one step's activations, shared between them.
_MOST_GRAPHS = 12


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
            with UNDISTURBED:
                recorded = self._record(step, given)
            recorded.graph.replay()
            torch.cuda.synchronize(given.device)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # an operation that cannot be recorded; CUDA says so in many words
            self._give_up(str(error).splitlines()[0])
            return wanted
        finally:
            torch.cuda.set_stream(usual)  # torch leaves its block on another one where the end of a recording fails
        far = (recorded.result - wanted).abs().max().item()
        scale = wanted.abs().max().item()
        # Same kernels on the same numbers; matrix products may pick another algorithm, hence not 0.
        if not far <= 1e-2 * max(scale, 1.0):
            self._give_up(f"its result differs by {far:.2g}")
            return wanted
        self._graphs[shape] = recorded
        return wanted

    def _record(self, step: Callable[[Tensor], Tensor], given: Tensor) -> _Graph:
        """Warm up beside the main stream, as torch asks for, then record."""
        mine = given.clone()
        stream = torch.cuda.Stream(given.device)
        stream.wait_stream(torch.cuda.current_stream(given.device))
        with torch.cuda.stream(stream):
            for _ in range(2):
                step(mine)
        torch.cuda.current_stream(given.device).wait_stream(stream)
        if self._memory is None:
            self._memory = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Others use the device meanwhile: what they call must neither fail nor end the recording.
        with torch.cuda.graph(graph, pool=self._memory, stream=stream, capture_error_mode="thread_local"):
            result = step(mine)
        return _Graph(graph, mine, result)

    def _give_up(self, why: str) -> None:
        self._given_up = True
        log.warning("steps are not recorded as CUDA graphs: %s", why)
