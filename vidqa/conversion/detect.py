"""Detect what a set of weights is, from its keys and config.json alone, and which published layout the sets form.

Names of folders and repositories are not used. Each module in formats/ decides which parts it matches.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vidqa.conversion.folders import has_model_name, listed, open_sources
from vidqa.conversion.plan import ConversionPlan, Mode
from vidqa.conversion.sources import WeightSource
from vidqa.errors import BundleError

#: Kind of a set of weights -> (name for messages, test). The first kind whose test passes is used.
KINDS: dict[str, tuple[str, Callable[[WeightSource], bool]]] = {
    "lora": ("a LoRA adapter", lambda s: s.has_key(r".*\.lora_A\.")),
    "video_llava_hf": (
        "a Video-LLaVA checkpoint of transformers",
        lambda s: s.has_key(r"(model\.)?multi_modal_projector\.") and s.has_key(r"(model\.)?video_tower\."),
    ),
    "llava": (
        "an LLM with a projector",
        lambda s: (
            s.has_key(r"model\.layers\.0\.")
            and (s.has_key(r"model\.(mm_projector|image_tower|video_tower)\.") or _has_identity_projector(s))
        ),
    ),
    "projector": ("a projector", lambda s: s.has_key(r"(base_model\.model\.)?(model\.)?mm_projector\.")),
    "llm": ("a language model", lambda s: s.has_key(r"model\.layers\.0\.")),
    "vision_temporal": (
        "a video tower",
        lambda s: s.has_key(r"vision_model\.encoder\.layers\.0\.temporal_attn\."),
    ),
    "vision": ("an image tower", lambda s: s.has_key(r"vision_model\.encoder\.layers\.0\.")),
}
#: Kinds that may replace what is inside a checkpoint.
TOWERS = frozenset({"vision", "vision_temporal"})


def _has_identity_projector(source: WeightSource) -> bool:
    """Return whether a source is a LLaVA model whose projector is `identity` and therefore has no weights."""
    return "mm_projector_type" in source.config and bool(source.config.get("mm_hidden_size"))


@dataclass(frozen=True)
class CheckpointPart:
    """One set of weights with its kind."""

    kind: str
    source: WeightSource


@dataclass(frozen=True)
class CheckpointParts:
    """All sets of weights of a conversion.

    `towers` replace those inside a checkpoint (option --towers). `ignored` has notes about files that are not used.
    """

    all: tuple[CheckpointPart, ...]
    towers: tuple[CheckpointPart, ...] = field(default=())
    ignored: tuple[str, ...] = field(default=())

    @property
    def kinds(self) -> frozenset[str]:
        """Kinds of the parts, without `towers`."""
        return frozenset(p.kind for p in self.all)

    def get(self, kind: str) -> WeightSource | None:
        """Return the part of a kind, or None."""
        found = [p.source for p in self.all if p.kind == kind]
        return found[0] if found else None

    def tower(self, kind: str) -> WeightSource | None:
        """Return a tower of a kind, or None; `towers` have priority."""
        found = [p.source for p in (*self.towers, *self.all) if p.kind == kind]
        return found[0] if found else None


class Layout(Protocol):
    """A module of formats/: one published layout."""

    NAME: str

    @staticmethod
    def matches(parts: CheckpointParts) -> bool:
        """Return whether the parts are of this layout."""
        ...

    @staticmethod
    def make_plan(parts: CheckpointParts, mode: Mode) -> ConversionPlan:
        """Plan the conversion; raise BundleError if something is missing or inconsistent."""
        ...


Report = Callable[[str], None]
"""Receives a note about files that are not used."""


def classify_all(paths: Sequence[Path], report: Report) -> tuple[CheckpointPart, ...]:
    """Detect the parts in files and folders.

    A file that is passed on its own is not taken from its folder again, and a projector that is passed on its own
    replaces those in folders with other parts.

    Args:
        paths: the files and folders.
        report: receives notes about files that are not used.

    Raises:
        BundleError: as in `classify`.
    """
    distinct = {path.resolve(): path for path in paths}
    found = [classify(path, report, distinct) for path in distinct.values()]
    apart = next((p for parts in found for p in parts if p.kind == "projector" and p.source.path.is_file()), None)
    kept = []
    for part, n_parts in ((part, len(parts)) for parts in found for part in parts):
        if apart and part.kind == "projector" and n_parts > 1:
            report(f"{part.source.label}: replaced by {apart.source.label}")
        else:
            kept.append(part)
    return tuple(kept)


def classify(path: Path, report: Report, apart: Collection[Path] = ()) -> list[CheckpointPart]:
    """Detect the kinds of all sets of weights in a file or folder.

    Args:
        path: the file or folder.
        report: receives the notes.
        apart: as in `open_sources`.

    Raises:
        BundleError: as in `open_sources`, or the kind of a set is unknown; the message has the first keys.
    """
    content = open_sources(path, apart)
    not_model = list(content.not_model)
    parts: list[CheckpointPart] = []
    unknown: list[WeightSource] = []
    for source in content.sources:
        kind = next((kind for kind, (_, matches) in KINDS.items() if matches(source)), None)
        if kind:
            parts.append(CheckpointPart(kind, source))
        else:
            unknown.append(source)
    for source in unknown:
        if not parts or has_model_name(source.files[0]):
            some = ", ".join(list(source.tensors)[:3]) or "none"
            raise BundleError(f"{source.label}: unknown kind of weights (keys: {some} ...)")
        not_model.append(source.files[0].name)
    if not_model:
        report(f"{path}: not part of the model: {listed(not_model)}")
    if content.duplicates:
        report(f"{path}: the same weights exist in another file; not used: {listed(content.duplicates)}")
    return _without_older_projectors(parts, report)


def _without_older_projectors(parts: Sequence[CheckpointPart], report: Report) -> list[CheckpointPart]:
    """Drop the projector of an earlier stage: in a folder, the one inside the model or next to the adapter counts.

    A projector file with an embedding table is no earlier stage but half of a model (Video-ChatGPT).
    """
    kinds = {p.kind for p in parts}
    projectors = [p for p in parts if p.kind == "projector"]
    if kinds & {"llava", "video_llava_hf"}:
        model = next(p.source for p in parts if p.kind in ("llava", "video_llava_hf"))
        complete = model.has_key(r"(model\.)?(image|video)_tower\.")
        dropped = [p for p in projectors if complete or not p.source.has_key(r"(model\.)?embed_tokens\.weight")]
        owner = "the model"
    elif "lora" in kinds and len(projectors) > 1 and any(_has_adapter_keys(p) for p in projectors):
        dropped, owner = [p for p in projectors if not _has_adapter_keys(p)], "the adapter"
    else:
        return list(parts)
    for part in dropped:
        report(f"{part.source.label}: not used, since {owner} in this folder has a projector of its own")
    return [p for p in parts if p not in dropped]


def _has_adapter_keys(part: CheckpointPart) -> bool:
    """Return whether a projector was saved together with an adapter, from inside peft's model."""
    return part.source.has_key(r"base_model\.model\.")


