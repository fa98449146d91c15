"""Video-LLaVA as its authors published it, as one checkpoint or in parts.

One checkpoint is an LLM folder with the projector and both towers inside. Parts are an LLM (or a complete model, or one
without towers), a stage-1 projector, a LoRA adapter with the projector next to it, and the two LanguageBind towers from
their own repositories, which then replace those inside. Sources: Video-LLaVA 984e65b (videollava/model/builder.py,
llava_arch.py, multimodal_projector/builder.py) and the key lists of its released files.

The configuration of a complete model does not describe its towers. If head_dim is not 64, it may contain
`vision_config`, for both towers or as `{"image_tower": ..., "video_tower": ...}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vidqa.common.foreign_files import JsonSettings, is_unset
from vidqa.conversion.detect import CheckpointParts
from vidqa.conversion.formats.language_model import llm_plan
from vidqa.conversion.formats.languagebind import TowerPlans, find_towers
from vidqa.conversion.formats.recognized_keys import VISION_PART, check_keys
from vidqa.conversion.lazy_tensors import LazyTensor, StateDict, add_prefix
from vidqa.conversion.lora_merge import merge_lora
from vidqa.conversion.plan import ConnectorPlan, ConversionPlan, Mode
from vidqa.errors import BundleError
from vidqa.model.bundle.spec import CompatSpec, ConnectorSpec, PromptSpec

NAME = "video_llava"
_KINDS = frozenset({"llava", "llm", "projector", "lora", "vision", "vision_temporal"})

FOLLOWS = (
    "frames: numpy's linspace over all frames of the segment, both ends included",
    "videos: bilinear resize of float values without antialiasing, short side, center crop",
    "images: bicubic resize of float values without antialiasing, short side, center crop",
    "tokens: hidden state of the second-to-last block; class token removed for images, kept for every video frame",
    "media precede the first question, on a separate line",
)
FIXED = (
    "videos are not flipped: the published transform mirrors every second video at random, in inference as in training",
    "an answer ends at its end token: no trailing letters are stripped",
    "answers are greedy unless a temperature is set; the published programs sample at 0.1 or 0.2",
    "prompts are answered in batches; the published code answers one at a time",
)
#: Settings of images and projector with their supported values, besides none.
_SUPPORTED = {
    "image_aspect_ratio": ("pad", "square"),
    "mm_patch_merge_type": ("flat",),
    "mm_projector_type": ("linear", "mlp2x_gelu", "identity"),
    "mm_resampler_type": ("identity",),
}
#: What `--compat original` reproduces in addition to `FOLLOWS`.
AS_DEMOS = (
    "system prompt of the published demos and evaluation, which differs from that of training",
    "images are cropped, not padded, as in the published demos",
)
ONE_PROMPT = "same system prompt in training and inference: the published demos use a different one than training"
PADDED = "images are padded to a square, as in training; the published demos crop them"


def matches(parts: CheckpointParts) -> bool:
    """Return whether the parts are an LLM and otherwise only parts of Video-LLaVA."""
    return (
        bool(parts.kinds & {"llava", "llm"})
        and parts.kinds <= _KINDS
        and ("llava" in parts.kinds or bool(parts.kinds & {"projector", "lora"}))
    )


def make_plan(parts: CheckpointParts, mode: Mode) -> ConversionPlan:
    """Plan Video-LLaVA from the parts.

    Raises:
        BundleError: a part is missing, or parts contradict each other.
    """
    base = parts.get("llava") or parts.get("llm")
    assert base is not None  # matches() has checked it
    state = StateDict(base)
    config = _settings(parts)
    if mode == "original":  # the demos do not pad images, although training did
        config = JsonSettings({k: v for k, v in config.items() if k != "image_aspect_ratio"}, config.file)
    towers = find_towers(parts, state, config)
    projector, extra, replaced = _projector(parts, state)
    tensors = (
        add_prefix(state.pop_prefix("model."), "model.") | add_prefix(state.pop_prefix("lm_head."), "lm_head.") | extra
    )
    unexpected_keys = [*state.unexpected_keys(), *towers.unexpected_keys]
    if adapter := parts.get("lora"):
        tensors, more = merge_lora(tensors, adapter, base.config.flag("tie_word_embeddings"))
        unexpected_keys += more
    llm = llm_plan(base.config, tensors, base.folder)
    width = towers.image.config.hidden_size
    return ConversionPlan(
        layout=NAME,
        image=towers.image,
        video=towers.video,
        text=towers.text,
        connector=projector_plan(projector, width, llm.config.hidden_size),
        llm=llm,
        prompt=PromptSpec("llava_v1" if mode == "original" else "vicuna_v1"),
        compat=_compat(mode, towers, bool(adapter), pad=towers.image.preprocess.pad),
        unexpected_keys=unexpected_keys,
        ignored=(*replaced, *towers.ignored),
        notes=towers.notes,
    )


def projector_plan(tensors: Mapping[str, LazyTensor], width: int, out_size: int) -> ConnectorPlan:
    """Plan the projector; its type is derived from its keys.

    Args:
        tensors: tensors under their keys without `mm_projector.`.
        width: hidden size of the towers.
        out_size: hidden size of the LLM.

    Raises:
        BundleError: the keys do not belong to a supported projector.
    """
    if not tensors:
        if width != out_size:
            raise BundleError(
                f"no projector was passed, and the hidden sizes of towers ({width}) and LLM ({out_size}) differ"
            )
        return ConnectorPlan(ConnectorSpec("connector.safetensors", "identity", width, out_size), {})
    if set(tensors) == {"weight", "bias"}:
        return ConnectorPlan(ConnectorSpec("connector.safetensors", "linear", width, out_size), tensors)
    if set(tensors) == {"0.weight", "0.bias", "2.weight", "2.bias"}:
        return ConnectorPlan(ConnectorSpec("connector.safetensors", "mlp2x_gelu", width, out_size), tensors)
    raise BundleError(
        f"a projector with the keys {', '.join(sorted(tensors))}; supported: linear, mlp2x_gelu, identity"
    )


def _settings(parts: CheckpointParts) -> JsonSettings:
    """Return the configuration with the `mm_` keys. That of an adapter or projector has priority over the base's."""
    sources = [source for kind in ("lora", "projector", "llava") if (source := parts.get(kind))]
    found = next((s.config for s in sources if any(key.startswith("mm_") for key in s.config)), None)
    if found is None:
        return JsonSettings({}, Path())
    for key in ("mm_use_im_start_end", "mm_use_im_patch_token", "mm_use_x_start_end", "mm_use_x_patch_token"):
        if not is_unset(found.get(key)):
            raise found.error(key, "special tokens around each image are not supported; no released model uses them")
    for key, supported in _SUPPORTED.items():
        if not is_unset(found.get(key)):
            found.text(key, "", supported)
    check_keys(JsonSettings({k: v for k, v in found.items() if k.startswith("mm_")}, found.file), VISION_PART)
    return found


