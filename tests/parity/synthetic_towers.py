"""Synthetic fixtures of LanguageBind's towers, the original Video-LLaVA and its transformers port."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from synthetic_fixtures import N_NEW, Tensors, llama, outputs_of, randomize, write
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    LlamaConfig,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

EPS = {"layer_norm_eps": 1e-5}
TEXT = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
TEXT |= {"vocab_size": 33, "max_position_embeddings": 9, "projection_dim": 14, "hidden_act": "gelu"}
TEXT |= {"bos_token_id": 31, "eos_token_id": 32, "pad_token_id": 32}


def write_languagebind_image(folder: Path) -> None:
    vision = {"hidden_size": 30, "intermediate_size": 44, "num_hidden_layers": 4, "num_attention_heads": 5}
    vision |= {"image_size": 20, "patch_size": 5, "projection_dim": 14, "hidden_act": "gelu"}
    text = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
    text |= {"vocab_size": 33, "max_position_embeddings": 9, "projection_dim": 14, "hidden_act": "gelu"}
    text |= {"bos_token_id": 31, "eos_token_id": 32, "pad_token_id": 32}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=14)).eval()
    weights = randomize(model, 11)
    rng = torch.Generator().manual_seed(12)
    pixels = torch.randn(3, 3, 20, 20, generator=rng).half()
    ids = torch.randint(0, 31, (2, 9), generator=rng)
    ids[:, 5:] = 32
    mask = (torch.arange(9)[None] <= torch.tensor([[5], [7]])).long()
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask, pixel_values=pixels.float())
        states = model.vision_model(pixels.float(), output_hidden_states=True).hidden_states
    found = {"image_embeds": out.image_embeds, "text_embeds": out.text_embeds, "tower_select_patch": states[-2][:, 1:]}
    found |= {f"vision_hidden_states_{i}": s for i, s in enumerate(states)}
    tensors = {f"weights/{k}": v for k, v in weights.items()} | {f"out/{k}": v for k, v in found.items()}
    tensors |= {"in/pixel_values": pixels, "in/input_ids": ids, "in/attention_mask": mask}
    eps = {"layer_norm_eps": 1e-5}
    config = {"vision": vision | eps, "text": text | eps, "logit_scale": float(weights["logit_scale"])}
    write(folder, "languagebind_image", {"config": config}, tensors)


def tower_weights(c: dict[str, Any], seed: int) -> Tensors:
    """Weights of a vision tower by LanguageBind's names, those of time where the configuration has `num_frames`."""
    width, inner, n_positions = c["hidden_size"], c["intermediate_size"], (c["image_size"] // c["patch_size"]) ** 2 + 1
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (width,),
        "embeddings.patch_embedding.weight": (width, 3, c["patch_size"], c["patch_size"]),
        "embeddings.position_embedding.weight": (n_positions, width),
    }
    norms, linears = ["pre_layrnorm", "post_layernorm"], []
    for i in range(c["num_hidden_layers"]):
        layer = f"encoder.layers.{i}."
        norms += [f"{layer}layer_norm1", f"{layer}layer_norm2"]
        attentions = ["self_attn"]
        if c.get("add_time_attn"):
            shapes[f"{layer}temporal_embedding"] = (1, c["num_frames"], width)
            norms.append(f"{layer}temporal_layer_norm1")
            attentions.append("temporal_attn")
        linears += [(f"{layer}{a}.{p}_proj", width, width) for a in attentions for p in ("q", "k", "v", "out")]
        linears += [(f"{layer}mlp.fc1", inner, width), (f"{layer}mlp.fc2", width, inner)]
    for name, n_out, n_in in linears:
        shapes |= {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}
    rng = torch.Generator().manual_seed(seed)
    weights = {key: torch.randn(shape, generator=rng) * 0.25 for key, shape in shapes.items()}
    for name in norms:
        weights[f"{name}.weight"] = torch.randn(width, generator=rng) * 0.25 + 1
        weights[f"{name}.bias"] = torch.randn(width, generator=rng) * 0.25
    return weights


