"""Benchmark a conversion: time and peak memory of each step, with synthetic weights in the shapes of Video-LLaVA-7B.

    python tools/bench_convert.py              # full towers, 2 of the LLM's 32 layers: 4.5 GB of disk, minutes of CPU
    python tools/bench_convert.py --layers 32  # the full model: about 35 GB of disk
    python tools/bench_convert.py --tiny-towers --layers 3  # only reading and writing

The checkpoint has an LLM and its projector in two `.bin` shards (float16), and LanguageBind's two towers with the text
tower in separate `.bin` files (float32). It is written to a temporary folder, which is removed afterwards. The
conversion runs in a subprocess; its peak memory is read and reset after each step where the system allows it (Linux).
Prints a table; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

VOCABULARY, WIDTH, INNER = 32000, 4096, 11008


def main() -> None:
    """Write a checkpoint, convert it, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2, help="layers of the LLM, 0.4 GB each; a 7B has 32 [2]")
    parser.add_argument("--tiny-towers", action="store_true", help="two narrow layers per tower and no text tower")
    parser.add_argument("--work", type=Path, help="parent of the temporary folder")
    parser.add_argument("--child", nargs="+", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(convert(args.child[0], args.child[1], args.child[2:])))
        return
    with tempfile.TemporaryDirectory(dir=args.work) as name:
        folder = Path(name)
        model, n_bytes = write_model(folder / "model", args.layers, 64 if args.tiny_towers else 1024)
        towers = [write_tower(folder / kind, kind, args.tiny_towers) for kind in ("image", "video")]
        command = [sys.executable, __file__, "--child", model, folder / "bundle", *(path for path, _ in towers)]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        parts = json.loads(done.stdout)
    n_bytes += sum(n for _, n in towers)
    print(
        f"checkpoint {n_bytes / 1e9:.2f} GB, {args.layers} LLM layers, towers {'tiny' if args.tiny_towers else 'full'}"
    )
    for part in parts:
        peak = f"{part['peak_bytes'] / 1e9:.2f} GB" if part["peak_bytes"] else "unknown"
        print(f"{part['part']:<22} {part['seconds']:7.1f} s  peak {peak}")
    facts = {"bench": "convert", "layers": args.layers, "checkpoint_bytes": n_bytes, "parts": parts}
    versions = {"python": platform.python_version(), "torch": torch.__version__, "cpus": len(os.sched_getaffinity(0))}
    print(json.dumps(facts | versions))


def convert(model: Path, out: Path, towers: list[Path]) -> list[dict[str, Any]]:
    """Convert; return the seconds and the peak memory of each step."""
    from vidqa.conversion.convert import convert as convert_parts
    from vidqa.conversion.output_options import OutputOptions

    parts: list[dict[str, Any]] = []
    last = time.perf_counter()

    def step(what: str, _n: int = 0) -> None:
        nonlocal last
        now = time.perf_counter()
        parts.append({"part": what, "seconds": round(now - last, 2), "peak_bytes": peak()})
        last = now

    convert_parts([model], OutputOptions(out), towers=towers, step=step)
    step("checks and digests")
    step_of: dict[str, dict[str, Any]] = {}
    for part in parts:  # count the shards of the LLM as one step
        seen = step_of.setdefault(part["part"], {**part, "seconds": 0.0})
        seen["seconds"] = round(seen["seconds"] + part["seconds"], 2)
        seen["peak_bytes"] = max(seen["peak_bytes"] or 0, part["peak_bytes"] or 0) or None
    return [*step_of.values()]


def peak() -> int | None:
    """Return the peak memory since the last call, including mapped files, or None if the system does not report it."""
    found = None
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        found = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # from here on a new peak
    return found


def write_model(folder: Path, n_layers: int, tower_width: int) -> tuple[Path, int]:
    """Write LLM and projector in two `.bin` shards; return the folder and the bytes of its weights."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True)
    weight_map, total = {}, 0
    for i, kind in enumerate((llm(n_layers), embeddings_and_projector(tower_width)), start=1):
        shard = dict(kind)
        name = f"pytorch_model-{i:05d}-of-00002.bin"
        torch.save(shard, folder / name)
        weight_map |= dict.fromkeys(shard, name)
        total += sum(t.nbytes for t in shard.values())
        del shard
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = {
        "model_type": "llava",
        "num_hidden_layers": n_layers,
        "max_position_embeddings": 4096,
        "mm_hidden_size": tower_width,
        "image_aspect_ratio": "pad",
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return folder, total


def write_tower(folder: Path, kind: str, tiny: bool) -> tuple[Path, int]:
    """Write one LanguageBind folder; the image one also has the text tower and its tokenizer unless it is tiny."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    from vidqa.model.towers.text import TextConfig, TextTower
    from vidqa.model.towers.vit import VisionConfig, VisionTower

    n_layers, width = (2, 64) if tiny else (24, 1024)
    n_frames = 8 if kind == "video" else 0
    weights = shaped(
        VisionTower, VisionConfig(224, 14, width, 4 * width, n_layers, width // 64, 768, temporal_length=n_frames)
    )
    folder.mkdir(parents=True)
    config = {"vision_config": {"hidden_act": "gelu"}, "text_config": {"hidden_act": "gelu"}}
    (folder / "config.json").write_text(json.dumps(config))
    if kind == "image" and not tiny:
        weights |= shaped(TextTower, TextConfig(49408, 768, 3072, 12, 12, 77, 768))
        letters = [*bytes_to_unicode().values()]
        words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
        (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
        (folder / "merges.txt").write_text("#version: 0.2\n")
    torch.save(weights, folder / "pytorch_model.bin")
    return folder, sum(t.nbytes for t in weights.values())


def shaped(kind: type[Any], config: Any) -> dict[str, Tensor]:
    """Return random float32 weights for a tower."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in kind(config).state_dict().items()}
    return {key: random(*shape, dtype=torch.float32) for key, shape in shapes.items()}


def random(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    """Return small random values; constants would take as long but would hide errors from the graph check."""
    return torch.rand(shape, dtype=torch.float32).mul_(0.04).sub_(0.02).to(dtype)


def llm(n_layers: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of LLaMA-7B's layers in float16."""
    for i in range(n_layers):
        for name in "qkvo":
            yield f"model.layers.{i}.self_attn.{name}_proj.weight", random(WIDTH, WIDTH)
        for name, shape in (("gate", (INNER, WIDTH)), ("up", (INNER, WIDTH)), ("down", (WIDTH, INNER))):
            yield f"model.layers.{i}.mlp.{name}_proj.weight", random(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{i}.{name}.weight", random(WIDTH)


def embeddings_and_projector(tower_width: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights outside the layers: embeddings, final norm, head, and the projector."""
    yield "model.norm.weight", random(WIDTH)
    yield "model.embed_tokens.weight", random(VOCABULARY, WIDTH)
    yield "lm_head.weight", random(VOCABULARY, WIDTH)
    for i, n_in in ((0, tower_width), (2, WIDTH)):
        yield f"model.mm_projector.{i}.weight", random(WIDTH, n_in)
        yield f"model.mm_projector.{i}.bias", random(WIDTH)


if __name__ == "__main__":
    main()
