"""Video-LLaVA in the form of transformers, old and new key names -> Recipe.

Its towers have no temporal attention (the port dropped those weights), its activation is `quick_gelu` unless its
configuration says otherwise, and preprocessing and prompt are its own. On request the same LLM gets the true
LanguageBind towers, and with them preprocessing, frames and prompt of the original. Facts: transformers 5.23,
models/video_llava/{configuration,modeling,processing}_video_llava.py and convert_video_llava_weights_to_hf.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vidqa.convert.detect import CheckpointParts
from vidqa.convert.formats.clip_towers import vision_config
from vidqa.convert.formats.language_model import llm_plan
from vidqa.convert.formats.languagebind import Towers, find_towers
from vidqa.convert.formats.video_llava_original import AS_DEMOS, FIXED, FOLLOWS, ONE_PROMPT, PADDED
from vidqa.convert.lazy_tensors import Claim, LazyTensor, below
from vidqa.convert.plan import ConnectorPlan, ConversionPlan, LlmPlan, Mode, TowerPlan
from vidqa.encoders.preprocess import PreprocessSpec
from vidqa.errors import BundleError
from vidqa.model.bundle.spec import CompatSpec, ConnectorSpec, PromptSpec
from vidqa.records import SamplingSpec

NAME = "video_llava_hf"
#: The port takes any number of frames; its own examples take this many.
_N_FRAMES = 8
_PROJECTOR = {"linear_1": "0", "linear_2": "2"}
_HF_FOLLOWS = (
    "towers: two plain CLIP towers, frame by frame, without temporal attention (the port has none)",
    "frames: numpy's arange over all frames of the segment; the last one is never reached",
    "pictures and video: Pillow's bicubic resize, centre crop",
    "tokens: class token dropped for pictures, kept for every frame of a video",
    "prompt: USER: <video> question ASSISTANT: without a system text",
)
_NOTICE = (
    "This is the transformers port of Video-LLaVA: it has lost the temporal attention of the original, so it sees "
    "frames one by one. Converted with --towers and the two LanguageBind folders it has it back."
)
_HF_FIXED = ("answers are greedy unless a temperature is set",)


def takes(parts: CheckpointParts) -> bool:
    """The port, alone or with towers."""
    return "video_llava_hf" in parts.kinds and parts.kinds <= {"video_llava_hf", "vision", "vision_temporal"}


def recipe(parts: CheckpointParts, mode: Mode) -> ConversionPlan:
    """The plan of the port, or of the original model with the port's LLM.

    Raises:
        BundleError: a part is missing or contradicts another.
    """
    source = parts.one("video_llava_hf")
    assert source is not None  # takes() has seen it
    config = source.config
    claim = Claim(source)
    own = {kind: _tower_tensors(claim, kind) for kind in ("image", "video")}
    projector = _projector(claim, config)
    llm = _llm(claim, config)
    true = _true_towers(parts, claim, mode)
    vision = config.get("vision_config") or {}
    image = true.image if true else _image(own["image"], vision, config)
    video = true.video if true else _video(own["video"], vision, config)
    width = image.config.hidden_size
    return ConversionPlan(
        layout=NAME,
        image=image,
        video=video,
        text=true.text if true else None,
        connector=ConnectorPlan(
            ConnectorSpec("connector.safetensors", "mlp2x_gelu", width, llm.config.hidden_size), projector
        ),
        llm=llm,
        prompt=PromptSpec(("llava_v1" if mode == "original" else "vicuna_v1") if true else "hf"),
        compat=_compat(mode, bool(true), video.config.hidden_act),
        surplus=[*claim.rest(), *(true.surplus if true else ())],
        left_out=(f"both towers of {source.place}: others were given in their place",) if true else (),
        notice=None if true else _NOTICE,
        notes=true.notes if true else (),
    )


def _tower_tensors(claim: Claim, kind: str) -> dict[str, LazyTensor]:
    names = [f"{root}{kind}_tower.{level}" for root in ("model.", "") for level in ("vision_model.", "")]
    return below(claim.take(*names).items(), "vision_model.")


def _projector(claim: Claim, config: Mapping[str, Any]) -> dict[str, LazyTensor]:
    if config.get("projector_hidden_act", "gelu") != "gelu":
        raise BundleError(f"projector_hidden_act is {config['projector_hidden_act']!r}; only gelu is supported")
    found = {}
    for key, origin in claim.take("model.multi_modal_projector.", "multi_modal_projector.").items():
        layer, _, rest = key.partition(".")
        found[f"{_PROJECTOR.get(layer, layer)}.{rest}"] = origin
    return found


def _llm(claim: Claim, config: Mapping[str, Any]) -> LlmPlan:
    """The LLM: three ways of naming it have been in use."""
    inner = claim.take("language_model.model.", "model.language_model.model.", "model.language_model.")
    head = claim.take("language_model.lm_head.", "model.language_model.lm_head.", "lm_head.")
    text = config.get("text_config")
    if not isinstance(text, dict):
        raise BundleError(f"{claim.source.folder / 'config.json'}: text_config is missing")
    tensors = below(inner.items(), "model.") | below(head.items(), "lm_head.")
    # The port's checkpoints may leave out what is transformers' default for a LLaMA.
    return llm_plan({"model_type": "llama", **text}, tensors, claim.source.folder)


def _true_towers(parts: CheckpointParts, claim: Claim, mode: Mode) -> Towers | None:
    """LanguageBind's own towers, if the user gave them."""
    if not parts.tower("vision") and not parts.tower("vision_temporal"):
        return None
    # The port's configuration does not say it, but its LLM was tuned with padded pictures.
    return find_towers(parts, claim, {"image_aspect_ratio": "pad"} if mode == "fixed" else {})


def _image(tensors: Mapping[str, LazyTensor], vision: Mapping[str, Any], config: Mapping[str, Any]) -> TowerPlan:
    strategy = config.get("vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):
        raise BundleError(f"vision_feature_select_strategy is {strategy!r}; known: default, full")
    shape = vision_config(tensors, vision, "quick_gelu")
    prepare = PreprocessSpec("hf", shape.image_size)
    return TowerPlan(shape, tensors, _layer(config), strategy == "full", prepare)


def _video(tensors: Mapping[str, LazyTensor], vision: Mapping[str, Any], config: Mapping[str, Any]) -> TowerPlan:
    plan = _image(tensors, vision, config)
    return replace(plan, keep_cls=True, n_frames=_N_FRAMES, sampling=SamplingSpec("arange", _N_FRAMES))


def _layer(config: Mapping[str, Any]) -> int:
    layer = config.get("vision_feature_layer", -2)
    if not isinstance(layer, int):
        raise BundleError(f"vision_feature_layer is {layer!r}; joined layers are not supported")
    return layer


def _compat(mode: Mode, true_towers: bool, act: str) -> CompatSpec:
    if true_towers:
        variant = (
            "Video-LLaVA: the LLM of the transformers port with LanguageBind's own towers and their temporal attention"
        )
        if mode == "original":
            return CompatSpec(mode, variant, (*FOLLOWS, *AS_DEMOS), FIXED)
        return CompatSpec(mode, variant, FOLLOWS, (*FIXED, ONE_PROMPT, PADDED))
    variant = f"Video-LLaVA as ported to transformers, without temporal attention, activation {act}"
    return CompatSpec(mode, variant, _HF_FOLLOWS, _HF_FIXED)