def tower_states(
    w: Tensors, c: dict[str, Any], pixels: Tensor, act: str, time: bool = True
) -> tuple[list[Tensor], Any]:
    """The tower, written after the original class.

    Args:
        w: as from `tower_weights`.
        c: its configuration.
        pixels: float [B, T, 3, S, S].
        act: `gelu` or `quick_gelu`.
        time: whether frames attend to each other.

    Returns:
        Hidden states [B, T, 1 + P, D], one more than there are layers, and the pooled state [B, D].
    """
    b, t = pixels.shape[:2]
    group = c["num_frames"] if time and c.get("add_time_attn") else 0

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def attend(name: str, x: Tensor) -> Tensor:
        q, k, v = (
            linear(f"{name}.{p}_proj", x).unflatten(-1, (c["num_attention_heads"], -1)).transpose(1, 2) for p in "qkv"
        )
        mixed = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v
        return linear(f"{name}.out_proj", mixed.transpose(1, 2).flatten(-2))

    patches = F.conv2d(pixels.flatten(0, 1), w["embeddings.patch_embedding.weight"], stride=c["patch_size"])
    start = w["embeddings.class_embedding"].expand(b * t, 1, -1)
    x = torch.cat([start, patches.flatten(2).transpose(1, 2)], 1) + w["embeddings.position_embedding.weight"]
    x = norm("pre_layrnorm", x)
    states = [x]
    for i in range(c["num_hidden_layers"]):
        layer = f"encoder.layers.{i}."
        if group:
            n = x.shape[1]
            y = x.unflatten(0, (-1, group)).transpose(1, 2).flatten(0, 1)  # one row per patch position of each group
            y = y + w[f"{layer}temporal_embedding"]
            y = y + attend(f"{layer}temporal_attn", norm(f"{layer}temporal_layer_norm1", y))
            x = y.unflatten(0, (-1, n)).transpose(1, 2).flatten(0, 1)
        x = x + attend(f"{layer}self_attn", norm(f"{layer}layer_norm1", x))
        inner = linear(f"{layer}mlp.fc1", norm(f"{layer}layer_norm2", x))
        inner = F.gelu(inner) if act == "gelu" else inner * torch.sigmoid(1.702 * inner)
        x = x + linear(f"{layer}mlp.fc2", inner)
        states.append(x)
    pooled = norm("post_layernorm", x[:, 0]).unflatten(0, (b, t)).mean(1)
    return [s.unflatten(0, (b, t)) for s in states], pooled


