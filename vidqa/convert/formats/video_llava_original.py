"""Video-LLaVA as its authors published it, whole or in parts -> Recipe.

Whole: one LLM folder with projector and both towers inside. In parts: an LLM (or a whole model, or one without
towers), a stage-1 projector, a LoRA adapter with the projector beside it, and the two LanguageBind towers from their
own repositories, which then take the place of those inside. All of it by key names; facts: Video-LLaVA 984e65b
(videollava/model/builder.py, llava_arch.py, multimodal_projector/builder.py) and the key lists of its released files.

The configuration of a whole model says nothing of its towers. Where heads are not 64 wide it may hold
`vision_config`, for both towers or as `{"image_tower": ..., "video_tower": ...}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vidqa.convert.detect import CheckpointParts
from vidqa.convert.formats.language_model import llm_plan
from vidqa.convert.formats.languagebind import Towers, find_towers
from vidqa.convert.lazy_tensors import Claim, LazyTensor, below
from vidqa.convert.lora_merge import merge_lora
from vidqa.convert.plan import ConnectorPlan, ConversionPlan, Mode
from vidqa.errors import BundleError
from vidqa.model.bundle.spec import CompatSpec, ConnectorSpec, PromptSpec

NAME = "video_llava"
_KINDS = frozenset({"llava", "llm", "projector", "lora", "vision", "vision_temporal"})

FOLLOWS = (
    "frames: numpy's linspace over all frames of the segment, both ends included",
    "video: bilinear resize of float values without antialiasing, short side, centre crop",
    "pictures: bicubic resize of float values without antialiasing, short side, centre crop",
    "tokens: hidden state of the last block but one; class token dropped for pictures, kept for every frame of a video",
    "media stand before the first question, on a line of their own",
)
FIXED = (
    "no clip is flipped: the published transform mirrors every second clip at random, in use as in tuning",
    "an answer ends at its end token: nothing is cut from its last letters",
    "answers are greedy unless a temperature is set; the published programs draw at 0.1 or 0.2",
    "prompts of a batch are padded and masked; the published code answers one at a time",
)
#: What `--compat original` follows besides.
AS_DEMOS = (
    "system text of the published demos and evaluation, which is not the one of tuning",
    "pictures are cropped and not padded, as in the published demos",
)
ONE_PROMPT = "one prompt in tuning and use: the published demos use another system text than tuning"
PADDED = "pictures are padded to a square, as in tuning; the published demos crop them"


def takes(parts: CheckpointParts) -> bool:
    """An LLM, and besides it only what Video-LLaVA is made of."""
    return (
        bool(parts.kinds & {"llava", "llm"})
        and parts.kinds <= _KINDS
        and ("llava" in parts.kinds or bool(parts.kinds & {"projector", "lora"}))
    )


def recipe(parts: CheckpointParts, mode: Mode) -> ConversionPlan:
    """The plan of Video-LLaVA from whichever parts there are.

    Raises:
        BundleError: a part is missing or contradicts another.
    """
    base = parts.one("llava") or parts.one("llm")
    assert base is not None  # takes() has seen it
    claim = Claim(base)
    config = _settings(parts)
    if mode == "original":  # the demos do not pad pictures, though tuning did
        config = {k: v for k, v in config.items() if k != "image_aspect_ratio"}
    towers = find_towers(parts, claim, config)
    projector, extra, replaced = _projector(parts, claim)
    tensors = below(claim.take("model.").items(), "model.") | below(claim.take("lm_head.").items(), "lm_head.") | extra
    surplus = [*claim.rest(), *towers.surplus]
    if adapter := parts.one("lora"):
        tensors, more = merge_lora(tensors, adapter)
        surplus += more
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
        surplus=surplus,
        left_out=(*replaced, *towers.left_out),
        notes=towers.notes,
    )


def projector_plan(tensors: Mapping[str, LazyTensor], width: int, out_size: int) -> ConnectorPlan:
    """The projector, its kind told from its keys.

    Args:
        tensors: by what follows `mm_projector.`.
        width: D of the towers.
        out_size: L of the LLM.

    Raises:
        BundleError: keys of no known projector.
    """
    if not tensors:
        if width != out_size:
            raise BundleError(f"no projector was given, and towers ({width}) and LLM ({out_size}) differ in width")
        return ConnectorPlan(ConnectorSpec("connector.safetensors", "identity", width, out_size), {})
    if set(tensors) == {"weight", "bias"}:
        return ConnectorPlan(ConnectorSpec("connector.safetensors", "linear", width, out_size), tensors)
    if set(tensors) == {"0.weight", "0.bias", "2.weight", "2.bias"}:
        return ConnectorPlan(ConnectorSpec("connector.safetensors", "mlp2x_gelu", width, out_size), tensors)
    raise BundleError(f"a projector with the keys {', '.join(sorted(tensors))}; known: linear, mlp2x_gelu, identity")


def _settings(parts: CheckpointParts) -> dict[str, Any]:
    """Configuration with the `mm_` keys: a projector's or an adapter's own folder comes before the base's."""
    for kind in ("lora", "projector", "llava"):
        source = parts.one(kind)
        if source and any(key.startswith("mm_") for key in source.config):
            found = source.config
            break
    else:
        return {}
    if found.get("mm_use_im_start_end") or found.get("mm_use_im_patch_token"):
        raise BundleError(
            "tuned with marks around each picture (mm_use_im_start_end): no released model is, not supported"
        )
    return found


def _projector(parts: CheckpointParts, claim: Claim) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor], list[str]]:
    """The projector's tensors, tensors of the LLM that tuning changed and that lie beside it, and what it replaces."""
    own = claim.take("model.mm_projector.")
    source = parts.one("projector")
    if source is None:
        return own, {}, []
    beside = Claim(source)
    found = beside.take("base_model.model.model.mm_projector.", "model.mm_projector.", "mm_projector.")
    extra = beside.take("base_model.model.")
    if rest := beside.rest():
        raise BundleError("\n".join(rest))
    replaced = [f"projector of {claim.source.place}: that of {source.place} takes its place"] if own else []
    return found, extra, replaced


def _compat(mode: Mode, towers: Towers, lora: bool, pad: bool) -> CompatSpec:
    timed = towers.video.config.temporal_length
    variant = "Video-LLaVA" + (" with a LoRA merged in" if lora else "")
    places = {True: "from inside the checkpoint", False: "from LanguageBind's own files"}
    image, video = (places[kind in towers.inside] for kind in ("image", "video"))
    variant += f", towers {image}" if image == video else f", image tower {image}, video tower {video}"
    variant += f", temporal attention over {timed} frames" if timed else ", without temporal attention"
    if mode == "original":
        return CompatSpec(mode, variant, (*FOLLOWS, *AS_DEMOS), FIXED)
    return CompatSpec(mode, variant, FOLLOWS, (*FIXED, ONE_PROMPT, *((PADDED,) if pad else ())))
