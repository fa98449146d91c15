"""A model that is sharded over two processes (FSDP, ZeRO) trains like an unsharded one, and resumes exactly."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vidqa.training.recipe.definition import Stage

SCRIPT = Path(__file__).parent / "sharded.py"
STAGE = Stage(kind="instruct", epochs=4, batch_size=4, per_device_batch_size=1, learning_rate=3e-3)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("how", "groups"), [("fsdp", 2), ("zero2", 0), ("zero3", 0)])
def test_a_sharded_model_trains_like_an_unsharded_one(lab, tmp_path, how, groups):
    if how != "fsdp":
        pytest.importorskip("deepspeed")
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*run, SCRIPT, tmp_path, how]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["groups"] == groups  # each layer is a group, so that they are gathered one by one
    assert (report["empty"] > 0) == (how == "zero3")
    single = lab.train(lab.make_model(), tmp_path / "single", STAGE)
    weights = torch.load(tmp_path / "weights.pt")
    for name in ("full", "resumed"):
        assert [line["step"] for line in report[name]] == [line["step"] for line in single.lines]
        for expected, actual in zip(single.lines, report[name], strict=True):
            assert actual["loss"] == pytest.approx(expected["loss"], abs=1e-4)
        assert weights[name].keys() == single.result.weights.keys()
    for key, weight in weights["full"].items():
        assert torch.equal(weight, weights["resumed"][key]), key
