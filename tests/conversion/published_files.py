"""Checkpoints as they are published, written from recorded weights: key names, shards, index files, configurations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


def golden(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and weights of a fixture, the weights by the reference's own names."""
    meta = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    return meta, {k.removeprefix("weights/"): v for k, v in tensors.items() if k.startswith("weights/")}


def write_bin_shards(folder: Path, weights: Mapping[str, Tensor], n: int = 2, index: bool = True) -> None:
    """`pytorch_model-0000i-of-0000n.bin`, and the index that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = list(weights)
    step = -(-len(keys) // n)
    where = {}
    for i in range(n):
        name = f"pytorch_model-{i + 1:05d}-of-{n:05d}.bin"
        torch.save({k: weights[k] for k in keys[i * step : (i + 1) * step]}, folder / name)
        where |= dict.fromkeys(keys[i * step : (i + 1) * step], name)
    if index:
        write_json(folder / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": where})


def write_safetensors(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """One `model.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "model.safetensors")


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_tokenizer(folder: Path, *more: str) -> None:
    """A tokenizer of a few letters; `more` are special tokens."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyzUSERASSISTANT: ?\n"]
    letters = Tokenizer(models.WordLevel({w: i for i, w in enumerate(dict.fromkeys(words))}, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made = PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    made.add_tokens(list(more), special_tokens=True)
    made.save_pretrained(folder)


def original_config(meta: Mapping[str, Any]) -> dict[str, Any]:
    """`config.json` as the trainer of Video-LLaVA writes it; the towers of a fixture have heads of other widths."""
    c = meta["config"]
    mm = {k: v for k, v in c.items() if k.startswith("mm_")}
    ids = {k: c[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id", "rope_theta")}
    more = {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"], "image_aspect_ratio": "pad"}
    return {**c["llm"], **ids, **mm, **more, "tokenizer_model_max_length": 3072, "vision_config": c["vision"]}


def write_original(folder: Path) -> Path:
    """Video-LLaVA as published: two `.bin` shards with the towers inside."""
    meta, weights = golden("video_llava_forward")
    write_bin_shards(folder, weights)
    write_json(folder / "config.json", original_config(meta))
    write_tokenizer(folder)
    return folder


def write_languagebind(folder: Path, kind: str, *, tokenizer: bool = False) -> Path:
    """One LanguageBind repository with the towers of the Video-LLaVA fixture; projections and text tower are drawn."""
    meta, weights = golden("video_llava_forward")
    root = f"model.{kind}_tower.{kind}_tower."
    own = {f"vision_model.{k[len(root) :]}": v for k, v in weights.items() if k.startswith(root)}
    vision = meta["config"]["vision"][f"{kind}_tower"]
    text_meta, text = golden("languagebind_image")
    own |= {k: v for k, v in text.items() if k.startswith(("text_model.", "text_projection.", "logit_scale"))}
    rng = torch.Generator().manual_seed(7)
    size = text_meta["config"]["text"]["projection_dim"]
    own["visual_projection.weight"] = torch.randn(size, vision["hidden_size"], generator=rng)
    own["vision_model.embeddings.position_ids"] = torch.arange(9)[None]
    write_bin_shards(folder, own, 1)
    (folder / "pytorch_model.bin.index.json").unlink()
    (folder / "pytorch_model-00001-of-00001.bin").rename(folder / "pytorch_model.bin")
    config = {"vision_config": vision, "text_config": text_meta["config"]["text"], "model_type": "LanguageBind"}
    write_json(folder / "config.json", config)
    return folder


def write_llm(folder: Path) -> Path:
    """The base LLM alone, as safetensors."""
    meta, weights = golden("video_llava_forward")
    own = ("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.")
    write_safetensors(folder, {k: v for k, v in weights.items() if k.startswith(own)})
    config = original_config(meta)
    kept = {k: v for k, v in config.items() if not k.startswith(("mm_", "image_", "vision_", "tokenizer_"))}
    write_json(folder / "config.json", {**kept, "model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    write_tokenizer(folder)
    return folder


def write_projector(path: Path) -> Path:
    """What stage 1 leaves: `mm_projector.bin` and a configuration."""
    meta, weights = golden("video_llava_forward")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({k: v for k, v in weights.items() if "mm_projector" in k}, path)
    write_json(path.parent / "config.json", original_config(meta))
    return path


#: Three ways in which the port's weights have been named: on the hub, by transformers 5, in memory.
HF_NAMES = ("hub", "saved", "memory")


def write_hf(folder: Path, names: str = "saved") -> Path:
    """The port of transformers under one of its namings."""
    meta, weights = golden("video_llava_hf")
    write_safetensors(folder, {_hf_name(k, names): v for k, v in weights.items()})
    write_json(folder / "config.json", meta["config_json_as_saved"])
    write_tokenizer(folder, "<image>", "<video>", "<pad>")
    return folder


def _hf_name(key: str, names: str) -> str:
    if names == "hub":
        return key.replace("_tower.", "_tower.vision_model.", 1)
    if names == "memory":
        if key.startswith("language_model.lm_head."):
            return key.removeprefix("language_model.")
        return "model." + key.replace("language_model.model.", "language_model.", 1)
    return key
