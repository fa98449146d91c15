"""A bundle without temporal attention -> a VideoLlava folder of transformers.

The towers are taken out of the graphs and compared with them, so that what is written sees what the bundle sees.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidqa.encoders.onnx_session import OnnxSession
from vidqa.errors import VidqaError
from vidqa.model.bundle.bundle import Bundle
from vidqa.model.bundle.spec import EncoderSpec
from vidqa.model.onnx.weights_from_onnx import GraphWeights, read_graph
from vidqa.model.video_llava import VideoLlava, load_model

_TOLERANCE = 2e-2  # relative; the graphs give float16
_PROJECTOR = {"0.": "linear_1.", "2.": "linear_2."}
_TAGS = ("<image>", "<video>")


def exportable(bundle: Bundle) -> tuple[GraphWeights, GraphWeights]:
    """The towers of a bundle that transformers' VideoLlava can hold.

    Raises:
        VidqaError: it cannot, and why: temporal attention, another connector, other tokens.
    """
    spec = bundle.spec
    if spec.connector.type != "mlp2x_gelu" or getattr(spec.connector, "compressor", None) is not None:
        raise VidqaError("transformers' VideoLlava has a connector of two layers, mlp2x_gelu, and no other")
    if spec.encoders.image.keep_cls or not spec.encoders.video.keep_cls:
        raise VidqaError("transformers' VideoLlava drops the class token of pictures and keeps that of clips")
    return read_graph(bundle.image_graph), read_graph(bundle.video_graph)


def to_transformers(bundle: Bundle, folder: Path) -> None:
    """Write the folder, whole or not at all; one that is there is replaced.

    Raises:
        VidqaError: as `exportable`, or what comes out does not see what the bundle sees.
    """
    towers = dict(zip(("image", "video"), exportable(bundle), strict=True))
    model = load_model(bundle, "cpu")
    port = _port(bundle, model, towers["image"])
    weights = {f"model.multi_modal_projector.{_PROJECTOR[k[:2]]}{k[2:]}": v
               for k, v in model.connector.state_dict().items()}  # fmt: skip
    weights |= {f"model.{kind}_tower.{n}": t for kind, tower in towers.items() for n, t in tower.tensors.items()}
    weights |= {f"model.language_model.{n}": t for n, t in model.llm.get_decoder().state_dict().items()}
    weights["lm_head.weight"] = model.llm.get_output_embeddings().weight
    _load(port, weights)
    for kind, graph in (("image", bundle.image_graph), ("video", bundle.video_graph)):
        _compare(port, kind, graph, getattr(bundle.spec.encoders, kind))
    _make_room_for_tags(port, model.tokenizer)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    port.save_pretrained(part)
    model.tokenizer.save_pretrained(part)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def _port(bundle: Bundle, model: VideoLlava, tower: GraphWeights) -> Any:
    """An empty VideoLlava of the right shape."""
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


def _load(port: Any, weights: dict[str, Tensor]) -> None:
    """Every place of the port gets its weight; releases differ in a level of CLIP's names."""
    own = port.state_dict()
    renamed = {}
    for name, weight in weights.items():
        short = name.replace("_tower.vision_model.", "_tower.")
        renamed[name if name in own else short] = weight
    ignored = {n for n in own if n.endswith("position_ids")}
    missing, spare = own.keys() - renamed.keys() - ignored, renamed.keys() - own.keys()
    if missing or spare:
        raise VidqaError(
            f"transformers' VideoLlava wants {sorted(missing)[:3]}, the bundle has {sorted(spare)[:3]} left"
        )
    port.load_state_dict(renamed, strict=False)


@torch.no_grad()
def _compare(port: Any, kind: str, graph: Path, spec: EncoderSpec) -> None:
    """See that a tower of the port gives what the graph gives."""
    size = spec.preprocess.image_size
    values = np.random.default_rng(0).standard_normal((1, spec.n_frames, 3, size, size)).astype(np.float32)
    want = torch.from_numpy(OnnxSession(graph, "cpu").run(values)[0]).float().flatten(0, 1)
    tower = getattr(port.model, f"{kind}_tower")
    got = tower(torch.from_numpy(values[0]), output_hidden_states=True).hidden_states[spec.layer]
    error = float((got - want).abs().max() / want.abs().max())
    if got.shape != want.shape or not error < _TOLERANCE:
        raise VidqaError(f"the {kind} tower for transformers differs from {graph.name} by {error:.3g} (relative)")


def _make_room_for_tags(port: Any, tokenizer: Any) -> None:
    """The port marks media by two tokens; a tokenizer that lacks them gets them, with rows that mean nothing yet."""
    tokenizer.add_tokens([tag for tag in _TAGS if tag not in tokenizer.get_vocab()], special_tokens=True)
    if len(tokenizer) > port.get_input_embeddings().weight.shape[0]:
        port.resize_token_embeddings(len(tokenizer))
    ids = [tokenizer.convert_tokens_to_ids(tag) for tag in _TAGS]
    port.config.image_token_index, port.config.video_token_index = ids
