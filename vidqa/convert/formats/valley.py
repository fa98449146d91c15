"""Valley: one folder with LLM, projector, temporal module and CLIP tower, whole or as a difference to LLaMA -> Recipe.

Which temporal module it is (v1, v2, v3) is told from the keys. Facts: Valley 83d794f, valley/model/valley_model.py and
apply_delta.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vidqa.convert.detect import CheckpointParts
from vidqa.convert.formats.clip_towers import vision_config
from vidqa.convert.formats.language_model import llm_plan
from vidqa.convert.lazy_tensors import HARMLESS, Claim, LazyTensor, below
from vidqa.convert.lora_merge import merge_lora
from vidqa.convert.plan import ConnectorPlan, ConversionPlan, Mode, TowerPlan
from vidqa.convert.sources import WeightSource
from vidqa.convert.special_tokens import check_ids, words_of
from vidqa.convert.tensor_sums import Difference
from vidqa.encoders.preprocess import PreprocessSpec
from vidqa.errors import BundleError
from vidqa.model.bundle.spec import CompatSpec, CompressorSpec, ConnectorSpec, GenerationSpec, PromptSpec
from vidqa.model.towers.vit import VisionConfig
from vidqa.records import SamplingSpec

NAME = "valley"
N_FRAMES = 8
#: Heads of the temporal module v3; its other sizes are in its weights.
N_HEADS = 8
#: A copy of a layer that the original never uses, its name spelled so there.
UNUSED = (r"model\.transforemr_adding_layer\..*",)
#: Settings that name the temporal modules.
_V2, _V3 = "use_patch_importance_pooling", "use_delta_transformer"
_NORM = "model.norm.weight"
#: Mean of the last norm's weights: about 1 and more in a LLaMA, next to nothing in a difference of two.
_DIFFERENCE_BELOW = 0.25

FOLLOWS = (
    f"frames: numpy's linspace, {N_FRAMES} of them, both ends included",
    "video: Pillow's bilinear resize to 8/7 of the side, centre crop; pictures: bicubic to the side, centre crop",
    "tokens: hidden state that the configuration names, class token kept, all of them projected before they are pooled",
    "visual tokens: the places first, pooled over time, then the class token of each frame; each part between marks",
    "a picture is a clip of one frame",
)
FIXED = (
    "a question without a clip is asked; the published code drops it, or fails",
    "marks and the number of frames always agree; the published code leaves places unfilled when they do not",
    "several clips in one prompt have each its own tokens; the published code gives all of them those of the first",
    "an answer that begins with ### is read on; the published programs stop there",
)


def takes(parts: CheckpointParts) -> bool:
    """A model with a CLIP tower below `model.vision_tower`; a base for a difference; an adapter."""
    model = parts.one("llava")
    return (
        model is not None
        and model.has(r"model\.vision_tower\.vision_model\.")
        and parts.kinds <= {"llava", "llm", "lora"}
    )


def recipe(parts: CheckpointParts, mode: Mode) -> ConversionPlan:
    """The plan of Valley.

    Raises:
        BundleError: something is missing or contradicts itself; a difference without its base, or a base too many;
            a tower in place of its own.
    """
    source, base = parts.one("llava"), parts.one("llm")
    assert source is not None  # takes() has seen it
    if parts.towers:
        raise BundleError(
            f"{source.place}: Valley was tuned with the CLIP tower inside, no other can take its place",
            hint="leave out --towers",
        )
    claim = Claim(source, (*HARMLESS, *UNUSED))
    _check_difference(source, base)
    tower = _tower(claim, source.config)
    modules = _Modules.of(claim)
    tensors = below(claim.take("model.").items(), "model.") | below(claim.take("lm_head.").items(), "lm_head.")
    surplus = claim.rest()
    if base:
        tensors, more = _summed(tensors, base)
        surplus += more
    if adapter := parts.one("lora"):
        tensors, more = merge_lora(tensors, adapter)
        surplus += more
    llm = llm_plan(source.config, tensors, source.folder)
    connector = modules.plan(source, tower.config, llm.config.hidden_size)
    check_ids(llm, dict.fromkeys(words_of("valley")))
    preprocess = PreprocessSpec("hf", tower.config.image_size)
    video = PreprocessSpec("valley", tower.config.image_size)
    return ConversionPlan(
        layout=NAME,
        image=TowerPlan(tower.config, tower.tensors, tower.layer, True, preprocess),
        video=TowerPlan(
            tower.config, tower.tensors, tower.layer, True, video, sampling=SamplingSpec("linspace", N_FRAMES)
        ),
        connector=connector,
        llm=llm,
        prompt=PromptSpec("valley" if mode == "original" else "valley_tuned"),
        generation=GenerationSpec(max_new_tokens=1024 if mode == "original" else 512),
        compat=_compat(mode, connector, base is not None, adapter is not None),
        surplus=surplus,
        architecture="valley",
        left_out=modules.left_out(source),
        notes=modules.notes(source),
    )


def _check_difference(source: WeightSource, base: WeightSource | None) -> None:
    """A difference and a whole model have the same names; the last norm tells them apart."""
    if _NORM not in source.tensors:
        raise BundleError(f"{source.place}: {_NORM}: missing")
    size = float(source.read(_NORM).float().abs().mean())
    if base is None and size < _DIFFERENCE_BELOW:
        raise BundleError(
            f"{source.place}: these weights are a difference to another model ({_NORM} is {size:.3f} on average)",
            hint="give the folder of the LLaMA that it belongs to, too",
        )
    if base is not None and size >= _DIFFERENCE_BELOW:
        raise BundleError(
            f"{source.place}: these weights are whole ({_NORM} is {size:.3f} on average)",
            hint=f"leave out {base.place}",
        )


def _summed(tensors: dict[str, LazyTensor], base: WeightSource) -> tuple[dict[str, LazyTensor], list[str]]:
    """Difference plus base: rows that only one of them has stay as they are.

    Raises:
        BundleError: the base is of another size.
    """
    claim = Claim(base)
    under = below(claim.take("model.").items(), "model.") | below(claim.take("lm_head.").items(), "lm_head.")
    problems = [f"{origin.label}: not in the difference" for key, origin in under.items() if key not in tensors]
    out = dict(tensors)
    for key, origin in tensors.items():
        if key not in under:
            problems.append(f"{origin.label}: not in the base {base.place}")
            continue
        a, b = origin.shape, under[key].shape
        grows = key in ("model.embed_tokens.weight", "lm_head.weight") and a[1:] == b[1:] and a[0] >= b[0]
        if a != b and not grows:
            problems.append(f"{origin.label}: shape {list(a)}, the base has {list(b)}")
        out[key] = Difference(origin, under[key])
    return out, [*problems, *claim.rest()]


def _tower(claim: Claim, config: dict[str, Any]) -> TowerPlan:
    tensors = below(claim.take("model.vision_tower.vision_model.").items(), "vision_model.")
    hints = config.get("vision_config")
    shape = vision_config(tensors, hints if isinstance(hints, dict) else None, "quick_gelu")
    layer = config.get("mm_vision_select_layer", -1)  # the default of the published code; its recipes say -2
    if not isinstance(layer, int) or not -shape.n_layers - 1 <= layer <= shape.n_layers:
        raise BundleError(f"mm_vision_select_layer is {layer!r}; the tower has {shape.n_layers} blocks")
    return TowerPlan(shape, tensors, layer, True, PreprocessSpec("valley", shape.image_size))


@dataclass(frozen=True)
class _Modules:
    """Tensors of the projector and of the temporal modules v2 and v3, by the names of our connector."""

    projector: dict[str, LazyTensor]
    v2: dict[str, LazyTensor]
    v3: dict[str, LazyTensor]

    @classmethod
    def of(cls, claim: Claim) -> _Modules:
        v2 = below(claim.take("model.pooling_layer.").items(), "compressor.pooling_layer.")
        v3 = below(claim.take("model.transformer_delta_encoder.").items(), "compressor.encoder.")
        v3 |= below(claim.take("model.position_matrix").items(), "compressor.position_matrix")
        return cls(claim.take("model.mm_projector."), v2, v3)

    @property
    def version(self) -> str:
        """Which temporal module counts."""
        return "v3" if self.v3 else "v2" if self.v2 else "v1"

    def left_out(self, source: WeightSource) -> tuple[str, ...]:
        """A module that is there and does not count."""
        return (f"temporal module v2 of {source.place}: v3 is there, too, and counts",) if self.v2 and self.v3 else ()

    def notes(self, source: WeightSource) -> tuple[str, ...]:
        """A line where the configuration turns off what the weights hold."""
        flag = {"v3": _V3, "v2": _V2}.get(self.version, "")
        if source.config.get(flag, True):
            return ()
        return (f"{source.place}: config.json says {flag} is off; its weights are there, so {self.version} counts",)

    def plan(self, source: WeightSource, tower: VisionConfig, out_size: int) -> ConnectorPlan:
        """The connector; where both v2 and v3 are there, v3 counts, as in the published code.

        Raises:
            BundleError: the configuration names a module that is not there, or one is of an odd size.
        """
        version = self.version
        for flag, module in ((_V2, self.v2), (_V3, self.v3)):
            if source.config.get(flag) and not module:
                raise BundleError(f"{source.place}: config.json says {flag}, but the weights have no such module")
        tensors = self.projector | {"v1": {}, "v2": self.v2, "v3": self.v3}[version]
        inner, table = (tensors.get(f"compressor.{k}") for k in ("encoder.layers.0.linear1.weight", "position_matrix"))
        compressor = CompressorSpec(
            f"valley_{version}",  # type: ignore[arg-type]
            n_frames=table.shape[0] if table is not None else 2048,
            n_patches=tower.n_patches,
            n_heads=N_HEADS,
            inner_size=inner.shape[0] if inner is not None else 2048,
        )
        try:
            spec = ConnectorSpec("connector.safetensors", "linear", tower.hidden_size, out_size, compressor=compressor)
        except ValueError as e:
            raise BundleError(f"{source.place}: {e}") from e
        return ConnectorPlan(spec, tensors)


def _compat(mode: Mode, connector: ConnectorPlan, summed: bool, adapted: bool) -> CompatSpec:
    compressor = connector.spec.compressor
    assert compressor is not None
    variant = f"Valley, temporal module {compressor.type.removeprefix('valley_')}"
    variant += ", a difference added to its base" if summed else ", whole weights"
    variant += ", with a LoRA merged in" if adapted else ""
    if mode == "original":
        return CompatSpec(mode, variant, (*FOLLOWS, "prompt of the published programs, not that of tuning"), FIXED)
    said = "one prompt in tuning and use: the published programs use another system text, and name no answerer"
    return CompatSpec(mode, variant, FOLLOWS, (*FIXED, said))
