"""Video-ChatGPT: its projector file, the LLM it was trained for, and OpenAI's CLIP ViT-L/14.

The projector file contains the projector and the complete input embedding, which has three more rows than the LLM's.
The LLM is a LLaVA v1 with an image projector, which is replaced. Sources: Video-ChatGPT 659e04b,
video_chatgpt/eval/model_utils.py (initialize_model, load_video), video_chatgpt/model/video_chatgpt.py
(initialize_vision_tokenizer), video_chatgpt/train/llava_trainer.py (which keys are saved).
"""

from __future__ import annotations

from collections.abc import Mapping

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
from vidqa.conversion.formats.language_model import llm_plan
from vidqa.conversion.lazy_tensors import IGNORED_KEYS, LazyTensor, ResizedEmbedding, StateDict, add_prefix
from vidqa.conversion.plan import ConnectorPlan, ConversionPlan, LlmPlan, Mode, TextPlan, TowerPlan
from vidqa.conversion.sources import WeightSource
from vidqa.conversion.special_tokens import check_token_ids
from vidqa.encoders.preprocess import PreprocessSpec
from vidqa.errors import BundleError
from vidqa.model.bundle.spec import CompatSpec, CompressorSpec, ConnectorSpec, PromptSpec
from vidqa.records import SamplingSpec

NAME = "video_chatgpt"
#: Maximum number of frames, and number of temporal visual tokens.
N_FRAMES = 100
#: Special tokens, in the order in which they were added to the vocabulary.
NEW_TOKENS = ("<vid_patch>", "<vid_start>", "<vid_end>")
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"

FOLLOWS = (
    f"frames: midpoints of at most {N_FRAMES} equal parts; a shorter video contributes all its frames",
    "frames are resized to a square by nearest neighbor, without keeping the aspect ratio",
    "tokens: hidden state of the second-to-last block, class token removed",
    f"visual tokens: the mean of each frame, zero-padded to {N_FRAMES}, then the mean over time of each patch",
    "pooled features are rounded to float16 before the projector",
    "the video follows the first question, between <vid_start> and <vid_end>",
)
FIXED = (
    "an answer keeps its last letters: the published programs strip every trailing s, / and < with the end token",
    "answers are greedy unless a temperature is set; the published programs sample at 0.2",
    "output rows of the three new tokens are the mean of the others, as in training; the published programs "
    "initialize them at random each time the model is loaded",
    "several videos in one prompt are all inserted; the published code inserts the last",
    "an image is a video of one frame; the published programs do not support images",
)


def matches(parts: CheckpointParts) -> bool:
    """Return whether the parts are an LLM, a projector with an input embedding, and at most one image tower."""
    projector = parts.get("projector")
    return (
        (parts.kinds | {p.kind for p in parts.towers}) - {"vision"} in ({"llava", "projector"}, {"llm", "projector"})
        and projector is not None
        and projector.has_key(r"(model\.)?embed_tokens\.weight")
    )


def make_plan(parts: CheckpointParts, mode: Mode) -> ConversionPlan:
    """Plan Video-ChatGPT.

    Raises:
        BundleError: the parts do not match.
    """
    base, projector_source, tower = (
        parts.get("llava") or parts.get("llm"),
        parts.get("projector"),
        parts.tower("vision"),
    )
    assert base and projector_source  # matches() has checked it
    if tower is None:
        raise BundleError(
            f"{projector_source.path}: the vision tower of Video-ChatGPT is missing",
            hint="add the folder of CLIP ViT-L/14 (224 pixels)",
        )
    own, added = StateDict(base), StateDict(projector_source)
    replaced = own.pop_prefix("model.mm_projector.")
    tensors = add_prefix(own.pop_prefix("model."), "model.") | add_prefix(own.pop_prefix("lm_head."), "lm_head.")
    projector = added.pop_prefix("model.mm_projector.", "mm_projector.")
    embedding = added.pop_prefix("model.embed_tokens.", "embed_tokens.")
    llm = _llm(base, tensors, embedding)
    image, text, unexpected_keys = clip_tower(tower)
    ignored = [f"projector of {base.path}: replaced by that of {projector_source.label}"] if replaced else []
    if text and text.tokenizer is None:
        ignored.append(f"text tower of {tower.path}: it has no tokenizer, so it cannot be used for search")
        text = None
    if set(projector) != {"weight", "bias"}:
        raise BundleError(
            f"{projector_source.path}: a projector with the keys {', '.join(sorted(projector))}, must be linear"
        )
    width = image.config.hidden_size
    spec = ConnectorSpec(
        "connector.safetensors",
        "linear",
        width,
        llm.config.hidden_size,
        compressor=CompressorSpec("video_chatgpt", n_frames=N_FRAMES, n_patches=image.config.n_patches),
    )
    return ConversionPlan(
        layout=NAME,
        image=image,
        video=TowerPlan(**vars(image) | {"sampling": SamplingSpec("segments", N_FRAMES)}),
        text=text,
        connector=ConnectorPlan(spec, projector),
        llm=llm,
        prompt=PromptSpec("video-chatgpt_v1" if mode == "original" else "vicuna_v1_1"),
        compat=_compat(mode),
        unexpected_keys=[*own.unexpected_keys(), *added.unexpected_keys(), *unexpected_keys],
        ignored=ignored,
        notes=() if publisher_of(tower) else [assumed_publisher(tower, "OpenAI's CLIP", "LanguageBind_Image")],
        architecture="video_chatgpt",
    )