@torch.no_grad()
def write_languagebind_video(folder: Path) -> None:
    vision = {"hidden_size": 40, "intermediate_size": 52, "num_hidden_layers": 2, "num_attention_heads": 5}
    vision |= {"image_size": 18, "patch_size": 6, "projection_dim": 14, "hidden_act": "gelu"}
    vision |= {"add_time_attn": True, "num_frames": 3}
    weights = tower_weights(vision, 21)
    rng = torch.Generator().manual_seed(22)
    projection, scale = torch.randn(14, 40, generator=rng) * 0.25, torch.tensor(2.1)
    pixels = torch.randn(3, 3, 3, 18, 18, generator=rng).half()  # [B, 3, T, S, S]
    ids = torch.randint(0, 31, (4, 9), generator=rng)
    ids[:, 6:] = 32
    mask = torch.ones_like(ids)
    frames = pixels.float().transpose(1, 2)
    texts = {}
    for act in ("gelu", "quick_gelu"):
        model = CLIPTextModelWithProjection(CLIPTextConfig(**TEXT | {"hidden_act": act})).eval()
        text_weights = randomize(model, 23)
        texts[act] = F.normalize(model(input_ids=ids, attention_mask=mask).text_embeds, dim=-1)
    found = {"text_embeds": texts["gelu"], "wrapper_temp_language": texts["gelu"]}
    for prefix, act in (("", "gelu"), ("quick_gelu/", "quick_gelu")):
        states, pooled = tower_states(weights, vision, frames, act)
        embeds = F.normalize(pooled @ projection.T, dim=-1)
        logits = scale.exp() * embeds @ texts[act].T
        found |= {f"{prefix}vision_hidden_states_{i}": s for i, s in enumerate(states)}
        found |= {f"{prefix}vision_pooled": pooled, f"{prefix}image_features_unnormalised": pooled @ projection.T}
        found |= {f"{prefix}image_embeds": embeds, f"{prefix}logits_per_image": logits}
        found[f"{prefix}logits_per_text"] = logits.T
        if not prefix:
            found |= {"wrapper_notemp_video": embeds, "wrapper_temp_video": embeds * scale.exp()}
    states, pooled = tower_states(weights, vision, frames, "gelu", time=False)
    found |= {"no_temporal/vision_hidden_states_-2": states[-2], "no_temporal/vision_pooled": pooled}
    states, pooled = tower_states(weights, vision, frames[:2].flatten(0, 1)[None], "gelu")  # one video, two groups
    found |= {"t6/vision_hidden_states_-2": states[-2], "t6/vision_pooled": pooled}
    tensors = {f"weights/vision_model.{k}": v for k, v in weights.items()} | {
        f"weights/{k}": v for k, v in text_weights.items()
    }
    tensors |= {"weights/visual_projection.weight": projection, "weights/logit_scale": scale}
    tensors |= {f"out/{k}": v for k, v in found.items()}
    tensors |= {"in/pixel_values": pixels, "in/input_ids": ids, "in/attention_mask": mask}
    config = {"vision": vision | EPS, "text": TEXT | EPS, "logit_scale": float(scale)}
    write(folder, "languagebind_video", {"config": config}, tensors)


@torch.no_grad()
def write_video_llava_forward(folder: Path) -> None:
    n_frames, placeholder, width, out_width = 4, -200, 36, 56
    config, llm, weights = llama(out_width, 80, 7, 31)
    common = {"hidden_size": width, "num_attention_heads": 3, "image_size": 15, "patch_size": 5, "projection_dim": 6}
    common |= {"hidden_act": "gelu", **EPS}
    vision = {
        "image_tower": common | {"intermediate_size": 60, "num_hidden_layers": 4},
        "video_tower": common | {"intermediate_size": 44, "num_hidden_layers": 3} | {"add_time_attn": True},
    }
    vision["video_tower"]["num_frames"] = n_frames
    towers = {kind: tower_weights(vision[f"{kind}_tower"], 32 + i) for i, kind in enumerate(("image", "video"))}
    projector = torch.nn.Sequential(
        torch.nn.Linear(width, out_width), torch.nn.GELU(), torch.nn.Linear(out_width, out_width)
    )
    tensors: Tensors = {f"weights/{k}": v for k, v in weights.items()}
    tensors |= {f"weights/model.mm_projector.{k}": v for k, v in randomize(projector, 34).items()}
    tensors |= {f"weights/model.{k}_tower.{k}_tower.{n}": v for k, own in towers.items() for n, v in own.items()}
    rng = torch.Generator().manual_seed(35)
    visual: dict[str, list[Tensor]] = {}
    for name in ("image", "image2", "video"):
        kind = name.rstrip("2")
        pixels = torch.randn(3, *((n_frames,) if kind == "video" else ()), 15, 15, generator=rng)
        tensors[f"in/{name}"] = pixels
        frames = pixels.transpose(0, 1)[None] if kind == "video" else pixels[None, None]
        tokens = tower_states(towers[kind], vision[f"{kind}_tower"], frames, "gelu")[0][-2]
        tokens = tokens if kind == "video" else tokens[:, 0, 1:]
        visual[name] = [*projector(tokens)[0]] if kind == "video" else [projector(tokens)[0]]
        tensors |= {f"out/{name}_tower_features": tokens, f"out/{name}_projected": projector(tokens)}
    media = {"video": ["video"], "image": ["image"], "text": [], "video_image": ["video", "image"]}
    media |= {"image_video": ["image", "video"], "two_images": ["image", "image2"]}
    rows = {}
    for i, (case, names) in enumerate(media.items()):
        words = torch.randint(3, 80, (6 + i,), generator=rng).tolist()
        ids = [1]
        for name in names:
            ids += [placeholder] * len(visual[name]) + words[:2]
        ids = torch.tensor([ids + words])
        left = iter([frame for name in names for frame in visual[name]])
        embeds = torch.cat(
            [next(left) if n == placeholder else llm.model.embed_tokens(torch.tensor([n])) for n in ids[0].tolist()]
        )
        labels = torch.full((1, len(embeds)), -100)
        labels[:, -3:] = ids[:, -3:]
        rows[case] = (ids, embeds, labels)
        tensors |= {f"in/{case}/input_ids": ids, f"out/{case}/labels": labels}
        results = outputs_of(llm, embeds[None]) | {"loss": loss_of(llm, [embeds], [labels[0]])}
        results |= {"attention_mask": torch.ones_like(labels)} | ({"inputs_embeds": embeds[None]} if names else {})
        tensors |= {f"out/{case}/{k}": v for k, v in results.items()}
    write_batch(tensors, llm, [rows[case] for case in ("image", "video", "text")])
    meta = {
        "config": {
            "llm": config,
            "vision": vision,
            "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_layer": -2,
            "mm_hidden_size": width,
            "image_token_index": placeholder,
        },
        "media": {case: {"images_list": names} for case, names in media.items()},
    }
    write(folder, "video_llava_forward", meta, tensors)


