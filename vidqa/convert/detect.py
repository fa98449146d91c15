"""What a set of weights is, told from its keys and its config.json alone; and which layout a collection of sets makes.

Names of folders and repositories play no part. Each layout module says for itself which collections it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vidqa.convert.plan import ConversionPlan, Mode
from vidqa.convert.sources import WeightSource
from vidqa.errors import BundleError

#: Kind of a set of weights -> (words for a message, test). The first that fits counts.
KINDS: dict[str, tuple[str, Callable[[WeightSource], bool]]] = {
    "lora": ("a LoRA adapter", lambda s: s.has(r".*\.lora_A\.")),
    "video_llava_hf": (
        "Video-LLaVA in the form of transformers",
        lambda s: s.has(r"(model\.)?multi_modal_projector\.") and s.has(r"(model\.)?video_tower\."),
    ),
    "llava": (
        "an LLM with a projector",
        lambda s: (
            s.has(r"model\.layers\.0\.") and (s.has(r"model\.(mm_projector|image_tower|video_tower)\.") or _mm(s))
        ),
    ),
    "projector": ("a projector", lambda s: s.has(r"(base_model\.model\.)?(model\.)?mm_projector\.")),
    "llm": ("a language model", lambda s: s.has(r"model\.layers\.0\.")),
    "vision_temporal": (
        "a video tower",
        lambda s: s.has(r"vision_model\.encoder\.layers\.0\.temporal_attn\."),
    ),
    "vision": ("an image tower", lambda s: s.has(r"vision_model\.encoder\.layers\.0\.")),
}
#: Kinds that may take the place of what is inside a checkpoint.
TOWERS = frozenset({"vision", "vision_temporal"})


def _mm(source: WeightSource) -> bool:
    """A LLaVA without weights of its own between tower and LLM (projector `identity`)."""
    return "mm_projector_type" in source.config and bool(source.config.get("mm_hidden_size"))


@dataclass(frozen=True)
class CheckpointPart:
    """One set of weights and its kind."""

    kind: str
    source: WeightSource


@dataclass(frozen=True)
class CheckpointParts:
    """All that the user gave. `towers` were asked for by name, in place of those inside a checkpoint."""

    all: tuple[CheckpointPart, ...]
    towers: tuple[CheckpointPart, ...] = field(default=())

    @property
    def kinds(self) -> frozenset[str]:
        """Kinds of the parts, towers not counted."""
        return frozenset(p.kind for p in self.all)

    def one(self, kind: str) -> WeightSource | None:
        """The part of a kind; None where there is none."""
        found = [p.source for p in self.all if p.kind == kind]
        return found[0] if found else None

    def tower(self, kind: str) -> WeightSource | None:
        """A tower of a kind, those asked for by name first."""
        found = [p.source for p in (*self.towers, *self.all) if p.kind == kind]
        return found[0] if found else None


class Layout(Protocol):
    """A module that knows one publication."""

    NAME: str

    @staticmethod
    def takes(parts: CheckpointParts) -> bool:
        """Whether the kinds of the parts make this layout."""
        ...

    @staticmethod
    def recipe(parts: CheckpointParts, mode: Mode) -> ConversionPlan:
        """The plan; BundleError where something is missing or contradicts itself."""
        ...


def classify(source: WeightSource) -> CheckpointPart:
    """What a set of weights is.

    Raises:
        BundleError: nothing that is known; the first keys are named.
    """
    for kind, (_, fits) in KINDS.items():
        if fits(source):
            return CheckpointPart(kind, source)
    some = ", ".join(list(source.tensors)[:3]) or "none"
    raise BundleError(f"{source.place}: not the weights of a known kind (keys: {some} ...)")


def find_layout(parts: CheckpointParts, layouts: Sequence[Layout]) -> Layout:
    """The layout that a collection of parts makes.

    Raises:
        BundleError: two parts of one kind, something else in the place of a tower, or no layout takes this collection.
    """
    for part in parts.towers:
        if part.kind not in TOWERS:
            raise BundleError(
                f"{part.source.place}: {KINDS[part.kind][0]}, not a tower",
                hint="give it among the parts",
            )
    # One among the parts and one asked for by name are two as well: neither was inside a checkpoint.
    both = (*parts.all, *parts.towers)
    for kind in dict.fromkeys(p.kind for p in both):
        same = [p.source.place for p in both if p.kind == kind]
        if len(same) > 1:
            raise BundleError(f"{KINDS[kind][0]} is there {len(same)} times: {', '.join(map(str, same))}")
    for layout in layouts:
        if layout.takes(parts):
            return layout
    said = "; ".join(f"{p.source.place}: {KINDS[p.kind][0]}" for p in (*parts.all, *parts.towers))
    raise BundleError(
        f"these parts make no model that is known ({said})",
        hint="add what is missing: docs/models.md lists what each published model is made of",
    )
