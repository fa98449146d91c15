"""Plan LanguageBind's two towers as Video-LLaVA uses them, from inside a model or from their own folders.

Sources: LanguageBind 7070c53 (configuration_image.py), Video-LLaVA 984e65b (multimodal_encoder/builder.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vidqa.common.foreign_files import JsonSettings
from vidqa.conversion.detect import CheckpointParts
from vidqa.conversion.formats.clip_towers import (
    LANGUAGEBIND_IGNORED_KEYS,
    OTHER_FEATURES,
    assumed_publisher,
    publisher_of,
    text_plan,
    vision_config,
)
from vidqa.conversion.lazy_tensors import IGNORED_KEYS, LazyTensor, StateDict, add_prefix
from vidqa.conversion.plan import TextPlan, TowerPlan
from vidqa.conversion.sources import WeightSource
from vidqa.encoders.preprocess import PreprocessSpec
from vidqa.errors import BundleError
from vidqa.records import SamplingSpec

_ROLES = {"image": "vision", "video": "vision_temporal"}


@dataclass(frozen=True)
class TowerPlans:
    """Plans of both towers and of the text tower, with messages about keys and files that were not used."""

    image: TowerPlan
    video: TowerPlan
    text: TextPlan | None
    unexpected_keys: tuple[str, ...]
    ignored: tuple[str, ...]
    inside: tuple[str, ...]  # which of "image" and "video" come from the checkpoint itself
    notes: tuple[str, ...]


def find_towers(parts: CheckpointParts, state: StateDict, settings: JsonSettings) -> TowerPlans:
    """Plan the LanguageBind towers: those passed as separate parts, otherwise those inside a complete model.

    Args:
        parts: all parts of the conversion.
        state: keys of the model. Those of towers inside it are removed in either case.
        settings: the configuration with the `mm_` keys.

    Raises:
        BundleError: a tower is missing, or is not LanguageBind's.
    """
    own = {kind: state.pop_prefix(f"model.{kind}_tower.{kind}_tower.", f"model.{kind}_tower.") for kind in _ROLES}
    unexpected_keys: list[str] = []
    ignored: list[str] = []
    plans: dict[str, TowerPlan] = {}
    text: TextPlan | None = None
    inside: list[str] = []
    notes: tuple[str, ...] = ()
    for kind, role in _ROLES.items():
        source = parts.tower(role)
        if source is None and not own[kind]:
            raise BundleError(
                f"{state.source.path}: no {kind} tower inside, and none was passed",
                hint="add the folders of LanguageBind_Image and LanguageBind_Video_merge; "
                "for Video-ChatGPT, its projector file and CLIP ViT-L/14",
            )
        if source is None:
            inside.append(kind)
            tensors = add_prefix(own[kind], "vision_model.")
            hints = settings.section("vision_config")
            hints = (hints.section(f"{kind}_tower") or hints) if hints else None
            plans[kind] = tower_plan(kind, tensors, hints, settings)
            continue
        if own[kind]:
            ignored.append(f"{kind} tower of {state.source.path}: replaced by {source.path}")
        if kind == "image":
            notes = _check_publisher(source, settings)
        tower = StateDict(source, (*IGNORED_KEYS, *LANGUAGEBIND_IGNORED_KEYS))
        tensors = add_prefix(tower.pop_prefix("vision_model."), "vision_model.")
        tensors |= add_prefix(tower.pop_prefix("visual_projection."), "visual_projection.")
        found = text_plan(tower, source.config.section("text_config"), "gelu")
        if found and found.tokenizer is None:
            ignored.append(f"text tower of {source.path}: it has no tokenizer, so it cannot be used for search")
        elif found:
            text = text or found  # both repositories contain the same one
        plans[kind] = tower_plan(kind, tensors, source.config.section("vision_config"), settings)
        unexpected_keys += tower.unexpected_keys()
    return TowerPlans(
        plans["image"], plans["video"], text, tuple(unexpected_keys), tuple(ignored), tuple(inside), notes
    )


def _check_publisher(source: WeightSource, settings: JsonSettings) -> tuple[str, ...]:
    """Check that an image tower is LanguageBind's. Returns a note if that cannot be derived.

    The keys of the video tower are unique to LanguageBind, so it needs no check.

    Raises:
        BundleError: it is OpenAI's, and the model's configuration does not name such a tower.
    """
    owner = publisher_of(source)
    if owner == "LanguageBind" or str(settings.get("mm_image_tower")).startswith(("openai/", "laion/")):
        return ()
    if owner == "OpenAI":
        what = f"{source.path}: OpenAI's CLIP according to its config.json, not LanguageBind's image tower"
        raise BundleError(f"{what}; {OTHER_FEATURES}", hint="use the folder of LanguageBind_Image")
    return (assumed_publisher(source, "LanguageBind's image tower", "CLIP ViT-L/14"),)


def tower_plan(
    kind: str, tensors: Mapping[str, LazyTensor], hints: JsonSettings | None, settings: JsonSettings
) -> TowerPlan:
    """Plan one LanguageBind tower with the settings that Video-LLaVA uses."""
    config = vision_config(tensors, hints, "gelu")
    layer = settings.whole("mm_vision_select_layer", -2, -config.n_layers - 1, config.n_layers)
    if kind == "image":
        feature = settings.text("mm_vision_select_feature", "patch", ("patch", "cls_patch"))
        pad = settings.get("image_aspect_ratio") == "pad"
        return TowerPlan(
            config, tensors, layer, feature == "cls_patch", PreprocessSpec("original", config.image_size, pad=pad)
        )
    n_frames = config.temporal_length or 8
    return TowerPlan(
        config,
        tensors,
        layer,
        True,
        PreprocessSpec("original", config.image_size),
        n_frames,
        SamplingSpec("linspace", n_frames),
    )
