"""Convert published weights into a bundle: the entry point for the command line and for `pull`."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from vidqa import __version__
from vidqa.common.display import display_path
from vidqa.common.extras import EXPORT_MODULES, require
from vidqa.conversion.detect import CheckpointParts, classify_all, find_layout
from vidqa.conversion.formats import valley, video_chatgpt, video_llava_hf, video_llava_original
from vidqa.conversion.lazy_tensors import total_bytes
from vidqa.conversion.output_options import OutputOptions
from vidqa.conversion.plan import ConversionPlan, Mode
from vidqa.conversion.write import Step, write_bundle
from vidqa.model.bundle.bundle import Bundle
from vidqa.model.bundle.spec import SourceSpec

#: Every layout; the first one that matches the parts is used.
LAYOUTS: tuple[ModuleType, ...] = (video_llava_hf, valley, video_chatgpt, video_llava_original)
#: Limits for the model card: its text comes from an untrusted source.
_CARD_CHARS, _LICENCE_CHARS = 65_536, 100


@dataclass(frozen=True)
class Conversion:
    """A finished conversion."""

    bundle: Bundle  # the new model; `bundle.folder` is its folder
    plan: ConversionPlan = field(repr=False)  # what each part was recognized as
    seconds: float  # that the conversion took
    peak_bytes: int | None  # peak memory of the process; None if the system does not report it


def plan(paths: Sequence[Path], mode: Mode = "fixed", towers: Sequence[Path] = ()) -> ConversionPlan:
    """Detect the parts and plan the conversion; no tensor is read.

    Args:
        paths: folders and files of weights, in any order.
        mode: as in `CompatSpec.mode`.
        towers: folders of towers that replace those inside a checkpoint.

    Raises:
        BundleError: a part cannot be read or is of an unknown kind, or the parts do not make a model.
    """
    ignored: list[str] = []
    parts = CheckpointParts(classify_all(paths, ignored.append), classify_all(towers, ignored.append), tuple(ignored))
    layout: Any = find_layout(parts, LAYOUTS)  # type: ignore[arg-type]  # modules stand for the protocol
    conversion: ConversionPlan = layout.make_plan(parts, mode)
    llm, generation = conversion.llm, conversion.generation
    return replace(
        conversion,
        ignored=(*conversion.ignored, *ignored),
        notes=(*conversion.notes, *llm.notes),
        generation=replace(generation, stop=tuple(dict.fromkeys((*generation.stop, *llm.stop)))),
    )


def convert(
    paths: Sequence[Path],
    output: OutputOptions,
    *,
    towers: Sequence[Path] = (),
    mode: Mode = "fixed",
    step: Step = lambda what, n: None,
    progress: Callable[[int], AbstractContextManager[None]] = lambda n_bytes: nullcontext(),
    origins: tuple[str, ...] | None = None,
) -> Conversion:
    """Convert published weights into a bundle.

    Args:
        paths: as in `plan`.
        output: folder, name and dtypes of the bundle.
        towers: as in `plan`.
        mode: as in `plan`.
        step: progress callback, as in `write_bundle`.
        progress: called with the bytes of all tensors; the bundle is written inside the context that it returns.
        origins: where `paths` and `towers` come from, for the record in the bundle; None: local folders and files.

    Raises:
        BundleError: as in `plan` and `write_bundle`.
        UsageError: the output folder exists, or contains one of the parts, or the extra `convert` is not installed.
        LockedError: another process is writing the same bundle.
    """
    start = time.perf_counter()
    require("converting models", "convert", *EXPORT_MODULES)
    output.check((*paths, *towers))
    conversion_plan = plan(paths, mode, towers)
    parts = [Path(path).resolve() for path in (*paths, *towers)]
    origins = tuple(f"local:{display_path(part.name)}" for part in parts) if origins is None else origins
    licences = tuple(stated_licence(part) for part in parts)
    source = SourceSpec(conversion_plan.layout, origins, __version__, licences if any(licences) else ())
    with progress(total_bytes(conversion_plan.tensors())):
        bundle = write_bundle(conversion_plan, output, source, step)
    return Conversion(bundle, conversion_plan, time.perf_counter() - start, peak_bytes())


def stated_licence(part: Path) -> str:
    """Return the licence that the model card of a published part states, or an empty string.

    Args:
        part: folder, or a file in it. The card is its `README.md`, whose first lines are YAML as the hub defines it.
    """
    card = (part if part.is_dir() else part.parent) / "README.md"
    try:
        text = card.read_text(encoding="utf-8", errors="replace")[:_CARD_CHARS]
    except OSError:
        return ""
    header = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text.replace("\r\n", "\n"), re.DOTALL)
    values = (
        dict(re.findall(r"^(license|license_name):[ \t]*(\S.*?)[ \t]*$", header[1], re.MULTILINE)) if header else {}
    )
    name = values.get("license", "")
    if name == "other":  # a licence of its own, such as that of LLaMA
        name = values.get("license_name", name)
    return display_path(name.strip("\"'")[:_LICENCE_CHARS])


def peak_bytes() -> int | None:
    """Return the peak memory of this process in bytes, mapped files included, or None if it is not reported."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
