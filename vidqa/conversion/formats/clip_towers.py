"""Plans for CLIP-like towers: sizes come from the tensors, and the configuration adds what tensors do not show.

Tensors do not show the number of heads (head_dim is 64 in every published CLIP of these models), the activation and
the epsilon of the norms. Sources: LanguageBind 7070c53 (configuration_*.py) and transformers' CLIPVisionConfig.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from vidqa.common.foreign_files import JsonSettings
from vidqa.conversion.formats.recognized_keys import TOWER, check_keys
from vidqa.conversion.lazy_tensors import LazyTensor, StateDict
from vidqa.conversion.plan import TextPlan
from vidqa.conversion.sources import WeightSource
from vidqa.errors import BundleError
from vidqa.model.towers.text import TextConfig
from vidqa.model.towers.vit import HiddenAct, VisionConfig

#: head_dim of CLIP ViT-L/14 and ViT-H/14.
_HEAD_DIM = 64
#: Activation if a configuration does not name one: the default of CLIP's configuration class.
_CLASS_ACT = "quick_gelu"
#: Settings of a tower that are read here.
_SETTINGS = frozenset(
    {
        "hidden_act",
        "hidden_size",
        "image_size",
        "intermediate_size",
        "layer_norm_eps",
        "num_attention_heads",
        "num_hidden_layers",
        "patch_size",
    }
)
#: Keys of a tower repository that are not part of a tower: the scale of the contrastive loss.
LANGUAGEBIND_IGNORED_KEYS = (r"logit_scale",)
#: Why one tower must not replace the other although the shapes match.
OTHER_FEATURES = "the shapes match, but the projector was trained on different features"


def vision_config(tensors: Mapping[str, LazyTensor], config: JsonSettings | None, act: HiddenAct) -> VisionConfig:
    """Derive the configuration of a vision tower.

    Args:
        tensors: tensors under the keys of `VisionTower`.
        config: the tower's own configuration with the keys of transformers; None if the checkpoint has none.
        act: activation if there is no configuration.

    Raises:
        BundleError: tensors that determine the shape are missing, or tensors and configuration disagree.
    """
    root = "vision_model."
    patch = _shape(tensors, f"{root}embeddings.patch_embedding.weight", 4)
    positions = _shape(tensors, f"{root}embeddings.position_embedding.weight", 2)
    inner = _shape(tensors, f"{root}encoder.layers.0.mlp.fc1.weight", 2)
    side = math.isqrt(positions[0] - 1)
    if side * side != positions[0] - 1 or patch[1] != 3 or patch[2] != patch[3]:
        raise BundleError(f"a tower with patches {list(patch)} and {positions[0]} positions is not CLIP-like")
    time = tensors.get(f"{root}encoder.layers.0.temporal_embedding")
    projection = tensors.get("visual_projection.weight")
    c = _checked(config, "num_channels")
    found = {
        "num_channels": 3,
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
        hidden_act=_act(config, act),
        layer_norm_eps=c.number("layer_norm_eps", 1e-5),
        temporal_length=time.shape[1] if time is not None and len(time.shape) == 3 else 0,
    )


def text_plan(state: StateDict, config: JsonSettings | None, act: HiddenAct) -> TextPlan | None:
    """Plan the text tower of a source; None if it has none.

    Args:
        state: keys of the source.
        config: the text tower's configuration, or None.
        act: activation if there is no configuration.

    Raises:
        BundleError: as in `vision_config`.
    """
    tensors = {f"text_model.{k}": v for k, v in state.pop_prefix("text_model.").items()}
    tensors |= {f"text_projection.{k}": v for k, v in state.pop_prefix("text_projection.").items()}
    if not tensors:
        return None
    tokens = _shape(tensors, "text_model.embeddings.token_embedding.weight", 2)
    c = _checked(config, "max_position_embeddings")
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
        hidden_act=_act(config, act),
        layer_norm_eps=c.number("layer_norm_eps", 1e-5),
    )
    folder = state.source.folder
    has_tokenizer = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    return TextPlan(shape, tensors, folder if has_tokenizer else None)


def publisher_of(source: WeightSource) -> Literal["LanguageBind", "OpenAI"] | None:
    """Return who published a tower according to its configuration; None if that cannot be derived.

    CLIP ViT-L/14 and LanguageBind_Image have the same keys and shapes. LanguageBind's configurations have a model type
    that starts with LanguageBind and the activation gelu; OpenAI's have the type `clip` and quick_gelu.
    """
    config = source.config
    kind = config.get("model_type")
    if isinstance(kind, str) and kind.startswith("LanguageBind"):
        return "LanguageBind"
    vision = config.get("vision_config", config)
    act = vision.get("hidden_act", _CLASS_ACT) if isinstance(vision, dict) else None
    return "OpenAI" if kind in ("clip", "clip_vision_model") and act == "quick_gelu" else None


def assumed_publisher(source: WeightSource, owner: str, other: str) -> str:
    """Return a note about a tower whose publisher cannot be derived from its configuration."""
    kind = source.config.get("model_type")
    why = f"its config.json has the model type {kind!r}" if kind else "it has no config.json"
    return f"{source.path} is assumed to be {owner}: {why}, and {other} has the same keys and shapes"


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


def _checked(config: JsonSettings | None, own: str) -> JsonSettings:
    """Return the configuration of a tower, or an empty one, after checking that it has no unknown settings."""
    if config is not None:
        check_keys(config, {*TOWER, *_SETTINGS, own})
    return config if config is not None else JsonSettings({}, Path())


def _agree(part: str, found: Mapping[str, int], config: JsonSettings) -> None:
    """Check that the configuration does not contradict the tensors."""
    for key, value in found.items():
        if config.whole(key, value) != value:
            raise config.error(key, f"config.json has {key} = {config[key]}, but the weights have {value} ({part})")


def _heads(width: int, config: JsonSettings) -> int:
    n = config.whole("num_attention_heads", width // _HEAD_DIM) if config else width // _HEAD_DIM
    if n < 1 or width % n:
        raise BundleError(
            f"a tower of width {width} with {n} heads: the number of heads cannot be derived from the weights",
            hint='add "num_attention_heads" to "vision_config" in its config.json',
        )
    return n


def _act(config: JsonSettings | None, act: HiddenAct) -> HiddenAct:
    found = config.text("hidden_act", _CLASS_ACT, ("gelu", "quick_gelu")) if config else act
    return "gelu" if found == "gelu" else "quick_gelu"
