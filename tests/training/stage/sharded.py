"""Started by torchrun from test_sharded.py: a stage in two processes that share a model by FSDP or DeepSpeed ZeRO.

The stage runs once without interruption, and once interrupted and resumed. accelerate enables FSDP on accelerators
only. torch supports it on a CPU over gloo as well, so this script enables it there; everything else is what runs on
GPUs. DeepSpeed supports CPUs.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import accelerate.state
import torch
from accelerate.utils import DistributedType
from conftest import make_model, save_every, train_samples
from torch import distributed
from torch.distributed.tensor import DTensor

from vidqa.training.distributed import init_process_group, is_first
from vidqa.training.recipe.definition import Hardware, Stage
from vidqa.training.stage.callbacks import Silent

STAGE = Stage(kind="instruct", epochs=4, batch_size=4, per_device_batch_size=1, learning_rate=3e-3)


class InterruptAfter(Silent):
    """Interrupts the run after some steps."""

    def __init__(self, n_steps):
        self.remaining = n_steps

    def advance(self, n=1):
        self.remaining -= n
        if self.remaining == 0:
            raise KeyboardInterrupt


def enable_fsdp_on_cpu():
    state = accelerate.state.AcceleratorState
    real = state.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        real(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    state.__init__ = init
    state.is_fsdp2 = property(lambda self: getattr(self, "fsdp_plugin", None) is not None)


def fsdp_hardware():
    enable_fsdp_on_cpu()
    return Hardware(fsdp="full_shard auto_wrap")


def zero_hardware(stage, folder):
    """DeepSpeed settings under which even the smallest weight is sharded."""
    import deepspeed.comm.comm  # noqa: F401  for the line below

    # Skips an optional extension for processes on one machine, which takes minutes to compile; gloo does the same.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
    zero = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True, "stage3_param_persistence_threshold": 0}
    auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size", "gradient_clipping")
    path = folder / f"{os.environ['RANK']}.json"
    path.write_text(json.dumps({"zero_optimization": zero, **dict.fromkeys(auto, "auto")}))
    return Hardware(deepspeed=str(path))


def main(folder, how):
    init_process_group("cpu")
    hardware = fsdp_hardware() if how == "fsdp" else zero_hardware(int(how.removeprefix("zero")), folder)
    options = {**save_every(2), "hardware": hardware}
    model = make_model()
    full = train_samples(model, folder / "full", STAGE, **options)
    if how == "fsdp":
        kinds = {name: type(p) for name, p in model.named_parameters()}
        assert all(kind is DTensor for kind in kinds.values()), kinds
    groups = sum(type(m).__name__.startswith("FSDP") for m in model.modules())
    empty = sum(p.numel() == 0 for p in model.parameters())
    try:
        train_samples(make_model(), folder / "resumed", STAGE, **options, listener=InterruptAfter(3))
        raise AssertionError("was not interrupted")
    except KeyboardInterrupt:
        distributed.barrier()
    resumed = train_samples(make_model(), folder / "resumed", STAGE, **options)
    if is_first():
        torch.save({"full": full.result.weights, "resumed": resumed.result.weights}, folder / "weights.pt")
        report = {"full": full.lines, "resumed": resumed.lines, "groups": groups, "empty": empty}
        (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
