"""Keys and shapes of a CLIP-like tower -> its plan. Sizes come from the tensors; a configuration adds what they hide.

What tensors do not show: the number of heads (64 values each in every published CLIP of these models), the activation
and the epsilon of the norms. Facts: the pinned notes of LanguageBind 7070c53 (configuration_*.py) and of transformers'
CLIPVisionConfig.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from vidqa.convert.lazy_tensors import Claim, LazyTensor
from vidqa.convert.plan import TextPlan
from vidqa.convert.sources import WeightSource
from vidqa.errors import BundleError
from vidqa.model.towers.text import TextConfig
from vidqa.model.towers.vit import HiddenAct, VisionConfig

#: Heads of CLIP ViT-L/14 and ViT-H/14 are this wide.
_HEAD = 64
#: A configuration that is there and says nothing of the activation means the default of CLIP's class.
_CLASS_ACT = "quick_gelu"
#: Where a repository of towers holds more than towers: scale of the contrastive loss.
LANGUAGEBIND_HARMLESS = (r"logit_scale",)
#: Why the one must not stand for the other, though it fits.
OTHER_FEATURES = "the shapes are the same, but the projector was tuned on other features"


def vision_config(tensors: Mapping[str, LazyTensor], config: Mapping[str, Any] | None, act: HiddenAct) -> VisionConfig:
    """The shape of a vision tower.

    Args:
        tensors: by the names of `VisionTower`.
        config: the tower's own configuration in the words of transformers; None where the checkpoint has none.
        act: activation where there is no configuration.

    Raises:
        BundleError: tensors that the shape is told from are missing, or tensors and configuration disagree.
    """
    root = "vision_model."
    patch = _shape(tensors, f"{root}embeddings.patch_embedding.weight", 4)
    positions = _shape(tensors, f"{root}embeddings.position_embedding.weight", 2)
    inner = _shape(tensors, f"{root}encoder.layers.0.mlp.fc1.weight", 2)
    side = math.isqrt(positions[0] - 1)
    if side * side != positions[0] - 1 or patch[1] != 3 or patch[2] != patch[3]:
        raise BundleError(f"a tower with patches {list(patch)} and {positions[0]} positions is not one of CLIP's kind")
    time = tensors.get(f"{root}encoder.layers.0.temporal_embedding")
    projection = tensors.get("visual_projection.weight")
    c = config or {}
    found = {
        "image_size": side * patch[2],
        "patch_size": patch[2],
        "hidden_size": patch[0],
        "intermediate_size": inner[0],
        "num_hidden_layers": _n_layers(tensors, root),
    }
    _agree("vision tower", found, c)
    return VisionConfig(
        image_size=found["image_size"],
        patch_size=found["patch_size"],
        hidden_size=found["hidden_size"],
        intermediate_size=found["intermediate_size"],
        n_layers=found["num_hidden_layers"],
        n_heads=_heads(found["hidden_size"], c),
        projection_dim=projection.shape[0] if projection is not None else 0,
        hidden_act=_act(c, act),
        layer_norm_eps=float(c.get("layer_norm_eps", 1e-5)),
        temporal_length=time.shape[1] if time is not None and len(time.shape) == 3 else 0,
    )


def text_plan(claim: Claim, config: Mapping[str, Any] | None, act: HiddenAct) -> TextPlan | None:
    """The text tower of a source, where it has one.

    Raises:
        BundleError: as `vision_config`.
    """
    tensors = {f"text_model.{k}": v for k, v in claim.take("text_model.").items()}
    tensors |= {f"text_projection.{k}": v for k, v in claim.take("text_projection.").items()}
    if not tensors:
        return None
    tokens = _shape(tensors, "text_model.embeddings.token_embedding.weight", 2)
    c = config or {}
    found = {
        "vocab_size": tokens[0],
        "hidden_size": tokens[1],
        "intermediate_size": _shape(tensors, "text_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        "num_hidden_layers": _n_layers(tensors, "text_model."),
        "max_position_embeddings": _shape(tensors, "text_model.embeddings.position_embedding.weight", 2)[0],
    }
    _agree("text tower", found, c)
    shape = TextConfig(
        vocab_size=found["vocab_size"],
        hidden_size=found["hidden_size"],
        intermediate_size=found["intermediate_size"],
        n_layers=found["num_hidden_layers"],
        n_heads=_heads(found["hidden_size"], c),
        max_positions=found["max_position_embeddings"],
        projection_dim=_shape(tensors, "text_projection.weight", 2)[0],
        hidden_act=_act(c, act),
        layer_norm_eps=float(c.get("layer_norm_eps", 1e-5)),
    )
    folder = claim.source.folder
    has_words = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    return TextPlan(shape, tensors, folder if has_words else None)


def whose(source: WeightSource) -> Literal["LanguageBind", "OpenAI"] | None:
    """Who published a tower, by its configuration; None where that does not say.

    CLIP ViT-L/14 and LanguageBind_Image have the same keys and shapes. The configurations of the latter's class are of
    the type LanguageBind..., its activation is gelu; OpenAI's is a `clip` with quick_gelu.
    """
    config = source.config
    kind = config.get("model_type")
    if isinstance(kind, str) and kind.startswith("LanguageBind"):
        return "LanguageBind"
    vision = config.get("vision_config", config)
    act = vision.get("hidden_act", _CLASS_ACT) if isinstance(vision, dict) else None
    return "OpenAI" if kind in ("clip", "clip_vision_model") and act == "quick_gelu" else None


def taken_for(source: WeightSource, owner: str, other: str) -> str:
    """One line about a tower whose configuration does not say whose it is."""
    kind = source.config.get("model_type")
    says = f"its config.json has the type {kind!r}" if kind else "no config.json beside it says whose it is"
    return f"{source.place} is taken for {owner}: {says}, and {other} has the same keys and shapes"


def _shape(tensors: Mapping[str, LazyTensor], key: str, rank: int) -> tuple[int, ...]:
    if key not in tensors:
        raise BundleError(f"{key}: missing")
    shape = tensors[key].shape
    if len(shape) != rank or not all(shape):
        raise BundleError(f"{key}: shape {list(shape)}, must have {rank} axes ({tensors[key].label})")
    return shape


def _n_layers(tensors: Mapping[str, LazyTensor], root: str) -> int:
    start = f"{root}encoder.layers."
    return 1 + max(int(n) for k in tensors if k.startswith(start) and (n := k[len(start) :].split(".")[0]).isdecimal())


def _agree(part: str, found: Mapping[str, int], config: Mapping[str, Any]) -> None:
    """The file's configuration must not contradict its tensors."""
    for key, value in found.items():
        if key in config and config[key] != value:
            raise BundleError(f"{part}: config.json says {key} {config[key]}, the weights say {value}")


def _heads(width: int, config: Mapping[str, Any]) -> int:
    n = config.get("num_attention_heads") or width // _HEAD
    if not isinstance(n, int) or n < 1 or width % n:
        raise BundleError(
            f"a tower of width {width} with {n} heads: the number of heads is not in the weights",
            hint='put "num_attention_heads" into "vision_config" of its config.json',
        )
    return n


def _act(config: Mapping[str, Any], act: HiddenAct) -> HiddenAct:
    named = config.get("hidden_act", _CLASS_ACT) if config else act
    if named not in ("gelu", "quick_gelu"):
        raise BundleError(f"a tower with the activation {named!r}; known: gelu, quick_gelu")
    return named
