"""Torch tower -> ONNX file: one graph that gives the layer tokens and the pooled embedding, checked against torch.

Knows the towers and ONNX. Does not know bundles, devices or media. `onnx`, `onnxscript` and `onnxruntime` are imported
inside the functions; the first two come with the `export` extra.

The graph is written for one number of frames T and any batch. Fused, it has one node for an attention, for a sum with
its norm and for a bias with its GELU; these operators of onnxruntime exist for the CPU and for CUDA. Besides the tower
itself, at most one copy of its weights is in memory: that of the session which checks the graph.
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

#: Largest absolute difference to torch of a float32 graph; where values exceed 10, one part in 100,000 of the largest.
FP32_TOLERANCE = 1e-4
#: The same for float16, as a part of the largest value of an output: 11 bits of mantissa, summed over the layers.
FP16_TOLERANCE = 2e-2
#: Larger weights go to a file beside the graph: protobuf would hold them twice while it reads, and 2 GB not at all.
EXTERNAL_ABOVE_BYTES = 200_000_000

#: Neither is the batch that the graph was traced with.
_CHECK_BATCHES = (1, 2)
_TRACED_BATCH = 3

_Tower = TypeVar("_Tower", VisionTower, TextTower)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how far it is from torch."""

    path: Path
    max_abs_error: float  # worst over all outputs and checked batches
    max_rel_error: float  # the same, as a part of the largest absolute value of its output
    operators: dict[str, int]  # nodes by operator
    external_data: str | None  # name of the weight file beside the graph, None when all is in one file
    fused: bool


@dataclass(frozen=True)
class _Check:
    """How a graph is fed and what it must give."""

    names_in: tuple[str, ...]
    names_out: tuple[str, ...]
    inputs: Callable[[int], tuple[Tensor, ...]]  # of a batch size
    truth: Callable[..., tuple[Tensor, ...]]  # in float32
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
    """Write a vision tower as ONNX: `pixel_values` -> `tokens`, `embedding`.

    Args:
        tower: in float32; it is not changed.
        path: the file to write. With weights of more than `external_above` bytes they go to `<name>.data` beside it.
        n_frames: T of the graph, 1 for images.
        layer: the hidden state that becomes `tokens`: 0 before the first block, -1 after the last.
        fp16: weights and arithmetic in float16, for GPUs; input and embedding stay float32, `tokens` becomes float16.
        fuse: let onnxruntime's transformer optimizer fuse the graph; a fused graph that leaves the tolerance is
            dropped for the plain one.
        external_above: bytes.

    Returns:
        The largest difference to torch, for batches of 1 and 2, and what is in the graph.

    Raises:
        VidqaError: the export packages are not installed, or the graph differs from torch by more than the tolerance.
        ValueError: `layer` or `n_frames` does not fit the tower.
    """
    tower = _plain(tower)
    weights = copy.deepcopy(tower).half() if fp16 else tower
    size, c = tower.config.image_size, tower.config

    def inputs(batch: int) -> tuple[Tensor, ...]:
        return (torch.randn(batch, n_frames, 3, size, size, generator=torch.Generator().manual_seed(batch)),)

    def truth(values: Tensor) -> tuple[Tensor, ...]:
        return tower(values, layer)

    check = _Check(("pixel_values",), ("tokens", "embedding"), inputs, truth, fp16)
    if fuse:
        graph = VisionGraph(weights, n_frames, layer, fused=True).eval()
        try:
            return _export(graph, Path(path), check, external_above, heads=(c.n_heads, c.hidden_size))
        except _ParityError as e:
            log.warning("%s; writing the plain graph", e.what)
    return _export(VisionGraph(weights, n_frames, layer).eval(), Path(path), check, external_above)


def export_text(
    tower: TextTower, path: str | os.PathLike[str], *, external_above: int = EXTERNAL_ABOVE_BYTES
) -> ExportReport:
    """Write a text tower as ONNX: `input_ids` and `attention_mask` int64 [batch, S] -> `embedding` float32 [batch, E].

    S is fixed: texts are padded to `max_positions`, as the published models pad them. The graph is not fused: it runs
    once a search, and a causal mask together with padding is no pattern of the optimizer.

    Raises:
        VidqaError: as `export_tower`.
    """
    tower = _plain(tower)
    c = tower.config

    def inputs(batch: int) -> tuple[Tensor, ...]:
        rng = torch.Generator().manual_seed(batch)
        ids = torch.randint(0, c.vocab_size, (batch, c.max_positions), generator=rng)
        n_real = torch.randint(1, c.max_positions + 1, (batch, 1), generator=rng)
        return ids, (torch.arange(c.max_positions)[None] < n_real).long()

    def truth(ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        return (tower(ids, mask),)

    check = _Check(("input_ids", "attention_mask"), ("embedding",), inputs, truth)
    return _export(TextGraph(tower).eval(), Path(path), check, external_above)


def _plain(tower: _Tower) -> _Tower:
    """The tower in float32 on the CPU. One that is so already is not copied: of full size it takes 1.6 GB."""
    plain = all(p.dtype == torch.float32 and p.device.type == "cpu" for p in tower.parameters()) and not tower.training
    return tower if plain else copy.deepcopy(tower).float().cpu().eval()


class _ParityError(VidqaError):
    """A written graph does not give what torch gives."""


def _export(
    graph: nn.Module, path: Path, check: _Check, external_above: int, heads: tuple[int, int] | None = None
) -> ExportReport:
    """Write `graph` to `path`, whole or not at all; with `heads` (their number, width) it is fused first."""
    onnx = import_extra("onnx")
    # Beside the target, so that the last step is a rename; the weights come first, the graph that names them last.
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
            path.with_name(path.name + ".data").unlink(missing_ok=True)  # of an export before this one
    operators = {name: nodes.count(name) for name in sorted(set(nodes))}
    return ExportReport(path, absolute, relative, operators, external, heads is not None)


def _compare(path: Path, check: _Check) -> tuple[float, float]:
    """Largest absolute and relative difference between the file, run on the CPU, and torch.

    Torch computes item by item: less memory, and a graph that mixed the items of a batch would be found.
    """
    values = check.inputs(max(_CHECK_BATCHES))
    with torch.no_grad():
        items = [check.truth(*(v[i : i + 1] for v in values)) for i in range(max(_CHECK_BATCHES))]
    wanted = [torch.cat(outputs).numpy() for outputs in zip(*items, strict=True)]
    session = _session(path)
    absolute = relative = 0.0
    for batch in _CHECK_BATCHES:
        got = session.run(None, {n: v[:batch].numpy() for n, v in zip(check.names_in, values, strict=True)})
        for ours, whole in zip(got, wanted, strict=True):
            theirs = whole[:batch]
            if ours.shape != theirs.shape:
                raise VidqaError(f"{path.name}: an output has shape {ours.shape}, torch gives {theirs.shape}")
            error = float(np.abs(ours.astype(np.float32) - theirs).max())
            error = math.inf if math.isnan(error) else error
            absolute = max(absolute, error)
            relative = max(relative, error / max(float(np.abs(theirs).max()), 1e-12))
    return absolute, relative


def _session(path: Path) -> Any:
    """A session that keeps no memory for later runs, and no second copy of its weights in another order."""
    runtime = import_extra("onnxruntime")
    options = runtime.SessionOptions()
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
