"""A model in pieces over two processes (FSDP, ZeRO) learns what a whole one learns, and goes on after a break."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vidqa.train.recipe.definition import Stage

SCRIPT = Path(__file__).parent / "in_pieces.py"
STAGE = Stage(kind="instruct", epochs=4, batch_size=4, per_device=1, lr=3e-3)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("how", "groups"), [("fsdp", 2), ("zero2", 0), ("zero3", 0)])
def test_pieces_learn_what_one_process_learns(lab, tmp_path, how, groups):
    if how != "fsdp":
        pytest.importorskip("deepspeed")
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*run, SCRIPT, tmp_path, how]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["groups"] == groups  # each layer by itself, beside the rest: not everything is gathered at once
    assert (told["empty"] > 0) == (how == "zero3")
    alone = lab.tune(lab.make_model(), tmp_path / "alone", STAGE)
    weights = torch.load(tmp_path / "weights.pt")
    for name in ("whole", "again"):
        assert [line["step"] for line in told[name]] == [line["step"] for line in alone.lines]
        for mine, theirs in zip(alone.lines, told[name], strict=True):
            assert theirs["loss"] == pytest.approx(mine["loss"], abs=1e-4)
        assert weights[name].keys() == alone.result.weights.keys()
    for key, weight in weights["whole"].items():
        assert torch.equal(weight, weights["again"][key]), key
