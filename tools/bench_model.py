"""Bundles with random weights in realistic shapes, and the same weights in transformers' model, for benchmarks."""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from safetensors.torch import load_file

from vidqa.encoders.preprocess import PreprocessSpec
from vidqa.model.bundle.bundle import save_bundle
from vidqa.model.bundle.spec import (
    BundleSpec,
    ConnectorSpec,
    EncoderSpec,
    EncodersSpec,
    GenerationSpec,
    LlmSpec,
    PromptSpec,
    VideoEncoderSpec,
)
from vidqa.model.connector import build_connector
from vidqa.model.llama.model import Llama
from vidqa.model.llama.weights import published_weights
from vidqa.model.onnx.export import export_tower
from vidqa.model.towers.vit import VisionConfig, VisionTower
from vidqa.model.video_llava import VideoLlava, save_parts
from vidqa.pipeline.run.loaded_model import LoadedModel
from vidqa.prompts.chat_formats import get_format
from vidqa.records import SamplingSpec


@dataclass(frozen=True)
class Shape:
    """The sizes of a tower and an LLM."""

    image_size: int
    patch_size: int
    width: int
    mlp: int
    layers: int
    heads: int
    llm_width: int
    llm_mlp: int
    llm_layers: int
    llm_heads: int
    vocabulary: int
    context: int = 4096


SHAPES = {
    "tiny": Shape(56, 14, 64, 128, 3, 4, 64, 128, 3, 4, 512),
    "vit-l-14": Shape(224, 14, 1024, 4096, 24, 16, 512, 1408, 8, 8, 4096),
    "7b": Shape(224, 14, 1024, 4096, 24, 16, 4096, 11008, 32, 32, 32064),
}


