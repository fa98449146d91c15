"""Detect what a set of weights is, from its keys and config.json alone, and which published layout the sets form.

Names of folders and repositories are not used. Each module in formats/ decides which parts it matches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vidqa.convert.plan import ConversionPlan, Mode
from vidqa.convert.sources import WeightSource
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
    """All sets of weights of a conversion. `towers` replace those inside a checkpoint (option --towers)."""

    all: tuple[CheckpointPart, ...]
    towers: tuple[CheckpointPart, ...] = field(default=())

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


def classify(source: WeightSource) -> CheckpointPart:
    """Detect the kind of a set of weights.

    Raises:
        BundleError: the kind is unknown; the message has the first keys.
    """
    for kind, (_, matches) in KINDS.items():
        if matches(source):
            return CheckpointPart(kind, source)
    some = ", ".join(list(source.tensors)[:3]) or "none"
    raise BundleError(f"{source.path}: unknown kind of weights (keys: {some} ...)")


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
        same = [p.source.path for p in both if p.kind == kind]
        if len(same) > 1:
            raise BundleError(f"{KINDS[kind][0]} was given {len(same)} times: {', '.join(map(str, same))}")
    for layout in layouts:
        if layout.matches(parts):
            return layout
    given = "; ".join(f"{p.source.path}: {KINDS[p.kind][0]}" for p in (*parts.all, *parts.towers))
    raise BundleError(
        f"these parts do not make a supported model ({given})",
        hint="add the missing parts: docs/models.md lists the parts of each published model",
    )
