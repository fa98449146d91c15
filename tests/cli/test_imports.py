"""What `vidqa ask` does not import when it answers from the cache, because imports dominate the start-up time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vidqa.pipeline.ask import ask
from vidqa.pipeline.run.run_options import RunOptions

#: Packages, and parts of torch that torch itself imports on demand.
NOT_IMPORTED = (
    "transformers",
    "accelerate",
    "huggingface_hub",
    "sentencepiece",
    "sympy",
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.tensor",
    "torch.onnx",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "polars",
    "av",
    "decord",
    "PIL",
    "peft",
    "scipy",
    "sklearn",
    "torchvision",
)
SCRIPT = """
import json, sys
from vidqa.cli.main import run
code = run(sys.argv[1:])
print(json.dumps([code, sorted(sys.modules)]))
"""


@pytest.mark.slow
def test_a_cached_answer_imports_only_what_it_needs(
    tiny_bundle: Path, tmp_path: Path, make_clip: Callable[..., Path]
) -> None:
    clip, cache = make_clip(tmp_path / "a.mp4"), tmp_path / "cache"
    ask(clip, "What is it?", model=str(tiny_bundle), options=RunOptions(cache))
    command = [
        "ask",
        str(clip),
        "What is it?",
        "--model",
        str(tiny_bundle),
        "--cache-dir",
        str(cache),
        "--device",
        "cpu",
    ]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *command], capture_output=True, text=True, check=True)
    answer, listed = done.stdout.splitlines()
    code, modules = json.loads(listed)
    assert (answer, code) == ("red", 0), done.stderr
    assert "torch" in modules and "tokenizers" in modules  # it did answer
    assert not [name for name in NOT_IMPORTED if name in modules]
