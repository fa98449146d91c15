"""Video-LLaVA as ported to transformers, with old and new keys.

Its towers have no temporal attention (the port dropped those weights), its activation is `quick_gelu` unless its
configuration names another, and it has its own preprocessing and prompt. If LanguageBind's own towers are passed, the
same LLM is combined with them and with the original's preprocessing, frames and prompt. Sources: transformers 5.23,
models/video_llava/{configuration,modeling,processing}_video_llava.py and convert_video_llava_weights_to_hf.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from vidqa.common.foreign_files import JsonSettings
from vidqa.conversion.detect import CheckpointParts
from vidqa.conversion.formats.clip_towers import vision_config
from vidqa.conversion.formats.language_model import llm_plan
from vidqa.conversion.formats.languagebind import TowerPlans, find_towers
from vidqa.conversion.formats.llm_config import REQUIRED
from vidqa.conversion.formats.recognized_keys import GENERAL, GENERATION, check_keys
from vidqa.conversion.formats.video_llava_original import AS_DEMOS, FIXED, FOLLOWS, ONE_PROMPT, PADDED
from vidqa.conversion.lazy_tensors import LazyTensor, StateDict, add_prefix
from vidqa.conversion.plan import ConnectorPlan, ConversionPlan, LlmPlan, Mode, TowerPlan
from vidqa.encoders.preprocess import PreprocessSpec
from vidqa.model.bundle.spec import CompatSpec, ConnectorSpec, PromptSpec
from vidqa.records import SamplingSpec

NAME = "video_llava_hf"
#: The port accepts any number of frames; its own examples use this many.
_N_FRAMES = 8
#: Settings of the whole model. The token counts and ids are those of its processor, which is not used.
_RECOGNIZED = (
    GENERAL
    | GENERATION
    | {
        "ignore_index",
        "image_seq_length",
        "image_token_id",
        "image_token_index",
        "multimodal_projector_bias",  # follows from the weights
        "pad_token_id",
        "projector_hidden_act",
        "text_config",
        "tie_word_embeddings",
        "video_seq_length",
        "video_token_id",
        "video_token_index",
        "vision_config",
        "vision_feature_layer",
        "vision_feature_select_strategy",
        "vocab_size",
    }
)
_PROJECTOR = {"linear_1": "0", "linear_2": "2"}
_HF_FOLLOWS = (
    "towers: two plain CLIP towers applied frame by frame, without temporal attention (the port has none)",
    "frames: numpy's arange over all frames of the segment; the last frame is never sampled",
    "images and videos: Pillow's bicubic resize, center crop",
    "tokens: class token removed for images, kept for every frame of a video",
    "prompt: USER: <video> question ASSISTANT: without a system prompt",
)
_NOTICE = (
    "This is the transformers port of Video-LLaVA, which lacks the temporal attention of the original: frames are "
    "encoded independently. Convert it with --towers and the two LanguageBind folders to restore temporal attention."
)
_HF_FIXED = ("answers are greedy unless a temperature is set",)


def matches(parts: CheckpointParts) -> bool:
    """Return whether the parts are the port, alone or with separate towers."""
    return "video_llava_hf" in parts.kinds and parts.kinds <= {"video_llava_hf", "vision", "vision_temporal"}


def make_plan(parts: CheckpointParts, mode: Mode) -> ConversionPlan:
    """Plan the port, or the original model with the port's LLM.

    Raises:
        BundleError: a part is missing, or parts contradict each other.
    """
    source = parts.get("video_llava_hf")
    assert source is not None  # matches() has checked it
    config = source.config
    state = StateDict(source)
    own = {kind: _tower_tensors(state, kind) for kind in ("image", "video")}
    projector = _projector(state, config)
    llm = _llm(state, config)
    passed = _languagebind_towers(parts, state, mode)
    check_keys(config, _RECOGNIZED)
    vision = config.section("vision_config") or JsonSettings({}, config.file, "vision_config.")
    image = passed.image if passed else _image(own["image"], vision, config)
    video = passed.video if passed else _video(own["video"], vision, config)
    width = image.config.hidden_size
    return ConversionPlan(
        layout=NAME,
        image=image,
        video=video,
        text=passed.text if passed else None,
        connector=ConnectorPlan(
            ConnectorSpec("connector.safetensors", "mlp2x_gelu", width, llm.config.hidden_size), projector
        ),
        llm=llm,
        prompt=PromptSpec(("llava_v1" if mode == "original" else "vicuna_v1") if passed else "hf"),
        compat=_compat(mode, bool(passed), video.config.hidden_act),
        unexpected_keys=[*state.unexpected_keys(), *(passed.unexpected_keys if passed else ())],
        ignored=(f"both towers of {source.path}: replaced by those passed with --towers",) if passed else (),
        notice=None if passed else _NOTICE,
        notes=passed.notes if passed else (),
    )


def _tower_tensors(state: StateDict, kind: str) -> dict[str, LazyTensor]:
    names = [f"{root}{kind}_tower.{level}" for root in ("model.", "") for level in ("vision_model.", "")]
    return add_prefix(state.pop_prefix(*names), "vision_model.")


def _projector(state: StateDict, config: JsonSettings) -> dict[str, LazyTensor]:
    config.text("projector_hidden_act", "gelu", ("gelu",))
    found = {}
    for key, tensor in state.pop_prefix("model.multi_modal_projector.", "multi_modal_projector.").items():
        layer, _, suffix = key.partition(".")
        found[f"{_PROJECTOR.get(layer, layer)}.{suffix}"] = tensor
    return found


def _llm(state: StateDict, config: JsonSettings) -> LlmPlan:
    """Plan the LLM; transformers has used three sets of keys for it."""
    inner = state.pop_prefix("language_model.model.", "model.language_model.model.", "model.language_model.")
    head = state.pop_prefix("language_model.lm_head.", "model.language_model.lm_head.", "lm_head.")
    text = config.section("text_config")
    if text is None:
        raise config.error("text_config", "missing")
    from transformers import LlamaConfig

    # The port's checkpoints may omit settings that equal transformers' defaults for LLaMA.
    defaults = {"model_type": "llama"} | {key: getattr(LlamaConfig(), key) for key in REQUIRED}
    tensors = add_prefix(inner, "model.") | add_prefix(head, "lm_head.")
    return llm_plan(JsonSettings(defaults | text, text.file, text.where), tensors, state.source.folder)


def _languagebind_towers(parts: CheckpointParts, state: StateDict, mode: Mode) -> TowerPlans | None:
    """Return plans of LanguageBind's own towers, if the user passed them."""
    if not parts.tower("vision") and not parts.tower("vision_temporal"):
        return None
    # The LLM was trained on padded images, which the port's configuration does not record.
    return find_towers(parts, state, JsonSettings({"image_aspect_ratio": "pad"} if mode == "fixed" else {}, Path()))


