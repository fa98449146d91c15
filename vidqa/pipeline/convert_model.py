"""`convert`: published weights -> a model folder that `load_model` opens."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vidqa.errors import UsageError
from vidqa.media.files import Paths, as_path_list
from vidqa.pipeline.monitor.reporter import QUIET, Reporter
from vidqa.records import type_name

if TYPE_CHECKING:  # imports torch
    from vidqa.conversion.convert import Conversion


def convert(
    parts: Paths,
    out: str | Path,
    *,
    towers: Paths = (),
    name: str | None = None,
    dtype: Literal["keep", "float32", "float16", "bfloat16"] = "keep",
    encoders: Literal["float32", "float16"] = "float32",
    compat: Literal["fixed", "original"] = "fixed",
    replace: bool = False,
    reporter: Reporter = QUIET,
) -> Conversion:
    """Convert published weights into a model folder. Nothing is downloaded.

    The parts are recognized by their content: a complete checkpoint, or a language model, encoder towers, a projector,
    a LoRA adapter. If a weight is missing or unknown, nothing is written.

    Args:
        parts: folders and files of weights, in any order.
        out: folder of the new model.
        towers: folders of encoder towers that replace those of the checkpoint.
        name: of the model; None for the name of `out`.
        dtype: of the language model and the connector; `keep` for that of the checkpoint.
        encoders: data type of the image and video encoder.
        compat: `fixed` corrects mistakes of the published code, `original` reproduces them.
        replace: replace an existing model in `out`.
        reporter: receives progress and messages.

    Returns:
        The new model in `bundle`, and how the parts were interpreted in `plan`.

    Raises:
        TypeError: a path has the wrong type.
        UsageError: `out` exists or contains one of the parts, a value is unknown, or the extra `convert` is not
            installed.
        BundleError: a part cannot be read or is of an unknown kind, or the parts do not make a model.
        LockedError: another process is writing the same model.
    """
    if not isinstance(out, str | os.PathLike):
        raise TypeError(f"out must be a path, not {type_name(out)}")
    if compat not in ("fixed", "original"):
        raise UsageError(f"compat must be 'fixed' or 'original', not {compat!r}")
    from vidqa.conversion.convert import convert as convert_parts
    from vidqa.conversion.output_options import OutputOptions

    def on_written(what: str, n_bytes: int) -> None:
        reporter.advance(n_bytes)
        reporter.message(f"wrote {what}", level=2)

    return convert_parts(
        [Path(part) for part in as_path_list(parts, "parts")],
        OutputOptions(Path(out), name, dtype, replace, encoders),
        towers=[Path(tower) for tower in as_path_list(towers, "towers")],
        mode=compat,
        step=on_written,
        progress=lambda n_bytes: reporter.progress(n_bytes, "B", phase="convert"),
    )
