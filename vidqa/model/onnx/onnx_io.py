"""Writing ONNX: a module that exports cleanly -> a file; a file -> the same, fused; large weights beside it.

Matrices leave torch for the file `<name>.data` one at a time, and the graph is rewritten without them: protobuf keeps
every copy that an optimizer makes, which for a tower of 1.6 GB came to 12 GB. Knows torch's exporter, onnxruntime's
transformer optimizer and where large weights go. Does not know towers. The packages are imported when they are needed;
`onnx` and `onnxscript` come with the `export` extra.
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

from vidqa.errors import VidqaError

_OPSET = 18
#: Smaller ones are shapes and the like, which optimizers look at.
_SMALL_BYTES = 1024


def write_graph(
    graph: nn.Module, path: Path, example: tuple[Tensor, ...], names_in: Sequence[str], names_out: Sequence[str]
) -> None:
    """Trace `graph` and write it, its matrices beside it; the first axis of every input is dynamic.

    Args:
        graph: in eval mode.
        path: the file to write, and `<name>.data` beside it.
        example: inputs with a batch of two or more (a batch of one would be frozen into the graph).
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
    assert program is not None  # torch gives None only when it writes the file itself
    _unload(program.model, path)
    _save(program.model_proto, path)
    del program
    gc.collect()  # traces hold their weights in circles: those of one tower would still be there for the next


def _unload(model: Any, path: Path) -> None:
    """Move the matrices of an exported model into the file beside `path`.

    Vectors stay, and tables that are added to something: optimizers look at them.
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
    """Put the weights of a written graph into its own file, unless they take more than `external_above` bytes.

    Returns:
        Name of the file beside the graph; None where there is none (any more).
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
    """Write a model as it is: weights that lie beside it stay there."""
    _forget_origin(model)
    path.write_bytes(model.SerializeToString())


def _forget_origin(model: Any) -> None:
    """Drop the stack traces that the exporter hangs on every node: paths of the machine, a third of a small file."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        if hasattr(part, "metadata_props"):  # onnx before 1.16 has none
            del part.metadata_props[:]
        part.doc_string = ""


def fuse_graph(path: Path, n_heads: int, width: int) -> None:
    """Rewrite a graph with the fused operators of onnxruntime; what does not match a pattern stays as it is.

    Args:
        path: the file, which is replaced; what lies beside it is not looked at.
        n_heads: heads of its attentions.
        width: D.
    """
    onnx = import_extra("onnx")
    model = onnx.load(str(path), load_external_data=False)
    # As inputs the matrices have a type and a shape, which is all that is asked of them.
    beside = {t.name: copy.deepcopy(t) for t in model.graph.initializer if t.external_data}
    _drop(model.graph.initializer, beside)
    for t in beside.values():
        model.graph.input.append(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims))
    options = import_extra("onnxruntime.transformers.fusion_options").FusionOptions("vit")
    with _quiet():
        # Patterns only: onnxruntime's own rewriting waits until a session knows the machine it runs on.
        fused = import_extra("onnxruntime.transformers.optimizer").optimize_by_fusion(
            model, model_type="vit", num_heads=n_heads, hidden_size=width, optimization_options=options
        )
        fused.topological_sort()
    _drop(fused.model.graph.input, beside)
    fused.model.graph.initializer.extend(beside.values())
    _save(fused.model, path)


def _drop(field: Any, names: Collection[str]) -> None:
    """Take messages out of a repeated field of protobuf."""
    for i in reversed(range(len(field))):
        if field[i].name in names:
            del field[i]


def import_extra(name: str) -> Any:
    """A package that only exporting needs.

    Raises:
        VidqaError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise VidqaError(f"writing ONNX needs the package {e.name}", hint='pip install "vidqa[export]"') from e


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter and the optimizer report every folded constant; none of that is a user's business."""
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
