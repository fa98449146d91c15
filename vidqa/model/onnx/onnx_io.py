"""Writing ONNX: module -> file, file -> fused file, and external data.

Weight matrices move from torch to the file `<name>.data` one at a time, and the graph is rewritten without them:
protobuf keeps every copy that an optimizer makes, which for a tower of 1.6 GB added up to 12 GB. The ONNX packages are
imported when needed; `onnx` and `onnxscript` come with the `export` extra.
"""

from __future__ import annotations

import copy
import gc
import importlib
import logging
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidqa.common.extras import install_hint, missing_package
from vidqa.errors import UsageError

_OPSET = 18
#: Smaller tensors are shapes and the like, which optimizers read.
_SMALL_BYTES = 1024


def write_graph(
    graph: nn.Module, path: Path, example: tuple[Tensor, ...], names_in: Sequence[str], names_out: Sequence[str]
) -> None:
    """Trace `graph` and write it, its matrices as external data; the first axis of every input is dynamic.

    Args:
        graph: the module, in evaluation mode.
        path: the file to write; its matrices go to `<name>.data` next to it.
        example: inputs with a batch size of two or more (a batch size of one would become a constant in the graph).
        names_in: names of the inputs, in order.
        names_out: names of the outputs, in order.
    """
    import_extra("onnxscript")
    dynamic = {name: {0: torch.export.Dim("batch")} for name in names_in}
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            graph,
            example,
            input_names=list(names_in),
            output_names=list(names_out),
            opset_version=_OPSET,
            dynamic_shapes=dynamic,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # torch returns None only when it writes the file itself
    _externalize_matrices(program.model, path)
    _save(program.model_proto, path)
    del program
    gc.collect()  # traces keep weights in reference cycles, which would still be alive during the next export


def _externalize_matrices(model: Any, path: Path) -> None:
    """Move the matrices of an exported model to the external data file of `path`.

    Vectors, and tables that are added to something, stay: optimizers read them.
    """
    external = import_extra("onnx_ir.external_data")
    large = [
        value
        for value in model.graph.initializers.values()
        if len(value.shape) > 1
        and value.const_value.nbytes > _SMALL_BYTES
        and all(node.op_type != "Add" for node, _ in value.uses())
    ]
    moved = external.convert_tensors_to_external([v.const_value for v in large], path.parent, _data_of(path).name)
    for value, tensor in zip(large, moved, strict=True):
        value.const_value = tensor


def gather_weights(path: Path, external_above: int) -> str | None:
    """Move the external data of a graph into the ONNX file, unless it takes more than `external_above` bytes.

    Returns:
        Name of the external data file; None if all weights are in the ONNX file now.
    """
    data = _data_of(path)
    if data.exists() and data.stat().st_size > external_above:
        data.chmod(path.stat().st_mode)
        return data.name
    onnx = import_extra("onnx")
    onnx.save_model(onnx.load(str(path)), str(path))
    data.unlink(missing_ok=True)
    return None


def _data_of(path: Path) -> Path:
    return path.with_name(path.name + ".data")


def _save(model: Any, path: Path) -> None:
    """Write a model; external data stays external."""
    _drop_stack_traces(model)
    path.write_bytes(model.SerializeToString())


def _drop_stack_traces(model: Any) -> None:
    """Drop the stack traces of the exporter from every node: they contain paths and are a third of a small file."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        if hasattr(part, "metadata_props"):  # onnx before 1.16 has none
            del part.metadata_props[:]
        part.doc_string = ""


def fuse_graph(path: Path, n_heads: int, width: int) -> None:
    """Rewrite a graph with the fused operators of onnxruntime; what does not match a pattern is unchanged.

    Args:
        path: the file, which is replaced; external data is not read.
        n_heads: number of attention heads.
        width: hidden size of the tower.
    """
    onnx = import_extra("onnx")
    model = onnx.load(str(path), load_external_data=False)
    # Declared as inputs, the matrices have a type and a shape, which is all that the optimizer needs.
    matrices = {t.name: copy.deepcopy(t) for t in model.graph.initializer if t.external_data}
    _drop(model.graph.initializer, matrices)
    for t in matrices.values():
        model.graph.input.append(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims))
    options = import_extra("onnxruntime.transformers.fusion_options").FusionOptions("vit")
    with _quiet():
        # Patterns only: onnxruntime optimizes for a machine when a session is created there.
        fused = import_extra("onnxruntime.transformers.optimizer").optimize_by_fusion(
            model, model_type="vit", num_heads=n_heads, hidden_size=width, optimization_options=options
        )
        fused.topological_sort()
    _drop(fused.model.graph.input, matrices)
    fused.model.graph.initializer.extend(matrices.values())
    _save(fused.model, path)


def _drop(field: Any, names: Collection[str]) -> None:
    """Remove messages from a repeated protobuf field."""
    for i in reversed(range(len(field))):
        if field[i].name in names:
            del field[i]


def import_extra(name: str) -> Any:
    """Import a package that only the export needs.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise UsageError(missing_package("writing ONNX", str(e.name)), hint=install_hint("export")) from e


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the logs of exporter and optimizer, which would report every folded constant."""
    names = ("torch.onnx", "onnx_ir", "onnxscript", "onnxruntime.transformers", "fusion_base", "onnx_model")
    loggers = [logging.getLogger(name) for name in names]
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
