"""Torch tower -> ONNX file: one graph that returns layer tokens and pooled embedding, checked against torch.

A graph is exported for one number of frames T and any batch size. In a fused graph, each attention, each residual sum
with its norm, and each bias with its GELU is one operator; onnxruntime has them for CPU and CUDA. Besides the tower,
at most one copy of its weights is in memory: that of the session that checks the graph.

`onnx`, `onnxscript` and `onnxruntime` are imported inside the functions; the first two come with the `export` extra.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from vidqa.errors import VidqaError
from vidqa.model.onnx.export_modules import TextGraph, VisionGraph
from vidqa.model.onnx.onnx_io import fuse_graph, gather_weights, import_extra, write_graph
from vidqa.model.towers.text import TextTower
from vidqa.model.towers.vit import VisionTower

#: Largest absolute error of a float32 graph; if values exceed 10, one part in 100,000 of the largest value.
FP32_TOLERANCE = 1e-4
#: Largest error of a float16 graph, relative to the largest value of an output: the rounding of all layers adds up.
FP16_TOLERANCE = 2e-2
#: Larger weights go to an external data file: protobuf needs twice the memory to read them, and its limit is 2 GB.
EXTERNAL_ABOVE_BYTES = 200_000_000

#: Batch sizes of the check; neither is the traced one.
_CHECK_BATCHES = (1, 2)
_TRACED_BATCH = 3

_Tower = TypeVar("_Tower", VisionTower, TextTower)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportReport:
    """What was exported, and its error relative to torch."""

    path: Path
    max_abs_error: float  # over all outputs and checked batch sizes
    max_rel_error: float  # the same, relative to the largest absolute value of the output
    operators: dict[str, int]  # number of nodes of each operator
    external_data: str | None  # name of the external data file; None if there is none
    fused: bool


@dataclass(frozen=True)
class _ParityCheck:
    """Inputs and expected outputs of a graph."""

    names_in: tuple[str, ...]
    names_out: tuple[str, ...]
    inputs: Callable[[int], tuple[Tensor, ...]]  # batch size -> inputs
    expected: Callable[..., tuple[Tensor, ...]]  # inputs -> outputs of torch in float32
    fp16: bool = False

    def tolerates(self, absolute: float, relative: float) -> bool:
        if self.fp16:
            return relative <= FP16_TOLERANCE
        return absolute <= FP32_TOLERANCE or relative <= FP32_TOLERANCE / 10


def export_tower(
    tower: VisionTower,
    path: str | os.PathLike[str],
    n_frames: int,
    layer: int = -2,
    fp16: bool = False,
    *,
    fuse: bool = True,
    external_above: int = EXTERNAL_ABOVE_BYTES,
) -> ExportReport:
    """Export a vision tower: `pixel_values` -> `tokens`, `embedding`.

    Args:
        tower: the tower; it is not changed.
        path: the file to write. Weights of more than `external_above` bytes go to `<name>.data` next to it.
        n_frames: T of the graph, 1 for images.
        layer: hidden state that is returned as `tokens`: 0 before the first block, -1 after the last.
        fp16: float16 weights and arithmetic, for GPUs; input and embedding stay float32, `tokens` becomes float16.
        fuse: let onnxruntime's transformer optimizer fuse the graph; if the fused graph exceeds the tolerance, the
            graph is exported unfused.
        external_above: size of the weights, in bytes, above which they go to an external data file.

    Returns:
        The largest error relative to torch, for batch sizes 1 and 2, and what is in the graph.

    Raises:
        VidqaError: the export packages are not installed, or the error of the graph exceeds the tolerance.
        ValueError: the tower does not support `layer` or `n_frames`.
    """
    tower = _float32_on_cpu(tower)
    weights = copy.deepcopy(tower).half() if fp16 else tower
    size, c = tower.config.image_size, tower.config

    def inputs(batch: int) -> tuple[Tensor, ...]:
        return (torch.randn(batch, n_frames, 3, size, size, generator=torch.Generator().manual_seed(batch)),)

    def expected(values: Tensor) -> tuple[Tensor, ...]:
        return tower(values, layer)

    check = _ParityCheck(("pixel_values",), ("tokens", "embedding"), inputs, expected, fp16)
    if fuse:
        graph = VisionGraph(weights, n_frames, layer, fused=True).eval()
        try:
            return _export(graph, Path(path), check, external_above, heads=(c.n_heads, c.hidden_size))
        except _ParityError as e:
            log.warning("%s; exporting it unfused", e.what)
    return _export(VisionGraph(weights, n_frames, layer).eval(), Path(path), check, external_above)


def export_text(
    tower: TextTower, path: str | os.PathLike[str], *, external_above: int = EXTERNAL_ABOVE_BYTES
) -> ExportReport:
    """Export a text tower: `input_ids` and `attention_mask` int64 [batch, S] -> `embedding` float32 [batch, E].

    E is the width of the embedding. S is fixed: texts are padded to `max_positions`, as in the published models. The
    graph is not fused: it runs once per search, and the optimizer has no pattern for a causal mask with padding.

    Raises:
        VidqaError: see `export_tower`.
    """
    tower = _float32_on_cpu(tower)
    c = tower.config

    def inputs(batch: int) -> tuple[Tensor, ...]:
        rng = torch.Generator().manual_seed(batch)
        ids = torch.randint(0, c.vocab_size, (batch, c.max_positions), generator=rng)
        n_real = torch.randint(1, c.max_positions + 1, (batch, 1), generator=rng)
        return ids, (torch.arange(c.max_positions)[None] < n_real).long()

    def expected(ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        return (tower(ids, mask),)

    check = _ParityCheck(("input_ids", "attention_mask"), ("embedding",), inputs, expected)
    return _export(TextGraph(tower).eval(), Path(path), check, external_above)


def _float32_on_cpu(tower: _Tower) -> _Tower:
    """Return the tower in float32 on the CPU, copied only if necessary, because a full-size tower takes 1.6 GB."""
    is_ready = (
        all(p.dtype == torch.float32 and p.device.type == "cpu" for p in tower.parameters()) and not tower.training
    )
    return tower if is_ready else copy.deepcopy(tower).float().cpu().eval()


class _ParityError(VidqaError):
    """An exported graph exceeds the tolerance."""


def _export(
    graph: nn.Module, path: Path, check: _ParityCheck, external_above: int, heads: tuple[int, int] | None = None
) -> ExportReport:
    """Export `graph` to `path` atomically; fused if `heads` (n_heads, hidden size) is given."""
    onnx = import_extra("onnx")
    # In the target's folder, so that the last step is a rename: first the weights, then the graph that refers to them.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        written = Path(folder) / path.name
        write_graph(graph, written, check.inputs(_TRACED_BATCH), check.names_in, check.names_out)
        if heads:
            fuse_graph(written, *heads)
        external = gather_weights(written, external_above)
        absolute, relative = _compare(written, check)
        if not check.tolerates(absolute, relative):
            what = f"{path}: the {'fused ' if heads else ''}graph differs from torch"
            raise _ParityError(f"{what} by {absolute:.2e} ({relative:.2e} of the largest value)")
        nodes = [n.op_type for n in onnx.load(str(written), load_external_data=False).graph.node]
        if external:
            os.replace(written.with_name(external), path.with_name(external))
        os.replace(written, path)
        if not external:
            path.with_name(path.name + ".data").unlink(missing_ok=True)  # left by an earlier export
    operators = {name: nodes.count(name) for name in sorted(set(nodes))}
    return ExportReport(path, absolute, relative, operators, external, heads is not None)


def _compare(path: Path, check: _ParityCheck) -> tuple[float, float]:
    """Return the largest absolute and relative error of the file, run on the CPU.

    Torch computes item by item, which needs less memory and detects a graph that mixes the items of a batch.
    """
    values = check.inputs(max(_CHECK_BATCHES))
    with torch.no_grad():
        items = [check.expected(*(v[i : i + 1] for v in values)) for i in range(max(_CHECK_BATCHES))]
    references = [torch.cat(outputs).numpy() for outputs in zip(*items, strict=True)]
    session = _session(path)
    absolute = relative = 0.0
    for batch in _CHECK_BATCHES:
        results = session.run(None, {n: v[:batch].numpy() for n, v in zip(check.names_in, values, strict=True)})
        for ours, reference in zip(results, references, strict=True):
            theirs = reference[:batch]
            if ours.shape != theirs.shape:
                raise VidqaError(f"{path.name}: an output has shape {ours.shape}, torch returns {theirs.shape}")
            error = float(np.abs(ours.astype(np.float32) - theirs).max())
            error = math.inf if math.isnan(error) else error
            absolute = max(absolute, error)
            relative = max(relative, error / max(float(np.abs(theirs).max()), 1e-12))
    return absolute, relative


def _session(path: Path) -> Any:
    """Create a session without a memory arena and without a second, prepacked copy of the weights."""
    runtime = import_extra("onnxruntime")
    options = runtime.SessionOptions()
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
