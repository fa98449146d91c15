"""Peak memory and time of a conversion: a synthetic checkpoint with the shapes of a 7B LLM, only fewer layers.

    python tools/bench_convert.py --layers 3            # 1.7 GB in two .bin shards
    python tools/bench_convert.py --layers 3 --towers   # and ViT-L/14 towers of full size: minutes of CPU time

The checkpoint is written to a temporary folder and removed. Each conversion runs in a process of its own, so that the
peak is its own. Without --towers the towers have one narrow layer, and what is measured is reading and writing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor


def main() -> None:
    """Make, convert, print, remove."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=3, help="layers of the LLM (32 in a 7B); 0.4 GB each")
    parser.add_argument("--towers", action="store_true", help="towers of full size (24 layers, 1024 wide, 224 px)")
    parser.add_argument("--work", type=Path, help="where the temporary folder is made")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as place:
        folder = Path(place) / "checkpoint"
        n_bytes = write(folder, args.layers, 24 if args.towers else 2, 1024 if args.towers else 64)
        command = [sys.executable, "-m", "vidqa", "models", "convert", str(folder), "--out", f"{place}/out", "--json"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        result = json.loads(done.stdout)
    print(f"checkpoint {n_bytes / 1e9:.2f} GB, {args.layers} LLM layers, towers {'full' if args.towers else 'tiny'}")
    print(f"peak memory {result['peak_bytes'] / 1e9:.2f} GB, {result['seconds']:.0f} s")


def write(folder: Path, n_layers: int, tower_layers: int, tower_width: int) -> int:
    """Two `.bin` shards of a Video-LLaVA with random weights; returns their bytes."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True)
    shards: list[dict[str, Tensor]] = [dict(llm(n_layers)), dict(rest(tower_layers, tower_width))]
    where, total = {}, 0
    for i, shard in enumerate(shards, start=1):
        name = f"pytorch_model-{i:05d}-of-00002.bin"
        torch.save(shard, folder / name)
        where |= dict.fromkeys(shard, name)
        total += sum(t.nbytes for t in shard.values())
    shards.clear()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    config = {
        "model_type": "llava",
        "num_hidden_layers": n_layers,
        "max_position_embeddings": 4096,
        "mm_hidden_size": tower_width,
    }
    (folder / "config.json").write_text(json.dumps(config))
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return total


def random(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    """Small values; constants would be stored as fast as anything else, but would hide an error of the graph check."""
    return (torch.rand(shape, dtype=torch.float32) * 0.04 - 0.02).to(dtype)


def llm(n_layers: int) -> Iterator[tuple[str, Tensor]]:
    """LLaMA-7B's shapes in float16."""
    for i in range(n_layers):
        for name in "qkvo":
            yield f"model.layers.{i}.self_attn.{name}_proj.weight", random(4096, 4096)
        for name, shape in (("gate", (11008, 4096)), ("up", (11008, 4096)), ("down", (4096, 11008))):
            yield f"model.layers.{i}.mlp.{name}_proj.weight", random(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{i}.{name}.weight", random(4096)
    yield "model.norm.weight", random(4096)
    yield "model.embed_tokens.weight", random(32000, 4096)
    yield "lm_head.weight", random(32000, 4096)


def rest(n_layers: int, width: int) -> Iterator[tuple[str, Tensor]]:
    """Projector and both towers."""
    from vidqa.model.vit import VisionConfig, VisionModel

    for i, n_in in ((0, width), (2, 4096)):
        yield f"model.mm_projector.{i}.weight", random(4096, n_in)
        yield f"model.mm_projector.{i}.bias", random(4096)
    for kind, n_frames in (("image", 0), ("video", 8)):
        config = VisionConfig(224, 14, width, 4 * width, n_layers, width // 64, 0, temporal_length=n_frames)
        with torch.device("meta"):
            shapes = {k: v.shape for k, v in VisionModel(config).state_dict().items()}
        for key, shape in shapes.items():
            yield f"model.{kind}_tower.{kind}_tower.{key}", random(*shape)


if __name__ == "__main__":
    main()