def write_batch(tensors: Tensors, llm: Any, rows: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    """Write rows (ids, embeddings, labels) as a batch: padded on the right, on the left, and truncated."""
    ids, embeds, labels = zip(*((i[0], e, la[0]) for i, e, la in rows), strict=True)
    tensors["in/batch/input_ids"] = torch.nn.utils.rnn.pad_sequence(list(ids), batch_first=True)
    tensors["in/batch/attention_mask"] = tensors["in/batch/input_ids"] != 0
    longest, truncated = max(map(len, embeds)), sorted(map(len, embeds))[-1] - 4
    for side, width in (("right", longest), ("left", longest), ("truncated", truncated)):
        kept = [min(len(e), width) for e in embeds]
        at = [slice(width - n, width) if side == "left" else slice(0, n) for n in kept]
        mask, padded_labels = torch.zeros(len(rows), width, dtype=torch.bool), torch.full((len(rows), width), -100)
        values = torch.zeros(len(rows), width, embeds[0].shape[1])
        for i, (n, columns) in enumerate(zip(kept, at, strict=True)):
            mask[i, columns], padded_labels[i, columns], values[i, columns] = True, labels[i][:n], embeds[i][:n]
        loss = loss_of(
            llm,
            [e[:n] for e, n in zip(embeds, kept, strict=True)],
            [la[:n] for la, n in zip(labels, kept, strict=True)],
        )
        found = {"attention_mask": mask, "labels": padded_labels, "loss": loss}
        found |= {} if side == "left" else {"inputs_embeds": values}
        tensors |= {f"out/batch_{side}/{k}": v for k, v in found.items()}


def loss_of(llm: Any, embeds: list[Tensor], labels: list[Tensor]) -> Tensor:
    """Mean cross entropy of the next token over all labels, each row computed separately; [1]."""
    losses = [
        F.cross_entropy(llm(inputs_embeds=e[None]).logits[0, :-1], la[1:], reduction="none")[la[1:] != -100]
        for e, la in zip(embeds, labels, strict=True)
    ]
    return torch.cat(losses).mean()[None]


@torch.no_grad()
def write_video_llava_hf(folder: Path) -> None:
    side, patch, image_id, video_id, pad, hidden = 12, 4, 91, 92, 93, 48
    n_patches = (side // patch) ** 2
    vision = {"hidden_size": 32, "intermediate_size": 50, "num_hidden_layers": 4, "num_attention_heads": 2}
    vision |= {"image_size": side, "patch_size": patch, "projection_dim": 8, "hidden_act": "gelu"}
    text = llama(hidden, 96, 4, 0)[0] | {"num_key_value_heads": 2}
    config = VideoLlavaConfig(
        vision_config=CLIPVisionConfig(**vision),
        text_config=LlamaConfig(**text),
        image_token_index=image_id,
        video_token_index=video_id,
    )
    model = VideoLlavaForConditionalGeneration(config).eval()
    randomize(model, 41)
    model.save_pretrained(folder / "saved")
    weights = load_file(folder / "saved" / "model.safetensors")
    as_saved = json.loads((folder / "saved" / "config.json").read_text())
    for file in (folder / "saved").iterdir():
        file.unlink()
    (folder / "saved").rmdir()
    rng = torch.Generator().manual_seed(42)
    media = {
        "image": torch.randn(1, 3, side, side, generator=rng),
        "image2": torch.randn(1, 3, side, side, generator=rng),
    }
    media |= {"video": torch.randn(1, 5, 3, side, side, generator=rng)}
    media["video3"] = media["video"][:, ::2]
    cases: dict[str, tuple[list[str], list[str]]] = {
        "video": ([], ["video"]),
        "image": (["image"], []),
        "text": ([], []),
    }
    cases |= {"video_image": (["image"], ["video"]), "two_images": (["image", "image2"], []), "short": ([], ["video3"])}
    tensors: Tensors = {f"weights/{k}": v for k, v in weights.items()} | {f"in/{k}": v for k, v in media.items()}
    for i, (case, (images, videos)) in enumerate(cases.items()):
        words = torch.randint(3, 90, (6 + i,), generator=rng).tolist()
        ids = [1]
        for name in [*videos, *images]:
            n = n_patches if name in images else media[name].shape[1] * (n_patches + 1)
            ids += [image_id if name in images else video_id] * n + words[:2]
        tensors[f"in/{case}/input_ids"] = torch.tensor([ids + words])
        run_port(tensors, model, case, [tensors[f"in/{case}/input_ids"]], media, images, videos)
    short, long = tensors["in/image/input_ids"], tensors["in/video/input_ids"]
    n_pad = long.shape[1] - short.shape[1]
    cases["left_padded"] = (["image"], ["video"])
    tensors["in/left_padded/input_ids"] = torch.cat([F.pad(short, (n_pad, 0), value=pad), long])
    tensors["in/left_padded/attention_mask"] = (tensors["in/left_padded/input_ids"] != pad).long()
    for key in ("greedy_tokens", "greedy_scores", "logits_last9"):
        tensors[f"out/left_padded/{key}"] = torch.cat([tensors[f"out/{case}/{key}"] for case in ("image", "video")])
    states = model.model.image_tower(media["image"], output_hidden_states=True).hidden_states[-2]
    tensors["out/image_tower_hidden_states_-2"] = states
    tensors["out/image_projected"] = model.model.multi_modal_projector(states[:, 1:])
    meta = {
        "config_json_as_saved": as_saved,
        "tokens": {"image_token_index": image_id, "video_token_index": video_id, "pad": pad},
        "cases": {case: {"images": images, "videos": videos} for case, (images, videos) in cases.items()},
    }
    write(folder, "video_llava_hf", meta, tensors)


def run_port(
    tensors: Tensors, model: Any, case: str, ids: list[Tensor], media: Tensors, images: list[str], videos: list[str]
) -> None:
    """Record the outputs of the port for a case."""
    pixels = {
        key: torch.cat([media[name] for name in names])
        for key, names in (("pixel_values_images", images), ("pixel_values_videos", videos))
        if names
    }
    out = model.generate(
        input_ids=ids[0],
        attention_mask=torch.ones_like(ids[0]),
        **pixels,
        max_new_tokens=N_NEW,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    logits = model(input_ids=ids[0], **pixels).logits
    found = {"logits_last9": logits[:, -9:], "greedy_tokens": out.sequences[:, ids[0].shape[1] :]}
    found |= {"greedy_scores": torch.stack(out.logits, 1)} | ({"logits": logits} if not videos else {})
    tensors |= {f"out/{case}/{k}": v for k, v in found.items()}
