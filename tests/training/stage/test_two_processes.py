"""Data parallel training in two processes has the same losses as training in one."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SCRIPT = Path(__file__).parent / "two_processes.py"


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("by_two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", SCRIPT, folder]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("two_processes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    sys.modules.pop("conftest", None)
    return module


@pytest.mark.parametrize("name", ["mixed", "apart"])
def test_two_processes_have_the_losses_of_one(by_two, script, lab, tmp_path, name):
    stage, samples, shuffled = {
        "mixed": (script.STAGE, script.SAMPLES, True),
        "apart": (script.APART_STAGE, script.APART, False),  # the test is also that it does not hang
    }[name]
    single = lab.train(lab.make_model(), tmp_path, stage, samples, shuffled=shuffled)
    together = json.loads((by_two / f"{name}.json").read_text())
    assert len(together) == len(single.lines) == single.result.n_steps
    for expected, actual in zip(single.lines, together, strict=True):
        assert actual["loss"] == pytest.approx(expected["loss"], abs=1e-4)
        assert actual["lr"] == expected["lr"]
    assert len({line["loss"] for line in together}) == len(together)  # the losses change
