"""Started by torchrun from test_in_pieces.py: a stage in two processes that hold pieces of the model, by FSDP or by
DeepSpeed's ZeRO; whole, broken off and gone on with.

accelerate cuts models up by FSDP on accelerators alone. torch does it on a CPU over gloo just as well, so here
accelerate is told that it may; everything else is what runs on GPUs. DeepSpeed works on a CPU as it is.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import accelerate.state
import torch
from accelerate.utils import DistributedType
from conftest import make_model, tune_samples, with_checkpoints
from torch import distributed
from torch.distributed.tensor import DTensor

from vidqa.train.distributed import is_first, join
from vidqa.train.recipe.definition import Hardware, Stage
from vidqa.train.stage.loop import Silent

STAGE = Stage(kind="instruct", epochs=4, batch_size=4, per_device=1, lr=3e-3)


class Breaks(Silent):
    """Ends the run when so many steps are made."""

    def __init__(self, after):
        self.left = after

    def advance(self, n=1):
        self.left -= n
        if self.left == 0:
            raise KeyboardInterrupt


def allow_pieces():
    state = accelerate.state.AcceleratorState
    real = state.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        real(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    state.__init__ = init
    state.is_fsdp2 = property(lambda self: getattr(self, "fsdp_plugin", None) is not None)


def by_fsdp():
    allow_pieces()
    return Hardware(fsdp="full_shard auto_wrap")


def by_zero(stage, folder):
    """DeepSpeed's settings; no weight is so small that all processes keep it."""
    import deepspeed.comm.comm  # noqa: F401  for the line below

    # A compiled shortcut for processes of one machine, which takes minutes to make; gloo does the same.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
    zero = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True, "stage3_param_persistence_threshold": 0}
    auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size", "gradient_clipping")
    path = folder / f"{os.environ['RANK']}.json"
    path.write_text(json.dumps({"zero_optimization": zero, **dict.fromkeys(auto, "auto")}))
    return Hardware(deepspeed=str(path))


def main(folder, how):
    join("cpu")
    hardware = by_fsdp() if how == "fsdp" else by_zero(int(how.removeprefix("zero")), folder)
    common = replace(with_checkpoints(2), hardware=hardware)
    model = make_model()
    whole = tune_samples(model, folder / "whole", STAGE, common=common)
    if how == "fsdp":
        cut = {name: type(p) for name, p in model.named_parameters()}
        assert all(kind is DTensor for kind in cut.values()), cut
    groups = sum(type(m).__name__.startswith("FSDP") for m in model.modules())
    empty = sum(p.numel() == 0 for p in model.parameters())
    try:
        tune_samples(make_model(), folder / "broken", STAGE, common=common, listener=Breaks(3))
        raise AssertionError("was not broken off")
    except KeyboardInterrupt:
        distributed.barrier()
    again = tune_samples(make_model(), folder / "broken", STAGE, common=common)
    if is_first():
        torch.save({"whole": whole.result.weights, "again": again.result.weights}, folder / "weights.pt")
        told = {"whole": whole.lines, "again": again.lines, "groups": groups, "empty": empty}
        (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
