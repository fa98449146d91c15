"""LanguageBind's two towers, inside a model or from their own folders -> plans, as Video-LLaVA uses them.

Facts: LanguageBind 7070c53 (configuration_image.py), Video-LLaVA 984e65b (multimodal_encoder/builder.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vidqa.convert.detect import CheckpointParts
from vidqa.convert.formats.clip_towers import (
    LANGUAGEBIND_HARMLESS,
    OTHER_FEATURES,
    taken_for,
    text_plan,
    vision_config,
    whose,
)
from vidqa.convert.lazy_tensors import HARMLESS, Claim, LazyTensor, below
from vidqa.convert.plan import TextPlan, TowerPlan
from vidqa.convert.sources import WeightSource
from vidqa.encoders.preprocess import PreprocessSpec
from vidqa.errors import BundleError
from vidqa.records import SamplingSpec

_ROLES = {"image": "vision", "video": "vision_temporal"}


@dataclass(frozen=True)
class Towers:
    """Both towers as plans, and what became of the keys beside them."""

    image: TowerPlan
    video: TowerPlan
    text: TextPlan | None
    surplus: tuple[str, ...]
    left_out: tuple[str, ...]
    inside: tuple[str, ...]  # which of "image" and "video" were taken from the checkpoint itself
    notes: tuple[str, ...]


def find_towers(parts: CheckpointParts, claim: Claim, settings: Mapping[str, Any]) -> Towers:
    """LanguageBind towers: given as parts of their own, else those inside a whole model.

    Args:
        parts: all that was given.
        claim: of the model; tower keys inside are taken either way.
        settings: configuration with the `mm_` keys.

    Raises:
        BundleError: a tower is missing, or is not LanguageBind's.
    """
    own = {kind: claim.take(f"model.{kind}_tower.{kind}_tower.", f"model.{kind}_tower.") for kind in _ROLES}
    surplus: list[str] = []
    left_out: list[str] = []
    plans: dict[str, TowerPlan] = {}
    text: TextPlan | None = None
    inside: list[str] = []
    notes: tuple[str, ...] = ()
    for kind, role in _ROLES.items():
        source = parts.tower(role)
        if source is None and not own[kind]:
            raise BundleError(
                f"{claim.source.place}: no {kind} tower inside, and none was given",
                hint="add the folders of LanguageBind_Image and LanguageBind_Video_merge; "
                "for Video-ChatGPT its small .bin and CLIP ViT-L/14",
            )
        if source is None:
            inside.append(kind)
            tensors = below(own[kind].items(), "vision_model.")
            hints = settings.get("vision_config")
            hints = hints.get(f"{kind}_tower", hints) if isinstance(hints, dict) else None
            plans[kind] = tower_plan(kind, tensors, hints, settings)
            continue
        if own[kind]:
            left_out.append(f"{kind} tower of {claim.source.place}: {source.place} was given in its place")
        if kind == "image":
            notes = _check_owner(source, settings)
        tower = Claim(source, (*HARMLESS, *LANGUAGEBIND_HARMLESS))
        tensors = below(tower.take("vision_model.").items(), "vision_model.")
        tensors |= below(tower.take("visual_projection.").items(), "visual_projection.")
        found = text_plan(tower, source.config.get("text_config"), "gelu")
        if found and found.tokenizer is None:
            left_out.append(f"text tower of {source.place}: no tokenizer beside it, so it cannot be used for search")
        elif found:
            text = text or found  # both repositories hold the same one
        plans[kind] = tower_plan(kind, tensors, source.config.get("vision_config"), settings)
        surplus += tower.rest()
    return Towers(plans["image"], plans["video"], text, tuple(surplus), tuple(left_out), tuple(inside), notes)


def _check_owner(source: WeightSource, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Whether an image tower is LanguageBind's, and a line where nothing says so. The video tower's keys say it.

    Raises:
        BundleError: it is OpenAI's, and the model's configuration does not name such a one.
    """
    owner = whose(source)
    if owner == "LanguageBind" or str(settings.get("mm_image_tower")).startswith(("openai/", "laion/")):
        return ()
    if owner == "OpenAI":
        what = f"{source.place}: OpenAI's CLIP by its config.json, not LanguageBind's image tower"
        raise BundleError(f"{what}; {OTHER_FEATURES}", hint="the folder of LanguageBind_Image")
    return (taken_for(source, "LanguageBind's image tower", "CLIP ViT-L/14"),)


def tower_plan(
    kind: str, tensors: Mapping[str, LazyTensor], hints: Mapping[str, Any] | None, settings: Mapping[str, Any]
) -> TowerPlan:
    """One LanguageBind tower in the use that Video-LLaVA makes of it."""
    config = vision_config(tensors, hints, "gelu")
    layer = settings.get("mm_vision_select_layer", -2)
    if not isinstance(layer, int) or not -config.n_layers - 1 <= layer <= config.n_layers:
        raise BundleError(f"mm_vision_select_layer is {layer!r}; the tower has {config.n_layers} blocks")
    if kind == "image":
        feature = settings.get("mm_vision_select_feature", "patch")
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