def _image(tensors: Mapping[str, LazyTensor], vision: JsonSettings, config: JsonSettings) -> TowerPlan:
    strategy = config.text("vision_feature_select_strategy", "default", ("default", "full"))
    shape = vision_config(tensors, vision, "quick_gelu")
    prepare = PreprocessSpec("hf", shape.image_size)
    return TowerPlan(shape, tensors, _layer(config, shape.n_layers), strategy == "full", prepare)


def _video(tensors: Mapping[str, LazyTensor], vision: JsonSettings, config: JsonSettings) -> TowerPlan:
    plan = _image(tensors, vision, config)
    return replace(plan, keep_cls=True, n_frames=_N_FRAMES, sampling=SamplingSpec("arange", _N_FRAMES))


def _layer(config: JsonSettings, n_layers: int) -> int:
    if isinstance(config.get("vision_feature_layer"), list):
        raise config.error("vision_feature_layer", "concatenated layers are not supported")
    return config.whole("vision_feature_layer", -2, -n_layers - 1, n_layers)


def _compat(mode: Mode, has_languagebind_towers: bool, act: str) -> CompatSpec:
    if has_languagebind_towers:
        variant = (
            "Video-LLaVA: the LLM of the transformers port with LanguageBind's own towers and their temporal attention"
        )
        if mode == "original":
            return CompatSpec(mode, variant, (*FOLLOWS, *AS_DEMOS), FIXED)
        return CompatSpec(mode, variant, FOLLOWS, (*FIXED, ONE_PROMPT, PADDED))
    variant = f"Video-LLaVA as ported to transformers, without temporal attention, activation {act}"
    return CompatSpec(mode, variant, _HF_FOLLOWS, _HF_FIXED)
