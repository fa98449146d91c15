"""Export of a bundle without temporal attention as a folder for transformers' VideoLlava, with its processor.

The weights of the towers are read from the ONNX graphs, and the outputs of the exported towers are compared with those
of the graphs.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidqa.encoders.onnx_session import OnnxSession
from vidqa.encoders.preprocess import PreprocessSpec
from vidqa.errors import VidqaError
from vidqa.model.bundle.bundle import Bundle
from vidqa.model.bundle.spec import EncoderSpec
from vidqa.model.onnx.weights_from_onnx import GraphWeights, read_graph
from vidqa.model.video_llava import VideoLlava, load_model

_TOLERANCE = 2e-2  # relative; the graphs return float16
_PROJECTOR = {"0.": "linear_1.", "2.": "linear_2."}
_TAGS = ("<image>", "<video>")
#: What VideoLlava does with images and videos before it resizes and crops them.
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")


def exportable(bundle: Bundle) -> tuple[GraphWeights, GraphWeights]:
    """Read the image tower and the video tower, if transformers' VideoLlava supports them.

    Raises:
        VidqaError: a tower has temporal attention, or the connector or the use of class tokens is not supported.
    """
    spec = bundle.spec
    if spec.connector.type != "mlp2x_gelu" or getattr(spec.connector, "compressor", None) is not None:
        raise VidqaError("transformers' VideoLlava supports only the connector mlp2x_gelu")
    if spec.encoders.image.keep_cls or not spec.encoders.video.keep_cls:
        raise VidqaError(
            "transformers' VideoLlava requires that the class token is dropped for images and kept for videos"
        )
    return read_graph(bundle.image_graph), read_graph(bundle.video_graph)


def export_transformers(bundle: Bundle, folder: Path) -> None:
    """Write a complete folder under a temporary name and rename it; an existing folder is replaced.

    The processor resizes and crops as transformers' VideoLlava does, which equals the preprocessing of bundles in mode
    `hf`. It expects the frames of a video, already sampled.

    Raises:
        VidqaError: see `exportable`, or an exported tower differs from that of the bundle.
    """
    towers = dict(zip(("image", "video"), exportable(bundle), strict=True))
    model = load_model(bundle, "cpu")
    exported = _empty_model(bundle, model, towers["image"])
    weights = {f"model.multi_modal_projector.{_PROJECTOR[k[:2]]}{k[2:]}": v
               for k, v in model.connector.state_dict().items()}  # fmt: skip
    weights |= {f"model.{kind}_tower.{n}": t for kind, tower in towers.items() for n, t in tower.tensors.items()}
    weights |= {f"model.language_model.{n}": t for n, t in model.llm.get_decoder().state_dict().items()}
    weights["lm_head.weight"] = model.llm.get_output_embeddings().weight
    _load(exported, weights)
    for kind, graph in (("image", bundle.image_graph), ("video", bundle.video_graph)):
        _compare(exported, kind, graph, getattr(bundle.spec.encoders, kind))
    _add_media_tokens(exported, model.tokenizer)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    exported.generation_config.eos_token_id = _end_tokens(model)
    exported.save_pretrained(part)
    model.tokenizer.save_pretrained(part)
    _write_processor(bundle, exported.config.vision_config.patch_size, part)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def _empty_model(bundle: Bundle, model: VideoLlava, tower: GraphWeights) -> Any:
    """Create a VideoLlava of transformers with the sizes of the bundle and random weights."""
    from transformers import CLIPVisionConfig, VideoLlavaConfig, VideoLlavaForConditionalGeneration

    image, video = bundle.spec.encoders.image, bundle.spec.encoders.video
    patch = tower.tensors["vision_model.embeddings.patch_embedding.weight"].shape[-1]
    layers = {n.split(".")[3] for n in tower.tensors if n.startswith("vision_model.encoder.layers.")}
    vision = CLIPVisionConfig(
        hidden_size=image.hidden_size,
        intermediate_size=len(tower.tensors["vision_model.encoder.layers.0.mlp.fc1.bias"]),
        num_hidden_layers=len(layers),
        num_attention_heads=tower.n_heads,
        image_size=image.preprocess.image_size,
        patch_size=patch,
        hidden_act=tower.hidden_act,
        layer_norm_eps=tower.layer_norm_eps,
    )
    config = VideoLlavaConfig(
        vision_config=vision,
        text_config=model.llm.config,
        vision_feature_layer=image.layer,
        image_seq_length=image.n_patches,
        video_seq_length=video.n_frames * (video.n_patches + 1),
        tie_word_embeddings=bool(model.llm.config.tie_word_embeddings),
    )
    return VideoLlavaForConditionalGeneration(config).eval()


def _load(exported: Any, weights: dict[str, Tensor]) -> None:
    """Load all weights; releases of transformers differ in one level of the names of CLIP."""
    expected = exported.state_dict()
    renamed = {}
    for name, weight in weights.items():
        short = name.replace("_tower.vision_model.", "_tower.")
        renamed[name if name in expected else short] = weight
    ignored = {n for n in expected if n.endswith("position_ids")}
    missing, spare = expected.keys() - renamed.keys() - ignored, renamed.keys() - expected.keys()
    if missing or spare:
        raise VidqaError(
            f"transformers' VideoLlava lacks {sorted(missing)[:3]}; unexpected in the bundle: {sorted(spare)[:3]}"
        )
    exported.load_state_dict(renamed, strict=False)


@torch.no_grad()
def _compare(exported: Any, kind: str, graph: Path, spec: EncoderSpec) -> None:
    """Check that an exported tower returns the same hidden states as its graph."""
    size = spec.preprocess.image_size
    values = np.random.default_rng(0).standard_normal((1, spec.n_frames, 3, size, size)).astype(np.float32)
    expected = torch.from_numpy(OnnxSession(graph, "cpu").run(values)[0]).float().flatten(0, 1)
    tower = getattr(exported.model, f"{kind}_tower")
    returned = tower(torch.from_numpy(values[0]), output_hidden_states=True).hidden_states[spec.layer]
    error = float((returned - expected).abs().max() / expected.abs().max())
    if returned.shape != expected.shape or not error < _TOLERANCE:
        raise VidqaError(f"the {kind} tower for transformers differs from {graph.name} by {error:.3g} (relative)")


def _end_tokens(model: VideoLlava) -> list[int]:
    """Return the ids that end an answer: those of the LLM's generation settings and that of its tokenizer."""
    named = getattr(model.llm.generation_config, "eos_token_id", None)
    ids = [*(named if isinstance(named, list) else [named]), model.tokenizer.eos_token_id]
    return [token for token in dict.fromkeys(ids) if token is not None]


