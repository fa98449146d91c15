"""Writers of Video-ChatGPT and Valley checkpoints as published: recorded weights under the original key names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from golden_checks.fixture import Fixture
from safetensors.torch import save_file
from torch import Tensor

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
#: Characters in the vocabulary of the tokenizers here, after <unk> <s> </s>.
LETTERS = "\n !#'(),-./0123456789:?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def fixture(name: str) -> Fixture:
    """Read a fixture of tests/golden."""
    return Fixture.read(GOLDEN, name)


def write_tokenizer(folder: Path, n_words: int, special: Sequence[str] = ()) -> None:
    """Write a tokenizer of single characters with `n_words` tokens, followed by special tokens."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from tokenizers.decoders import Fuse
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", *LETTERS]
    words += [f"<word{i}>" for i in range(n_words - len(words))]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tokenizer.add_tokens(list(special), special_tokens=True)
    tokenizer.save_pretrained(folder)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(value), encoding="utf-8")


def write_video_chatgpt(folder: Path, *, grown: bool) -> list[Path]:
    """Write the small `.bin`, the LLaVA that it belongs to (two shards), and a CLIP with random weights.

    With `grown`, the LLaVA has three tokens fewer than the small file, as published.
    """
    from transformers import CLIPConfig, CLIPModel

    fx = fixture("video_chatgpt")
    c, weights = fx.meta["config"], fx.part("weights/")
    rows = c["llm"]["vocab_size"]
    n_words = c["vid_patch_token"]
    (small := folder / "video_chatgpt").mkdir(parents=True)
    kept = ("model.mm_projector.", "model.embed_tokens.")
    torch.save({k: v for k, v in weights.items() if k.startswith(kept)}, small / "video_chatgpt-7B.bin")
    (llm := folder / "llava").mkdir()
    size = n_words if grown else rows
    base = {k: v[:size] if k in ("lm_head.weight", "model.embed_tokens.weight") else v for k, v in weights.items()}
    base["model.mm_projector.weight"] = torch.zeros_like(base["model.mm_projector.weight"])
    keys = list(base)
    for i, part in enumerate((keys[: len(keys) // 2], keys[len(keys) // 2 :]), start=1):
        torch.save({k: base[k].clone() for k in part}, llm / f"pytorch_model-{i:05d}-of-00002.bin")
    config = {**c["llm"], "vocab_size": size, "model_type": "llava", "mm_vision_tower": "a/clip", "use_mm_proj": True}
    write_json(llm / "config.json", {**config, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    write_tokenizer(llm, n_words)
    torch.manual_seed(5)
    side = int(c["spatial_tokens"] ** 0.5)
    vision = {"image_size": side * 4, "patch_size": 4, "hidden_size": c["mm_hidden_size"], "intermediate_size": 32}
    text = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 8}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 8}
    CLIPModel(CLIPConfig(text_config=text | heads, vision_config=vision | heads, projection_dim=8)).save_pretrained(
        folder / "clip"
    )
    return [small, llm, folder / "clip"]


def valley_weights(version: str) -> dict[str, Tensor]:
    """All weights of a checkpoint, including the unused copy."""
    fx = fixture("valley")
    more = fx.part(f"weights_{version}/")
    old, new = "model.transformer_delta_encoder.layers.0.", "model.transforemr_adding_layer."
    return fx.part("weights/") | more | {new + k[len(old) :]: v + 1 for k, v in more.items() if k.startswith(old)}


def write_valley(folder: Path, version: str, weights: Mapping[str, Tensor] | None = None) -> Path:
    """Write a Valley folder with one temporal module."""
    c = fixture("valley").meta["config"]
    folder.mkdir(parents=True)
    save_file(
        {k: v.contiguous() for k, v in (weights or valley_weights(version)).items()}, folder / "model.safetensors"
    )
    flags = {"use_patch_importance_pooling": version == "v2", "use_delta_transformer": version == "v3"}
    config = {**c["llm"], "model_type": "valley", "mm_hidden_size": c["mm_hidden_size"], "vision_config": c["clip"]}
    config |= {"mm_vision_select_layer": c["mm_vision_select_layer"], "bos_token_id": 1, "eos_token_id": 2}
    write_json(folder / "config.json", config | {"pad_token_id": 0} | flags)
    ids = c["token_ids"]
    write_tokenizer(folder, min(ids.values()), [f"<{name}>" for name in sorted(ids, key=lambda name: ids[name])])
    return folder


def write_valley_delta(folder: Path, version: str) -> list[Path]:
    """Write the delta weights to a LLaMA with fewer tokens, and that LLaMA."""
    c = fixture("valley").meta["config"]
    whole, n_words = valley_weights(version), min(c["token_ids"].values())
    rng = torch.Generator().manual_seed(3)
    base, delta = {}, dict(whole)
    for key, value in whole.items():
        if key.startswith(("model.layers.", "model.norm.", "model.embed_tokens.", "lm_head.")):
            rows = n_words if key in ("model.embed_tokens.weight", "lm_head.weight") else len(value)
            base[key] = value[:rows] + 0.02 * torch.randn(value[:rows].shape, generator=rng)
            delta[key] = torch.cat([value[:rows] - base[key], value[rows:]])
    delta_folder = write_valley(folder / "delta", version, delta)
    (folder / "llama").mkdir()
    save_file(base, folder / "llama" / "model.safetensors")
    write_json(folder / "llama" / "config.json", {**c["llm"], "vocab_size": n_words, "model_type": "llama"})
    return [delta_folder, folder / "llama"]
