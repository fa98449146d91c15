"""Synthetic fixtures in the layout of tests/golden, with other sizes, seeds and texts.

Their contents come from transformers and a few lines of torch, never from vidqa. This module has the shared functions
and the fixtures of Video-ChatGPT and Valley; `synthetic_towers` and `synthetic_inputs` have the others.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

N_NEW = 7
Tensors = dict[str, Tensor]


def write(folder: Path, name: str, meta: dict[str, Any], tensors: Tensors) -> None:
    save_file(
        {k: v.clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}, folder / f"{name}.safetensors"
    )
    meta["tolerance"] = {"atol": 1e-4, "rtol": 1e-4}
    (folder / f"{name}.json").write_text(json.dumps(meta))


def randomize(module: torch.nn.Module, seed: int) -> Tensors:
    """Set random values for all parameters, norms and biases included, large enough for answers to differ."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(torch.randn(p.shape, generator=rng) * 0.25 + ("norm" in name and name.endswith("weight")))
    return {k: v.clone() for k, v in module.state_dict().items() if not k.endswith("position_ids")}


def llama(hidden: int, vocab: int, heads: int, seed: int) -> tuple[dict[str, Any], LlamaForCausalLM, Tensors]:
    config = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": hidden * 2,
        "num_hidden_layers": 3,
        "num_attention_heads": heads,
        "max_position_embeddings": 400,
        "rms_norm_eps": 1e-5,
    }
    llm = LlamaForCausalLM(LlamaConfig(**config)).eval()
    weights = randomize(llm, seed)
    return config, llm, weights


@torch.no_grad()
def outputs_of(llm: LlamaForCausalLM, embeds: Tensor) -> Tensors:
    """Logits, greedy tokens and their scores for [B, S, L]."""
    out = llm.generate(
        inputs_embeds=embeds,
        attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64),
        max_new_tokens=N_NEW,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    logits = llm(inputs_embeds=embeds).logits
    return {"logits": logits, "greedy_tokens": out.sequences, "greedy_scores": torch.stack(out.scores, 1)}


def write_video_chatgpt(folder: Path) -> None:
    width, spatial, rows, lengths = 40, 9, 100, (2, 41, 100, 120)
    config, llm, weights = llama(48, 90, 6, 1)
    patch, start, end = 83, 87, 85
    projector = torch.nn.Linear(width, 48)
    projected = randomize(projector, 2)
    x = torch.randn(max(lengths), spatial, width, generator=torch.Generator().manual_seed(3)).half()
    pooled = {}
    for t in lengths:
        frame_means = torch.zeros(max(rows, t), width)
        frame_means[:t] = x[:t].float().mean(1)
        pooled[t] = torch.cat([frame_means, x[:t].float().mean(0)]).half()
    n = rows + spatial
    ids = {
        "start_end": [[1, 5, 9, start, *[patch] * n, end, 30, 31]],
        "no_start_end": [[1, 5, *[patch] * n, 30]],
        "text": [[1, 5, 8, 13]],
        "two_videos": [[1, start, *[patch] * n, end, 7, start, *[patch] * n, end, 9]],
    }
    tensors: Tensors = {f"weights/{k}": v for k, v in weights.items()}
    tensors |= {f"weights/model.mm_projector.{k}": v for k, v in projected.items()} | {"in/features": x}
    for t, rows_of in pooled.items():
        tensors[f"out/pool_T{t}"] = rows_of
    with torch.no_grad():
        one, two = (projector(pooled[t].float()) for t in (41, 120 - 20))
        tensors["out/projected_T41"] = one
        ids["batch_text_then_video"] = [[1, *range(5, 80), *range(5, 5 + n + 7 - 76)], *ids["start_end"]]
        for case, values in ids.items():
            flat = torch.tensor(values)
            embeds = llm.get_input_embeddings()(flat).clone()
            at = (flat[-1] == patch).nonzero()[:, 0]
            if len(at):
                embeds[-1, at[-n:]] = two if case == "two_videos" else one  # the original inserts the last one only
            results = outputs_of(llm, embeds)
            if len(values) > 1 or case == "two_videos":
                results["logits_every_5th"] = results.pop("logits")[:, ::5]
            tensors |= {f"in/{case}/input_ids": flat} | {f"out/{case}/{k}": v for k, v in results.items()}
    meta = {
        "config": {
            "llm": config,
            "mm_hidden_size": width,
            "projector": "linear",
            "vid_patch_token": patch,
            "temporal_tokens": rows,
        },
        "inputs": {"start_end/*": "pool_T41", "no_start_end": "same features", "two_videos": "[pool T41, pool T100]"}
        | {"batch_text_then_video": "features rows = [pool T120, pool T41]; row 0 takes the first and leaves it"},
        "frame_indices": {"vectors": {"3": [0, 1, 1], "10": [0, 1, 2, 3, 4, 4, 5, 6, 7, 8]}},
    }
    write(folder, "video_chatgpt", meta, tensors)


def clip_tower(seed: int, **sizes: int) -> tuple[dict[str, Any], Any, Tensors]:
    config: dict[str, Any] = {**sizes, "intermediate_size": 50, "projection_dim": 10, "hidden_act": "gelu"}
    tower = CLIPVisionModel(CLIPVisionConfig(**config)).eval()
    weights = randomize(tower, seed)
    keys = {k if k.startswith("vision_model.") else f"vision_model.{k}": v for k, v in weights.items()}
    return config | {"layer_norm_eps": tower.config.layer_norm_eps}, tower, keys


