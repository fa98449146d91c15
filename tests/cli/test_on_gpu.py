"""The commands on a CUDA device. Skipped without one, unless VIDQA_REQUIRE_GPU=1 requires it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vidqa.cli.main import run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif("not torch.cuda.is_available() and __import__('os').environ.get('VIDQA_REQUIRE_GPU') != '1'"),
]
CLIPS = Path(__file__).parents[2] / "examples" / "clips"


def answers(device: str, folder: Path) -> dict[str, str]:
    """Return the answer of the demo model for each example."""
    folder.mkdir()
    out, cache = folder / "table.jsonl", folder / "cache"
    assert run(["describe", str(CLIPS), "--out", str(out), "--device", device, "--cache-dir", str(cache), "-q"]) == 0
    return {row["path"]: row["answer"] for row in map(json.loads, out.read_text().splitlines())}


def test_the_gpu_table_equals_that_of_the_cpu(tmp_path: Path) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    expected, actual = answers("cpu", tmp_path / "cpu"), answers("cuda", tmp_path / "cuda")
    assert len(expected) == 12
    # Features are rounded to float16, which may break one tie differently.
    assert sum(actual[path] == text for path, text in expected.items()) >= 11


def test_bench_names_the_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--device", "cuda", "--seconds", "0.5", "--json", "-q"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["device"].startswith("cuda")
    assert all(result["stages"][name]["share_of_limit"] > 0 for name in ("encode", "prefill", "generate"))
