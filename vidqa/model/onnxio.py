"""Writing ONNX: a module that exports cleanly -> a file; a file -> the same, fused.

Knows torch's exporter, onnxruntime's transformer optimizer and where large weights go. Does not know towers. The
packages are imported when they are needed; `onnx` and `onnxscript` come with the `export` extra.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidqa.errors import VidqaError

_OPSET = 18


def write_graph(
    graph: nn.Module,
    path: Path,
    example: tuple[Tensor, ...],
    names_in: Sequence[str],
    names_out: Sequence[str],
    external_above: int,
) -> None:
    """Trace `graph` and write it; the first axis of every input is dynamic.

    Args:
        graph: in eval mode.
        path: the file to write, and `<name>.data` beside it when the weights take more than `external_above` bytes.
        example: inputs with a batch of two or more (a batch of one would be frozen into the graph).
        names_in: names of the inputs, in order.
        names_out: names of the outputs, in order.
        external_above: bytes.
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
    _save(program.model_proto, path, external_above)


def _save(model: Any, path: Path, external_above: int) -> None:
    """Write a model in one file, or with its weights in `<name>.data` when they are large."""
    _forget_origin(model)
    data = path.with_name(path.name + ".data")
    data.unlink(missing_ok=True)  # onnx appends to a file that is there
    size = sum(len(t.raw_data) for t in model.graph.initializer)
    onnx = import_extra("onnx")
    if size > external_above:
        onnx.save_model(model, str(path), save_as_external_data=True, location=data.name)
        data.chmod(path.stat().st_mode)
    else:
        onnx.save_model(model, str(path))


def _forget_origin(model: Any) -> None:
    """Drop the stack traces that the exporter hangs on every node: paths of the machine, a third of a small file."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        if hasattr(part, "metadata_props"):  # onnx before 1.16 has none
            del part.metadata_props[:]
        part.doc_string = ""


def fuse_graph(path: Path, n_heads: int, width: int, external_above: int) -> None:
    """Rewrite a graph with the fused operators of onnxruntime; what does not match a pattern stays as it is.

    Args:
        path: the file, which is replaced.
        n_heads: heads of its attentions.
        width: D.
        external_above: as in `write_graph`.
    """
    options = import_extra("onnxruntime.transformers.fusion_options").FusionOptions("vit")
    with _quiet():
        fused = import_extra("onnxruntime.transformers.optimizer").optimize_model(
            str(path),
            model_type="vit",
            num_heads=n_heads,
            hidden_size=width,
            optimization_options=options,
            opt_level=0,  # the session does the rest, for the machine it runs on
        )
        fused.topological_sort()
    _save(fused.model, path, external_above)


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
