"""An exported vision graph -> the weights of its tower, under the names of CLIP's code.

Fused graphs keep the names of biases and norms. A matrix is identified by the bias that is added after it, and a packed
Q, K, V matrix by the layer that it feeds. Position and class embeddings are stored as their sum, which is how they are
used, so the class embedding is returned as zero. The caller has to compare the result with the graph.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidqa.errors import VidqaError
from vidqa.model.onnx.onnx_io import import_extra

_TOWER = "tower."
_LAYER = "vision_model.encoder.layers."


@dataclass(frozen=True)
class GraphWeights:
    """Weights and settings of a graph."""

    tensors: dict[str, Tensor]  # float32, by CLIP's names: `vision_model....`
    n_heads: int
    hidden_act: str
    layer_norm_eps: float


def read_graph(path: Path) -> GraphWeights:
    """Read the weights of a graph that `export_tower` wrote.

    Raises:
        VidqaError: the `export` extra is not installed, the tower has temporal attention, or another exporter wrote the
            graph.
    """
    onnx = import_extra("onnx")
    to_array = importlib.import_module("onnx.numpy_helper").to_array
    graph = onnx.load(str(path)).graph
    arrays: dict[str, Any] = {i.name: to_array(i).astype(np.float32) for i in graph.initializer}
    if any("temporal" in name for name in arrays):
        raise VidqaError(
            f"{path.name}: this encoder has temporal attention, which transformers' VideoLlava does not support"
        )
    found = {n.removeprefix(_TOWER): a for n, a in arrays.items() if n.startswith(_TOWER)}
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            if (bias := _bias_after(node, users, arrays)) is not None:
                found[bias.removesuffix("bias") + "weight"] = arrays[node.input[1]].T
        elif node.op_type == "Attention":
            _unpack(node, users, arrays, found)
        elif node.op_type == "Add" and any("pre_layrnorm" in n for u in users[node.output[0]] for n in u.input):
            found |= _embeddings(next(arrays[n] for n in node.input if n in arrays))
    kept = {n: a for n, a in found.items() if n.startswith("vision_model.")}
    ops = {node.op_type for node in graph.node}
    return GraphWeights(
        {n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in kept.items()},
        int(_attribute(graph, ("Attention", "MultiHeadAttention"), "num_heads")),
        "quick_gelu" if ops & {"QuickGelu", "Sigmoid"} else "gelu",
        float(_attribute(graph, ("LayerNormalization",), "epsilon")),
    )


def _bias_after(node: Any, users: dict[str, list[Any]], arrays: dict[str, Any]) -> str | None:
    """Return the name of the bias that is added to the result of a matmul; None if there is none."""
    for user in users.get(node.output[0], []):
        names = user.input[4:] if user.op_type == "SkipLayerNormalization" else user.input
        for name in names:
            if name in arrays and name.startswith(_TOWER) and name.endswith(".bias"):
                return str(name.removeprefix(_TOWER))
    return None


def _unpack(node: Any, users: dict[str, list[Any]], arrays: dict[str, Any], found: dict[str, Any]) -> None:
    """Split a packed Q, K, V projection."""
    out = next(u for u in users[node.output[0]] if u.op_type == "MatMul")
    bias = _bias_after(out, users, arrays)
    if bias is None or not bias.startswith(_LAYER):
        raise VidqaError("an attention of the graph does not belong to a layer")
    prefix = bias.removesuffix("out_proj.bias")
    weights = np.split(arrays[node.input[1]], 3, axis=1)
    biases = np.split(arrays[node.input[2]], 3)
    for name, weight, one in zip(("q_proj", "k_proj", "v_proj"), weights, biases, strict=True):
        found[f"{prefix}{name}.weight"], found[f"{prefix}{name}.bias"] = weight.T, one


def _embeddings(summed: Any) -> dict[str, Any]:
    """Return position embeddings, whose first row includes the class embedding, and a class embedding of zeros."""
    summed = summed.reshape(summed.shape[-2:])
    return {
        "vision_model.embeddings.position_embedding.weight": summed,
        "vision_model.embeddings.class_embedding": np.zeros(summed.shape[1], np.float32),
    }


def _attribute(graph: Any, kinds: tuple[str, ...], name: str) -> float:
    for node in graph.node:
        if node.op_type in kinds:
            for attribute in node.attribute:
                if attribute.name == name:
                    return float(attribute.f or attribute.i)
    raise VidqaError(f"the graph has no {' or '.join(kinds)} with {name}: it was not written by vidqa's exporter")