def clip_tower(source: WeightSource) -> tuple[TowerPlan, TextPlan | None, list[str]]:
    """Plan OpenAI's CLIP for single frames and its text tower. Also returns messages about unexpected keys.

    Raises:
        BundleError: the source is LanguageBind's tower.
    """
    if publisher_of(source) == "LanguageBind":
        what = f"{source.path}: LanguageBind's tower according to its config.json, not OpenAI's CLIP"
        raise BundleError(f"{what}; {OTHER_FEATURES}", hint="use the folder of CLIP ViT-L/14 (224 pixels)")
    state = StateDict(source, (*IGNORED_KEYS, *LANGUAGEBIND_IGNORED_KEYS))
    tensors = add_prefix(state.pop_prefix("vision_model."), "vision_model.")
    tensors |= add_prefix(state.pop_prefix("visual_projection."), "visual_projection.")
    config = vision_config(tensors, source.config.section("vision_config"), "quick_gelu")
    text = text_plan(state, source.config.section("text_config"), "quick_gelu")
    preprocess = PreprocessSpec("video_chatgpt", config.image_size)
    return TowerPlan(config, tensors, -2, False, preprocess), text, state.unexpected_keys()


def _llm(base: WeightSource, tensors: dict[str, LazyTensor], embedding: Mapping[str, LazyTensor]) -> LlmPlan:
    """Plan the LLM with the input embedding of the projector file, and an output head with as many rows."""
    if set(embedding) != {"weight"} or not {_EMBEDDING, _HEAD} <= set(tensors):
        raise BundleError(f"{base.path}: must be an LLM with {_EMBEDDING} and {_HEAD}")
    rows, old = embedding["weight"].shape[0], tensors[_HEAD].shape[0]
    if not 0 <= rows - old <= len(NEW_TOKENS):
        raise BundleError(
            f"{base.path}: its vocabulary has {old} tokens, but the embedding of the projector file has {rows}",
            hint="use the LLM that the projector was trained for: LLaVA-Lightning-7B-v1-1",
        )
    tensors[_EMBEDDING] = embedding["weight"]
    if rows > old:
        tensors[_HEAD] = ResizedEmbedding(tensors[_HEAD], rows - old)
    config = JsonSettings({**base.config, "vocab_size": rows}, base.config.file)
    plan = llm_plan(config, tensors, base.folder, NEW_TOKENS)
    first = rows - len(NEW_TOKENS)
    check_token_ids(plan, {token: first + i for i, token in enumerate(NEW_TOKENS)})
    return plan


def _compat(mode: Mode) -> CompatSpec:
    variant = "Video-ChatGPT: CLIP frame by frame, spatial and temporal means, a linear projector"
    if mode == "original":
        return CompatSpec(
            mode, variant, (*FOLLOWS, "system prompt of the published programs, not that of training"), FIXED
        )
    prompt = "same system prompt in training and inference: the published programs use a different one than training"
    return CompatSpec(mode, variant, FOLLOWS, (*FIXED, prompt))
