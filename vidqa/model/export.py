"""Torch tower -> ONNX file: one graph that gives the layer tokens and the pooled embedding, checked against torch.

Knows the towers and ONNX. Does not know bundles, devices or media. `onnx`, `onnxscript` and `onnxruntime` are imported
inside the functions; the first two come with the `export` extra.

The graph is written for one number of frames T and any batch. It computes what its two outputs need and no more: of the
last block, when the tokens are taken before it, only the class token.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidqa.errors import VidqaError
from vidqa.model.text import TextTower
from vidqa.model.vit import Attention, VisionLayer, VisionTower

#: Largest absolute difference to torch that an exported float32 graph may show.
FP32_TOLERANCE = 1e-4
#: The same for float16, relative to the largest value of an output: 11 bits of mantissa, summed over layers.
FP16_TOLERANCE = 2e-2
#: Protobuf cannot hold more; larger weights go to a file beside the graph.
EXTERNAL_ABOVE_BYTES = 2_000_000_000

_OPSET = 18
_CHECK_BATCHES = (1, 2, 5)


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how far it is from torch."""

    path: Path
    max_abs_error: float  # worst over all outputs and checked batch sizes
    max_rel_error: float  # the same, divided by the largest absolute value of its output
    n_nodes: int
    external_data: str | None  # name of the weight file beside the graph, None when all is in one file
    fused: bool


