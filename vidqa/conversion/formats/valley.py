"""Valley: one folder with LLM, projector, temporal module and CLIP tower, complete or as delta weights to LLaMA.

The version of the temporal module (v1, v2, v3) is derived from the keys. Sources: Valley 83d794f,
valley/model/valley_model.py and apply_delta.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from vidqa.common.foreign_files import JsonSettings
from vidqa.conversion.detect import CheckpointParts
from vidqa.conversion.formats.clip_towers import vision_config
from vidqa.conversion.formats.language_model import llm_plan
from vidqa.conversion.lazy_tensors import IGNORED_KEYS, DeltaApplied, LazyTensor, StateDict, add_prefix
from vidqa.conversion.lora_merge import merge_lora
from vidqa.conversion.plan import ConnectorPlan, ConversionPlan, Mode, TowerPlan
from vidqa.conversion.sources import WeightSource
from vidqa.conversion.special_tokens import check_token_ids, tokens_of
from vidqa.encoders.preprocess import PreprocessSpec
from vidqa.errors import BundleError
from vidqa.model.bundle.spec import CompatSpec, CompressorSpec, ConnectorSpec, GenerationSpec, PromptSpec
from vidqa.model.towers.vit import VisionConfig
from vidqa.records import SamplingSpec

NAME = "valley"
N_FRAMES = 8
#: Number of heads of the temporal module v3; its other sizes follow from its weights.
N_HEADS = 8
#: A copy of a layer that the original never uses; the misspelling is the original's.
UNUSED = (r"model\.transforemr_adding_layer\..*",)
#: Settings that enable the temporal modules.
_V2, _V3 = "use_patch_importance_pooling", "use_delta_transformer"
_NORM = "model.norm.weight"
#: Mean absolute weight of the last norm: about 1 or more in a LLaMA, close to 0 in delta weights.
_DELTA_BELOW = 0.25

FOLLOWS = (
    f"frames: numpy's linspace, {N_FRAMES} of them, both ends included",
    "videos: Pillow's bilinear resize to 8/7 of the side, center crop; images: bicubic to the side, center crop",
    "tokens: hidden state that the configuration names, class token kept, all projected before they are pooled",
    "visual tokens: patch tokens pooled over time, then the class token of each frame, both between special tokens",
    "an image is a video of one frame",
)
FIXED = (
    "a question without a video is answered; the published code drops it, or fails",
    "special tokens and the number of frames always agree; the published code leaves slots unfilled if they do not",
    "several videos in one prompt each have their own tokens; the published code uses those of the first for all",
    "an answer that starts with ### continues; the published programs stop there",
)


def matches(parts: CheckpointParts) -> bool:
    """Return whether the parts are a model with a CLIP tower inside, with or without a base and a LoRA adapter."""
    model = parts.get("llava")
    return (
        model is not None
        and model.has_key(r"model\.vision_tower\.vision_model\.")
        and parts.kinds <= {"llava", "llm", "lora"}
    )


def make_plan(parts: CheckpointParts, mode: Mode) -> ConversionPlan:
    """Plan Valley.

    Raises:
        BundleError: a part is missing or inconsistent; delta weights without their base, or a base for complete
            weights; a separate tower.
    """
    source, base = parts.get("llava"), parts.get("llm")
    assert source is not None  # matches() has checked it
    if parts.towers:
        raise BundleError(
            f"{source.path}: Valley was trained with the CLIP tower inside the checkpoint, which cannot be replaced",
            hint="run again without --towers",
        )
    state = StateDict(source, (*IGNORED_KEYS, *UNUSED))
    _check_delta(source, base)
    tower = _tower(state, source.config)
    modules = _Modules.of(state)
    tensors = add_prefix(state.pop_prefix("model."), "model.") | add_prefix(state.pop_prefix("lm_head."), "lm_head.")
    unexpected_keys = state.unexpected_keys()
    if base:
        tensors, more = _apply_delta(tensors, base)
        unexpected_keys += more
    if adapter := parts.get("lora"):
        tensors, more = merge_lora(tensors, adapter, source.config.flag("tie_word_embeddings"))
        unexpected_keys += more
    llm = llm_plan(source.config, tensors, source.folder)
    connector = modules.plan(source, tower.config, llm.config.hidden_size)
    check_token_ids(llm, dict.fromkeys(tokens_of("valley")))
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
        unexpected_keys=unexpected_keys,
        architecture="valley",
        ignored=modules.ignored(source),
        notes=modules.notes(source),
    )


def _check_delta(source: WeightSource, base: WeightSource | None) -> None:
    """Check that a base was passed if, and only if, the weights are a delta. The mean of the last norm shows that."""
    if _NORM not in source.tensors:
        raise BundleError(f"{source.path}: {_NORM}: missing")
    size = float(source.read(_NORM).float().abs().mean())
    if base is None and size < _DELTA_BELOW:
        raise BundleError(
            f"{source.path}: these are delta weights ({_NORM} has a mean of {size:.3f})",
            hint="add the folder of the LLaMA they were computed against",
        )
    if base is not None and size >= _DELTA_BELOW:
        raise BundleError(
            f"{source.path}: these are complete weights, not a delta ({_NORM} has a mean of {size:.3f})",
            hint=f"run again without {base.path}",
        )


def _apply_delta(tensors: dict[str, LazyTensor], base: WeightSource) -> tuple[dict[str, LazyTensor], list[str]]:
    """Add delta weights to their base; rows that only the delta has stay as they are."""
    state = StateDict(base)
    base_tensors = add_prefix(state.pop_prefix("model."), "model.") | add_prefix(
        state.pop_prefix("lm_head."), "lm_head."
    )
    problems = [
        f"{tensor.label}: not in the delta weights" for key, tensor in base_tensors.items() if key not in tensors
    ]
    out = dict(tensors)
    for key, tensor in tensors.items():
        if key not in base_tensors:
            problems.append(f"{tensor.label}: not in the base {base.path}")
            continue
        a, b = tensor.shape, base_tensors[key].shape
        grows = key in ("model.embed_tokens.weight", "lm_head.weight") and a[1:] == b[1:] and a[0] >= b[0]
        if a != b and not grows:
            problems.append(f"{tensor.label}: shape {list(a)}, the base has {list(b)}")
        out[key] = DeltaApplied(tensor, base_tensors[key])
    return out, [*problems, *state.unexpected_keys()]


def _tower(state: StateDict, config: JsonSettings) -> TowerPlan:
    tensors = add_prefix(state.pop_prefix("model.vision_tower.vision_model."), "vision_model.")
    shape = vision_config(tensors, config.section("vision_config"), "quick_gelu")
    # The default of the published code; its own training scripts set -2.
    layer = config.whole("mm_vision_select_layer", -1, -shape.n_layers - 1, shape.n_layers)
    return TowerPlan(shape, tensors, layer, True, PreprocessSpec("valley", shape.image_size))


@dataclass(frozen=True)
class _Modules:
    """Tensors of the projector and of the temporal modules v2 and v3, under the keys of `build_connector`'s module."""

    projector: dict[str, LazyTensor]
    v2: dict[str, LazyTensor]
    v3: dict[str, LazyTensor]

    @classmethod
    def of(cls, state: StateDict) -> _Modules:
        v2 = add_prefix(state.pop_prefix("model.pooling_layer."), "compressor.pooling_layer.")
        v3 = add_prefix(state.pop_prefix("model.transformer_delta_encoder."), "compressor.encoder.")
        v3 |= add_prefix(state.pop_prefix("model.position_matrix"), "compressor.position_matrix")
        return cls(state.pop_prefix("model.mm_projector."), v2, v3)

    @property
    def version(self) -> str:
        """The temporal module that is used."""
        return "v3" if self.v3 else "v2" if self.v2 else "v1"

    def ignored(self, source: WeightSource) -> tuple[str, ...]:
        """Return a note about a module that exists but is not used."""
        return (f"temporal module v2 of {source.path}: not used, since v3 exists too",) if self.v2 and self.v3 else ()

    def notes(self, source: WeightSource) -> tuple[str, ...]:
        """Return a note if the configuration disables a module whose weights exist."""
        flag = {"v3": _V3, "v2": _V2}.get(self.version, "")
        if source.config.get(flag, True):
            return ()
        return (f"{source.path}: config.json disables {flag}, but its weights exist, so {self.version} is used",)

    def plan(self, source: WeightSource, tower: VisionConfig, out_size: int) -> ConnectorPlan:
        """Plan the connector; if both v2 and v3 exist, v3 is used, as in the published code.

        Raises:
            BundleError: the configuration enables a module without weights, or a module has an invalid size.
        """
        version = self.version
        for flag, module in ((_V2, self.v2), (_V3, self.v3)):
            if source.config.get(flag) and not module:
                raise BundleError(f"{source.path}: config.json enables {flag}, but the weights have no such module")
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
            raise BundleError(f"{source.path}: {e}") from e
        return ConnectorPlan(spec, tensors)


def _compat(mode: Mode, connector: ConnectorPlan, has_base: bool, has_lora: bool) -> CompatSpec:
    compressor = connector.spec.compressor
    assert compressor is not None
    variant = f"Valley, temporal module {compressor.type.removeprefix('valley_')}"
    variant += ", delta weights added to their base" if has_base else ", complete weights"
    variant += ", with a LoRA merged in" if has_lora else ""
    if mode == "original":
        return CompatSpec(mode, variant, (*FOLLOWS, "prompt of the published programs, not that of training"), FIXED)
    prompt = (
        "same prompt in training and inference: the published programs use another system prompt and no answer role"
    )
    return CompatSpec(mode, variant, FOLLOWS, (*FIXED, prompt))