def _projector(
    parts: CheckpointParts, state: StateDict
) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor], list[str]]:
    """Return the projector's tensors, LLM tensors stored next to them, and a note on the projector they replace."""
    own = state.pop_prefix("model.mm_projector.")
    source = parts.get("projector")
    if source is None:
        return own, {}, []
    extra_state = StateDict(source)
    found = extra_state.pop_prefix("base_model.model.model.mm_projector.", "model.mm_projector.", "mm_projector.")
    extra = extra_state.pop_prefix("base_model.model.")
    if unexpected_keys := extra_state.unexpected_keys():
        raise BundleError("\n".join(unexpected_keys))
    replaced = [f"projector of {state.source.path}: replaced by that of {source.label}"] if own else []
    return found, extra, replaced


def _compat(mode: Mode, towers: TowerPlans, lora: bool, pad: bool) -> CompatSpec:
    n_frames = towers.video.config.temporal_length
    variant = "Video-LLaVA" + (" with a LoRA merged in" if lora else "")
    origins = {True: "from inside the checkpoint", False: "from LanguageBind's own files"}
    image, video = (origins[kind in towers.inside] for kind in ("image", "video"))
    variant += f", towers {image}" if image == video else f", image tower {image}, video tower {video}"
    variant += f", temporal attention over {n_frames} frames" if n_frames else ", without temporal attention"
    if mode == "original":
        return CompatSpec(mode, variant, (*FOLLOWS, *AS_DEMOS), FIXED)
    return CompatSpec(mode, variant, FOLLOWS, (*FIXED, ONE_PROMPT, *((PADDED,) if pad else ())))