class _VisionGraph(nn.Module):
    """A vision tower in the form that exports cleanly: no shape is computed inside the graph."""

    def __init__(self, tower: VisionTower, n_frames: int, layer: int) -> None:
        super().__init__()
        n_layers = tower.config.n_layers
        self.tower, self.n_frames = tower, n_frames
        self.layer = layer if layer >= 0 else n_layers + 1 + layer
        if not 0 <= self.layer <= n_layers:
            raise ValueError(f"layer {layer} is not one of the {n_layers + 1} hidden states")

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [B, T, 3, S, S] -> tokens [B, T, P, D], embedding float32 [B, E]."""
        model = self.tower.vision_model
        size = self.tower.config.image_size
        x = model.pre_layrnorm(self._embed(pixel_values.reshape(-1, 3, size, size)))
        tokens = x
        for i, layer in enumerate(model.encoder.layers, start=1):
            only_cls = i == self.tower.config.n_layers and self.layer < i
            x = _block(layer, x, self.n_frames, only_cls)
            tokens = x if i == self.layer else tokens
        pooled = model.post_layernorm(x[:, 0])
        pooled = pooled.reshape(-1, self.n_frames, pooled.shape[-1]).mean(dim=1)
        tokens = tokens.reshape(-1, self.n_frames, *tokens.shape[1:])
        return tokens, self.tower.visual_projection(pooled).float()

    def _embed(self, frames: Tensor) -> Tensor:
        e = self.tower.vision_model.embeddings
        patches = e.patch_embedding(frames.to(e.class_embedding.dtype)).flatten(2).transpose(1, 2)
        # A row of zeros in front takes the class token from the table: no need to expand it to the batch.
        table = e.position_embedding.weight + F.pad(e.class_embedding[None], (0, 0, 0, self.tower.config.n_patches))
        return F.pad(patches, (0, 0, 1, 0)) + table


def _block(layer: VisionLayer, x: Tensor, n_frames: int, only_cls: bool) -> Tensor:
    """[B*T, P, D] -> [B*T, P, D], or [B*T, 1, D] when only the class token is wanted."""
    if layer.temporal_length:
        n, d = x.shape[1:]
        t = min(n_frames, layer.temporal_length)
        x = (x.reshape(-1, t, n, d) + layer.temporal_embedding[0, :t, None]).reshape(-1, n, d)
        y = layer.temporal_layer_norm1(x).reshape(-1, t, n, d).transpose(1, 2).reshape(-1, t, d)
        y = _attend(layer.temporal_attn, y, y)
        x = x + y.reshape(-1, n, t, d).transpose(1, 2).reshape(-1, n, d)
    y = layer.layer_norm1(x)
    if only_cls:
        x, y = x[:, :1], _attend(layer.self_attn, y[:, :1], y)
    else:
        y = _attend(layer.self_attn, y, y)
    x = x + y
    return x + layer.mlp(layer.layer_norm2(x))


def _attend(attn: Attention, queries: Tensor, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """[N, Q, D], [N, L, D] -> [N, Q, D]; written out, in the order of operations that graph optimizers know."""
    width = x.shape[2]
    head = width // attn.n_heads
    q = attn.q_proj(queries).reshape(-1, queries.shape[1], attn.n_heads, head).transpose(1, 2)
    k = attn.k_proj(x).reshape(-1, x.shape[1], attn.n_heads, head).permute(0, 2, 3, 1)
    v = attn.v_proj(x).reshape(-1, x.shape[1], attn.n_heads, head).transpose(1, 2)
    scores = torch.matmul(q, k) / math.sqrt(head)
    if mask is not None:
        scores = scores + mask
    y = torch.matmul(torch.softmax(scores, dim=-1), v)
    return attn.out_proj(y.transpose(1, 2).reshape(-1, queries.shape[1], width))


def export_tower(
    tower: VisionTower,
    path: str | os.PathLike[str],
    n_frames: int,
    layer: int = -2,
    fp16: bool = False,
    *,
    external_above: int = EXTERNAL_ABOVE_BYTES,
) -> ExportReport:
    """Write a vision tower as ONNX.

    Args:
        tower: in float32; it is not changed.
        path: the file to write. With weights of more than `external_above` bytes they go to `<name>.data` beside it.
        n_frames: T of the graph, 1 for images.
        layer: the hidden state that becomes `tokens`: 0 before the first block, -1 after the last.
        fp16: weights and arithmetic in float16; input and embedding stay float32, `tokens` becomes float16.
        external_above: bytes.

    Returns:
        The largest difference to torch, for batches of 1, 2 and 5.

    Raises:
        VidqaError: the export packages are not installed, or the graph differs from torch by more than the tolerance.
        ValueError: `layer` or `n_frames` does not fit the tower.
    """
    length = tower.config.temporal_length
    if n_frames < 1 or (length and n_frames > length and n_frames % length):
        raise ValueError(f"{n_frames} frames cannot be cut into groups of {length}")
    tower = copy.deepcopy(tower).float().cpu().eval()
    graph = _VisionGraph(copy.deepcopy(tower).half() if fp16 else tower, n_frames, layer).eval()
    shape = (n_frames, 3, tower.config.image_size, tower.config.image_size)

    def inputs(batch: int) -> tuple[Tensor, ...]:
        return (torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch)),)

    def truth(values: Tensor) -> tuple[Tensor, ...]:
        tokens, embedding = tower(values, layer)
        return tokens, embedding

    return _export(graph, Path(path), ("pixel_values",), ("tokens", "embedding"), inputs, truth, fp16, external_above)


class _TextGraph(nn.Module):
    """A text tower as a graph of ids [B, S] and their mask."""

    def __init__(self, tower: TextTower) -> None:
        super().__init__()
        self.tower = tower
        s = tower.config.max_positions
        self.register_buffer("causal", torch.full((s, s), torch.finfo(torch.float32).min).triu(1))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 [B, S], int64 [B, S] -> embedding float32 [B, E]."""
        model = self.tower.text_model
        s = input_ids.shape[1]
        low = torch.finfo(torch.float32).min
        hidden = (1 - attention_mask[:, None, None, :].float()) * low * (1 - torch.eye(s))
        mask = torch.maximum(self.causal[:s, :s] + hidden, torch.tensor(low))
        # Indexed, not called: the exporter would name the looked-up states `embedding`, and so is our output.
        x = model.embeddings.token_embedding.weight[input_ids] + model.embeddings.position_embedding.weight[:s]
        for layer in model.encoder.layers:
            y = layer.layer_norm1(x)
            x = x + _attend(layer.self_attn, y, y, mask)
            x = x + layer.mlp(layer.layer_norm2(x))
        end = input_ids.argmax(dim=-1)[:, None, None].expand(-1, 1, x.shape[-1])
        pooled = model.final_layer_norm(x.gather(1, end)[:, 0])
        return self.tower.text_projection(pooled)


