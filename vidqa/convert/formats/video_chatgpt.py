"""Video-ChatGPT: its small file of weights, the LLM that it was made for, and OpenAI's CLIP ViT-L/14 -> Recipe.

The small file holds the projector and the whole input embedding, three rows longer than that of the LLM. The LLM is a
LLaVA of the first kind and brings a projector for pictures, which this one replaces. Facts: Video-ChatGPT 659e04b,
video_chatgpt/eval/model_utils.py (initialize_model, load_video), video_chatgpt/model/video_chatgpt.py
(initialize_vision_tokenizer), video_chatgpt/train/llava_trainer.py (which keys are saved).
"""

from __future__ import annotations

from collections.abc import Mapping

from vidqa.convert.detect import CheckpointParts
from vidqa.convert.formats.clip_towers import (
    LANGUAGEBIND_HARMLESS,
    OTHER_FEATURES,
    taken_for,
    text_plan,
    vision_config,
    whose,
)
from vidqa.convert.formats.language_model import llm_plan
from vidqa.convert.lazy_tensors import HARMLESS, Claim, LazyTensor, below
from vidqa.convert.plan import ConnectorPlan, ConversionPlan, LlmPlan, Mode, TextPlan, TowerPlan
from vidqa.convert.sources import WeightSource
from vidqa.convert.special_tokens import check_ids
from vidqa.convert.tensor_sums import Grown
from vidqa.encoders.preprocess import PreprocessSpec
from vidqa.errors import BundleError
from vidqa.model.bundle.spec import CompatSpec, CompressorSpec, ConnectorSpec, PromptSpec
from vidqa.records import SamplingSpec

NAME = "video_chatgpt"
#: Frames at most, and rows of the temporal part of the visual tokens.
N_FRAMES = 100
#: In the order in which they were added to the vocabulary.
NEW_TOKENS = ("<vid_patch>", "<vid_start>", "<vid_end>")
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"

FOLLOWS = (
    f"frames: middles of at most {N_FRAMES} equal parts; a shorter clip gives as many as it has",
    "frames are squashed to a square by nearest neighbour",
    "tokens: hidden state of the last block but one, class token dropped",
    f"visual tokens: the mean of each frame, filled up to {N_FRAMES} with zeros, then the mean over time of each patch",
    "pooled features are rounded to float16 before the projector",
    "the clip stands behind the first question, between <vid_start> and <vid_end>",
)
FIXED = (
    "an answer keeps its last letters: the published programs strip every trailing s, / and < with the end mark",
    "answers are greedy unless a temperature is set; the published programs draw at 0.2",
    "output rows of the three new tokens are the mean of the others, as in tuning; the published programs draw them "
    "at random each time the model is loaded",
    "several clips in one prompt are all inserted; the published code inserts the last",
    "a picture is a clip of one frame; the published programs take none",
)


def takes(parts: CheckpointParts) -> bool:
    """An LLM, a projector that brings an input embedding, and a tower without time (or none, which is then said)."""
    projector = parts.one("projector")
    return (
        (parts.kinds | {p.kind for p in parts.towers}) - {"vision"} in ({"llava", "projector"}, {"llm", "projector"})
        and projector is not None
        and projector.has(r"(model\.)?embed_tokens\.weight")
    )


def recipe(parts: CheckpointParts, mode: Mode) -> ConversionPlan:
    """The plan of Video-ChatGPT.

    Raises:
        BundleError: the parts do not fit each other.
    """
    base, small, tower = parts.one("llava") or parts.one("llm"), parts.one("projector"), parts.tower("vision")
    assert base and small  # takes() has seen them
    if tower is None:
        raise BundleError(
            f"{small.place}: Video-ChatGPT without its tower", hint="add the folder of CLIP ViT-L/14 (224 pixels)"
        )
    own, beside = Claim(base), Claim(small)
    replaced = own.take("model.mm_projector.")
    tensors = below(own.take("model.").items(), "model.") | below(own.take("lm_head.").items(), "lm_head.")
    projector = beside.take("model.mm_projector.", "mm_projector.")
    embedding = beside.take("model.embed_tokens.", "embed_tokens.")
    llm = _llm(base, tensors, embedding)
    image, text, surplus = clip_tower(tower)
    left_out = [f"projector of {base.place}: that of {small.place} takes its place"] if replaced else []
    if text and text.tokenizer is None:
        left_out.append(f"text tower of {tower.place}: no tokenizer beside it, so it cannot be used for search")
        text = None
    if set(projector) != {"weight", "bias"}:
        raise BundleError(f"{small.place}: a projector with the keys {', '.join(sorted(projector))}, must be linear")
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
        surplus=[*own.rest(), *beside.rest(), *surplus],
        left_out=left_out,
        notes=() if whose(tower) else [taken_for(tower, "OpenAI's CLIP", "LanguageBind_Image")],
        architecture="video_chatgpt",
    )


def clip_tower(source: WeightSource) -> tuple[TowerPlan, TextPlan | None, list[str]]:
    """OpenAI's CLIP for single frames, its text tower, and the keys that found no place.

    Raises:
        BundleError: it is LanguageBind's.
    """
    if whose(source) == "LanguageBind":
        what = f"{source.place}: LanguageBind's tower by its config.json, not OpenAI's CLIP"
        raise BundleError(f"{what}; {OTHER_FEATURES}", hint="the folder of CLIP ViT-L/14 (224 pixels)")
    claim = Claim(source, (*HARMLESS, *LANGUAGEBIND_HARMLESS))
    tensors = below(claim.take("vision_model.").items(), "vision_model.")
    tensors |= below(claim.take("visual_projection.").items(), "visual_projection.")
    config = vision_config(tensors, source.config.get("vision_config"), "quick_gelu")
    text = text_plan(claim, source.config.get("text_config"), "quick_gelu")
    preprocess = PreprocessSpec("video_chatgpt", config.image_size)
    return TowerPlan(config, tensors, -2, False, preprocess), text, claim.rest()


def _llm(base: WeightSource, tensors: dict[str, LazyTensor], embedding: Mapping[str, LazyTensor]) -> LlmPlan:
    """The LLM with the input embedding of the small file, and an output table of as many rows."""
    if set(embedding) != {"weight"} or not {_EMBEDDING, _HEAD} <= set(tensors):
        raise BundleError(f"{base.place}: an LLM with {_EMBEDDING} and {_HEAD} is needed")
    rows, old = embedding["weight"].shape[0], tensors[_HEAD].shape[0]
    if not 0 <= rows - old <= len(NEW_TOKENS):
        raise BundleError(
            f"{base.place}: its vocabulary has {old} words, the embedding of the small file {rows}",
            hint="the LLM must be the one that it was made for: LLaVA-Lightning-7B-v1-1",
        )
    tensors[_EMBEDDING] = embedding["weight"]
    if rows > old:
        tensors[_HEAD] = Grown(tensors[_HEAD], rows - old)
    plan = llm_plan({**base.config, "vocab_size": rows}, tensors, base.folder, NEW_TOKENS)
    first = rows - len(NEW_TOKENS)
    check_ids(plan, {word: first + i for i, word in enumerate(NEW_TOKENS)})
    return plan


def _compat(mode: Mode) -> CompatSpec:
    variant = "Video-ChatGPT: CLIP frame by frame, means over space and time, a linear projector"
    if mode == "original":
        return CompatSpec(mode, variant, (*FOLLOWS, "system text of the published programs, not that of tuning"), FIXED)
    said = "one prompt in tuning and use: the published programs use another system text than tuning"
    return CompatSpec(mode, variant, FOLLOWS, (*FIXED, said))