def make_clip(path: Path, seconds: int, seed: int = 0, size: tuple[int, int] = (320, 240), fps: int = 25) -> Path:
    """Write an H.264 clip of a moving texture."""
    rng = np.random.default_rng(seed)
    width, height = size
    blocks = rng.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    image = np.kron(blocks, np.ones((8, 8, 1), np.uint8))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "veryfast", "g": "50"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(seconds * fps):
            frame = av.VideoFrame.from_ndarray(np.roll(image, 3 * i, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def tokenizer(vocabulary: int) -> Any:
    """Return a tokenizer with one token per character, plus the media tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>", "<pad>", *string.printable]
    names += [chr(0x4E00 + i) for i in range(vocabulary - 2 - len(names))]  # every id decodes to another text
    made = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.add_tokens(["<image>", "<video>"], special_tokens=True)
    return fast


def tower_of(shape: Shape, seed: int) -> VisionTower:
    """Return a tower with random weights and without temporal attention."""
    torch.manual_seed(seed)
    s = shape
    return VisionTower(VisionConfig(s.image_size, s.patch_size, s.width, s.mlp, s.layers, s.heads, 64)).eval()


def llm_config(shape: Shape) -> Any:
    """Return the config of a Llama; its random weights vary enough for answers to differ."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.llm_width,
        intermediate_size=shape.llm_mlp,
        num_hidden_layers=shape.llm_layers,
        num_attention_heads=shape.llm_heads,
        max_position_embeddings=shape.context,
        initializer_range=1.5 / shape.llm_width**0.5,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )


def make_bundle(
    name: str, folder: Path, dtype: str = "float32", fp16_encoder: bool = False, device: str = "cpu"
) -> Path:
    """Write a bundle of a named shape; the LLM is initialized on `device`, because 7B take minutes on a CPU."""
    from transformers import LlamaForCausalLM

    shape = SHAPES[name]
    patches = (shape.image_size // shape.patch_size) ** 2
    common: dict[str, Any] = {"layer": -2, "hidden_size": shape.width, "embedding_size": 64, "n_patches": patches}
    common["preprocess"] = PreprocessSpec("hf", shape.image_size)
    spec = BundleSpec(
        name=name,
        encoders=EncodersSpec(
            image=EncoderSpec(file="encoders/image.onnx", n_frames=1, keep_cls=False, **common),
            video=VideoEncoderSpec(
                file="encoders/video.onnx", n_frames=8, keep_cls=True, sampling=SamplingSpec("arange", 8), **common
            ),
        ),
        connector=ConnectorSpec("connector.safetensors", "mlp2x_gelu", shape.width, shape.llm_width),
        llm=LlmSpec("llm", shape.context),
        prompt=PromptSpec("hf"),
        generation=GenerationSpec(max_new_tokens=64),
    )

    def fill(part: Path) -> None:
        (part / "encoders").mkdir(parents=True)
        video = tower_of(shape, 1)
        export_tower(video, part / "encoders/video.onnx", 8, fp16=fp16_encoder)
        # The benchmark uses no images, but a bundle needs an image encoder: a small graph of the same form will do.
        small = Shape(shape.image_size, shape.patch_size, shape.width, 64, 3, shape.heads, 1, 1, 1, 1, 1)
        export_tower(tower_of(small, 2), part / "encoders/image.onnx", 1, fp16=fp16_encoder)
        torch.manual_seed(3)
        torch.set_default_dtype(getattr(torch, dtype))
        with torch.device(device):
            llm = LlamaForCausalLM(llm_config(shape))
        connector = build_connector("mlp2x_gelu", shape.width, shape.llm_width)
        torch.set_default_dtype(torch.float32)
        model = VideoLlava(connector, llm, tokenizer(shape.vocabulary), get_format("hf"), shape.context)
        save_parts(model, part / "connector.safetensors", part / "llm")

    save_bundle(folder, spec, fill)
    return folder


def llm_weights(llm: Any, bundle: Path) -> dict[str, torch.Tensor]:
    """Return the LLM's weights by their published names, read from the bundle if they are packed for a CPU."""
    if not isinstance(llm, Llama):
        return dict(llm.state_dict())
    if not llm.packed:
        return published_weights(llm)
    return {
        name: value
        for file in sorted((bundle / "llm").glob("*.safetensors"))
        for name, value in load_file(file).items()
    }


def to_transformers(model: LoadedModel, name: str, bundle: Path) -> Any:
    """Build VideoLlavaForConditionalGeneration; it shares the projector and, on a GPU, the LLM with the bundle."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, VideoLlavaConfig, VideoLlavaForConditionalGeneration

    shape, llava = SHAPES[name], model.llava
    vision = CLIPVisionConfig(
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        image_size=shape.image_size,
        patch_size=shape.patch_size,
        projection_dim=64,
        hidden_act="gelu",
    )
    ids = {f"{kind}_token_index": llava.tokenizer.convert_tokens_to_ids(f"<{kind}>") for kind in ("image", "video")}
    config = VideoLlavaConfig(vision_config=vision, text_config=llm_config(shape), vision_feature_layer=-2, **ids)
    config.video_seq_length = 8 * ((shape.image_size // shape.patch_size) ** 2 + 1)
    with torch.device("meta"):
        theirs = VideoLlavaForConditionalGeneration(config)
    video = CLIPVisionModel(vision)
    ours = tower_of(shape, 1).state_dict()
    names = video.state_dict()
    # Versions of transformers differ in one prefix of the names.
    bare = {k.removeprefix("vision_model."): v for k, v in ours.items()}
    video.load_state_dict({k: bare[k.removeprefix("vision_model.")] for k in names})
    theirs.model.video_tower = video.to(llava.device, llava.dtype)
    theirs.model.image_tower = video
    decoder = theirs.model.language_model
    weights = llm_weights(llava.llm, bundle)
    head = weights.pop("lm_head.weight")
    decoder.load_state_dict({name.removeprefix("model."): value for name, value in weights.items()}, assign=True)
    decoder.rotary_emb = type(decoder.rotary_emb)(decoder.config).to(llava.device)  # has no saved buffers
    theirs.lm_head.weight = torch.nn.Parameter(head, requires_grad=False)
    projector = theirs.model.multi_modal_projector
    projector.linear_1, projector.linear_2 = [m for m in llava.connector.modules() if isinstance(m, torch.nn.Linear)]
    theirs.generation_config.eos_token_id = 2
    theirs.generation_config.pad_token_id = 3
    return theirs.eval()