def export_text(
    tower: TextTower, path: str | os.PathLike[str], *, external_above: int = EXTERNAL_ABOVE_BYTES
) -> ExportReport:
    """Write a text tower as ONNX: `input_ids` and `attention_mask` int64 [batch, S] -> `embedding` float32 [batch, E].

    S is fixed: texts are padded to `max_positions`, as the published models pad them.

    Raises:
        VidqaError: as `export_tower`.
    """
    tower = copy.deepcopy(tower).float().cpu().eval()
    c = tower.config

    def inputs(batch: int) -> tuple[Tensor, ...]:
        rng = torch.Generator().manual_seed(batch)
        ids = torch.randint(0, c.vocab_size, (batch, c.max_positions), generator=rng)
        n_real = torch.randint(1, c.max_positions + 1, (batch, 1), generator=rng)
        return ids, (torch.arange(c.max_positions)[None] < n_real).long()

    def truth(ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        return (tower(ids, mask),)

    names = ("input_ids", "attention_mask")
    return _export(_TextGraph(tower).eval(), Path(path), names, ("embedding",), inputs, truth, False, external_above)


def _export(
    graph: nn.Module,
    path: Path,
    names_in: tuple[str, ...],
    names_out: tuple[str, ...],
    inputs: Callable[[int], tuple[Tensor, ...]],
    truth: Callable[..., tuple[Tensor, ...]],
    fp16: bool,
    external_above: int,
) -> ExportReport:
    onnx = _import_onnx()
    dynamic = {name: {0: torch.export.Dim("batch")} for name in names_in}
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            graph,
            inputs(2),
            input_names=list(names_in),
            output_names=list(names_out),
            opset_version=_OPSET,
            dynamic_shapes=dynamic,
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    model = program.model_proto
    external = path.name + ".data" if model.ByteSize() > external_above else None
    if external:
        (path.parent / external).unlink(missing_ok=True)  # onnx appends to a file that is there
    onnx.save_model(
        model, str(path), save_as_external_data=external is not None, location=external, all_tensors_to_one_file=True
    )
    absolute, relative = _compare(path, names_in, inputs, truth)
    if (relative > FP16_TOLERANCE) if fp16 else (absolute > FP32_TOLERANCE):
        raise VidqaError(f"{path}: the exported graph differs from torch by {absolute:.2e} ({relative:.2e} relative)")
    return ExportReport(path, absolute, relative, len(model.graph.node), external, False)


def _compare(
    path: Path,
    names_in: tuple[str, ...],
    inputs: Callable[[int], tuple[Tensor, ...]],
    truth: Callable[..., tuple[Tensor, ...]],
) -> tuple[float, float]:
    """Largest absolute and relative difference between the file, run on the CPU, and torch."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    absolute = relative = 0.0
    for batch in _CHECK_BATCHES:
        values = inputs(batch)
        got = session.run(None, {n: v.numpy() for n, v in zip(names_in, values, strict=True)})
        with torch.no_grad():
            want = truth(*values)
        for ours, theirs in zip(got, want, strict=True):
            if ours.shape != tuple(theirs.shape):
                raise VidqaError(f"{path}: an output has shape {ours.shape}, torch gives {tuple(theirs.shape)}")
            error = float(np.abs(ours.astype(np.float32) - theirs.numpy()).max())
            error = math.inf if math.isnan(error) else error
            absolute = max(absolute, error)
            relative = max(relative, error / max(float(theirs.abs().max()), 1e-12))
    return absolute, relative


def _import_onnx():  # type: ignore[no-untyped-def]
    try:
        import onnx
        import onnxscript  # noqa: F401  torch.onnx.export needs it
    except ImportError as e:
        raise VidqaError(f"writing ONNX needs the package {e.name}", hint='pip install "vidqa[export]"') from e
    return onnx


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter and what it calls report every folded constant; none of that is a user's business."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