def find_layout(parts: CheckpointParts, layouts: Sequence[Layout]) -> Layout:
    """Return the layout that the parts form.

    Raises:
        BundleError: two parts are of the same kind, one of `towers` is not a tower, or no layout matches.
    """
    for part in parts.towers:
        if part.kind not in TOWERS:
            raise BundleError(
                f"{part.source.path}: {KINDS[part.kind][0]}, not a tower",
                hint="pass it as a part, without --towers",
            )
    # A tower among the parts and one of `towers` conflict too: neither is inside a checkpoint.
    both = (*parts.all, *parts.towers)
    for kind in dict.fromkeys(p.kind for p in both):
        same = [p.source for p in both if p.kind == kind]
        if len(same) > 1:
            in_one_folder = len({s.path for s in same}) < len(same)
            names = ", ".join(s.label if in_one_folder else str(s.path) for s in same)
            raise BundleError(f"{KINDS[kind][0]} was given {len(same)} times: {names}")
    for layout in layouts:
        if layout.matches(parts):
            return layout
    found: dict[Path, list[str]] = {}
    for part in both:
        found.setdefault(part.source.path, []).append(KINDS[part.kind][0])
    given = "; ".join(f"{path}: {' and '.join(names)}" for path, names in found.items())
    raise BundleError(
        "\n".join([f"these parts do not make a supported model ({given})", *parts.ignored]),
        hint="add the missing parts: docs/models.md lists the parts of each published model",
    )