def _write_processor(bundle: Bundle, patch_size: int, folder: Path) -> None:
    """Write the settings that `AutoProcessor` reads.

    They are written directly, because transformers creates a video processor only where torchvision is installed.
    """
    encoders = bundle.spec.encoders
    files: dict[str, dict[str, Any]] = {
        "preprocessor_config.json": {
            "image_processor_type": "VideoLlavaImageProcessor",
            **_preprocessing(encoders.image.preprocess),
        },
        "video_preprocessor_config.json": {
            "video_processor_type": "VideoLlavaVideoProcessor",
            "do_sample_frames": False,
            **_preprocessing(encoders.video.preprocess),
        },
        "processor_config.json": {
            "image_token": _TAGS[0],
            "video_token": _TAGS[1],
            "patch_size": patch_size,
            "num_additional_image_tokens": 1,  # the class token, which `default` drops for images
            "vision_feature_select_strategy": "default",
        },
    }
    for name, settings in files.items():
        text = json.dumps({"processor_class": "VideoLlavaProcessor", **settings}, indent=2) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


def _preprocessing(spec: PreprocessSpec) -> dict[str, Any]:
    size = spec.image_size
    return dict.fromkeys(_STEPS, True) | {
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        "resample": 3,  # bicubic
        "rescale_factor": 1 / 255,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    }


def _add_media_tokens(exported: Any, tokenizer: Any) -> None:
    """Add the two media tokens of VideoLlava if the tokenizer lacks them; their embeddings are never used."""
    tokenizer.add_tokens([tag for tag in _TAGS if tag not in tokenizer.get_vocab()], special_tokens=True)
    if len(tokenizer) > exported.get_input_embeddings().weight.shape[0]:
        exported.resize_token_embeddings(len(tokenizer))
    ids = [tokenizer.convert_tokens_to_ids(tag) for tag in _TAGS]
    exported.config.image_token_index, exported.config.video_token_index = ids