def write_valley(folder: Path) -> None:
    config, llm, weights = llama(40, 70, 5, 4)
    sizes = {"hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 12, "patch_size": 3}
    clip, tower, tower_weights = clip_tower(5, **sizes)
    projector, pooling = torch.nn.Linear(36, 40), torch.nn.Linear(40 * 16, 1)
    encoder = torch.nn.TransformerEncoder(
        torch.nn.TransformerEncoderLayer(40, 4, 24, batch_first=True), 1, enable_nested_tensor=False
    ).eval()
    tensors: Tensors = {f"weights/{k}": v for k, v in weights.items()}
    tensors |= {f"weights/model.vision_tower.{k}": v for k, v in tower_weights.items()}
    tensors |= {f"weights/model.mm_projector.{k}": v for k, v in randomize(projector, 6).items()}
    tensors |= {f"weights_v2/model.pooling_layer.{k}": v for k, v in randomize(pooling, 7).items()}
    tensors |= {f"weights_v3/model.transformer_delta_encoder.{k}": v for k, v in randomize(encoder, 8).items()}
    rng = torch.Generator().manual_seed(9)
    positions = torch.randn(11, 40, generator=rng)
    tensors["weights_v3/model.position_matrix"] = positions
    tensors["weights_v3/model.transforemr_adding_layer.linear1.bias"] = torch.zeros(24)
    media = {
        "video": torch.randn(6, 3, 12, 12, generator=rng).half(),
        "image": torch.randn(1, 3, 12, 12, generator=rng),
    }
    frame, patch = 61, 66
    pools = {
        "v1": lambda x: x.mean(0),
        "v2": lambda x: torch.einsum("t,tpl->pl", pooling(x.reshape(len(x), -1))[:, 0].softmax(0), x),
        "v3": lambda x: encoder((x + positions[: len(x), None]).transpose(0, 1))[:, -1] + x.mean(0),
    }
    with torch.no_grad():
        for name, pixels in media.items():
            states = tower(pixels.float(), output_hidden_states=True).hidden_states[-2]
            projected = projector(states)
            ids = [1, 4, 60, *[patch] * 16, 62, 63, *[frame] * len(pixels), 64, 20, 21]
            flat = torch.tensor([ids])
            tensors |= {f"in/{name}": pixels, f"in/{name}_case/input_ids": flat}
            for version, pool in pools.items():
                embeds = llm.get_input_embeddings()(flat).clone()
                embeds[0, flat[0] == patch] = pool(projected[:, 1:])
                embeds[0, flat[0] == frame] = projected[:, 0]
                results = outputs_of(llm, embeds)
                results["logits_last9"] = results.pop("logits")[:, -9:]
                tensors |= {f"out/{version}/{name}/{k}": v for k, v in results.items()}
                if name == "video":
                    tensors[f"out/{version}/pooled_T4"] = pool(projected[:4, 1:])
                    weights_of = pooling(projected[:4, 1:].flatten(1)).softmax(0)
                    tensors |= {"out/v2/frame_weights_T4": weights_of} if version == "v2" else {}
            if name == "video":
                tensors |= {"out/projected": projected, "out/vision_hidden_states_-2_every_4th_token": states[:, ::4]}
        tensors["in/text_case/input_ids"] = flat = torch.tensor([[1, 4, 20, 21, 22]])
        results = outputs_of(llm, llm.get_input_embeddings()(flat))
        results["logits_last9"] = results.pop("logits")
        tensors |= {f"out/v1/text/{k}": v for k, v in results.items()}
    names = ("vi_frame", "vi_start", "vi_end", "im_patch", "im_start", "im_end")
    meta = {
        "config": {
            "llm": config,
            "clip": clip,
            "mm_hidden_size": 36,
            "mm_vision_select_layer": -2,
            "token_ids": dict(zip(names, (frame, 63, 64, patch, 60, 62), strict=True)),
            "v3": {"nhead": 4, "num_layers": 1, "dim_feedforward": 24, "activation": "relu", "norm": "post-norm"},
        }
    }
    write(folder, "valley", meta, tensors)


def write_frame_indices(folder: Path) -> None:
    rules = {
        "linspace": lambda n, k: np.linspace(0, n - 1, k).astype(int).tolist(),
        "arange": lambda n, k: np.arange(0, n, n / k).astype(int)[:k].tolist(),
    }
    meta: dict[str, Any] = {
        rule: {str(k): {str(n): make(n, k) for n in (1, 2, 9, 77, 1234)} for k in (5, 32)}
        for rule, make in rules.items()
    }
    meta["video_chatgpt"] = {str(n): segment_centers(n, min(n, 100)) for n in (1, 4, 99, 100, 101, 777)}
    (folder / "frame_indices.json").write_text(json.dumps(meta | {"tolerance": "exact"}))


def segment_centers(n: int, k: int) -> list[int]:
    """Centers of k equal segments of n frames, as in Video-ChatGPT."""
    ends = [round((n - 1) / k * i) for i in range(k + 1)]
    return [(a + b) // 2 for a, b in pairwise(ends)]
