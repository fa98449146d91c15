"""A model cut into pieces over two processes (FSDP) learns what a whole one learns, and goes on after a break."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vidqa.train.recipe import Stage

SCRIPT = Path(__file__).parent / "in_pieces.py"
STAGE = Stage(kind="instruct", epochs=4, batch_size=4, per_device=1, lr=3e-3)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_pieces_learn_what_one_process_learns(lab, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", SCRIPT, tmp_path]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["groups"] == 2  # each layer by itself, beside the rest: not everything is gathered at once
    alone = lab.tune(lab.make_model(), tmp_path / "alone", STAGE)
    weights = torch.load(tmp_path / "weights.pt")
    for name in ("whole", "again"):
        assert [line["step"] for line in told[name]] == [line["step"] for line in alone.lines]
        for mine, theirs in zip(alone.lines, told[name], strict=True):
            assert theirs["loss"] == pytest.approx(mine["loss"], abs=1e-4)
        assert weights[name].keys() == alone.result.weights.keys()
    for key, weight in weights["whole"].items():
        assert torch.equal(weight, weights["again"][key]), key
