"""Paths of published weights -> bundle: the one way in for everybody who converts.

Knows the order of the steps. The list of layouts stands here; each layout knows its own names.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from vidqa.convert.detect import CheckpointPart, CheckpointParts, classify, find_layout
from vidqa.convert.formats import valley, video_chatgpt, video_llava_hf, video_llava_original
from vidqa.convert.output_options import OutputOptions
from vidqa.convert.plan import ConversionPlan, Mode
from vidqa.convert.sources import open_sources
from vidqa.convert.write import Step, write_bundle
from vidqa.model.bundle.bundle import Bundle

#: Every layout; the first that takes the parts is asked.
LAYOUTS: tuple[ModuleType, ...] = (video_llava_hf, valley, video_chatgpt, video_llava_original)


@dataclass(frozen=True)
class Conversion:
    """What was written, from what, and what it took."""

    bundle: Bundle
    recipe: ConversionPlan
    seconds: float
    peak_bytes: int | None  # of the whole process; None where the system does not tell


def plan(paths: Sequence[Path], mode: Mode = "fixed", towers: Sequence[Path] = ()) -> ConversionPlan:
    """Recognise the parts and make the plan; no tensor is read.

    Args:
        paths: folders and files of weights, in any order.
        mode: as `CompatSpec.mode`.
        towers: folders of towers that take the place of those inside a checkpoint.

    Raises:
        BundleError: a part cannot be read or is not known, or the parts make no model.
    """
    parts = CheckpointParts(_classify(paths), _classify(towers))
    layout: Any = find_layout(parts, LAYOUTS)  # type: ignore[arg-type]  # modules stand for the protocol
    recipe: ConversionPlan = layout.recipe(parts, mode)
    return recipe


def convert(
    paths: Sequence[Path],
    target: OutputOptions,
    *,
    towers: Sequence[Path] = (),
    mode: Mode = "fixed",
    step: Step = lambda what, n: None,
    origins: tuple[str, ...] = ("local",),
) -> Conversion:
    """Make a bundle of published weights.

    Args:
        paths, towers, mode: as in `plan`.
        target: where it goes, and in which form.
        step: progress, as in `write_bundle`.
        origins: where the parts come from.

    Raises:
        BundleError: as `plan` and `write_bundle`.
        UsageError: the target is taken or holds a part.
        LockedError: another process is writing the same target.
    """
    start = time.perf_counter()
    target.check((*paths, *towers))
    recipe = plan(paths, mode, towers)
    bundle = write_bundle(recipe, target, origins, step)
    return Conversion(bundle, recipe, time.perf_counter() - start, peak_bytes())


def peak_bytes() -> int | None:
    """Largest memory of this process so far, mapped files included; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _classify(paths: Sequence[Path]) -> tuple[CheckpointPart, ...]:
    return tuple(classify(source) for path in paths for source in open_sources(path))
