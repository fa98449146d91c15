"""A run that breaks and goes on is the run that never broke: losses and weights, bit for bit."""

import errno
import time

import pytest
import torch

from vidqa.errors import TrainError
from vidqa.model.lora import attach_lora
from vidqa.train.recipe.definition import Lora, Stage
from vidqa.train.stage import trainer as trainer_module
from vidqa.train.stage.batch_size import find_per_device
from vidqa.train.stage.callbacks import Interrupted, in_time
from vidqa.train.stage.checkpoints import found_in
from vidqa.train.stage.loop import Silent
from vidqa.train.stage.loss import PackedLoss
from vidqa.train.stage.trainer import StageTrainer

STAGE = Stage(kind="instruct", epochs=5, batch_size=4, per_device=2, lr=3e-3, packing=2)


class Breaks(Silent):
    """A listener that ends the run when so many steps are made, before the last of them is saved."""

    def __init__(self, after):
        self.left, self.said, self.bars = after, [], []

    def progress(self, total, unit, done=0):
        self.bars.append((total, unit, done))
        return super().progress(total, unit, done)

    def say(self, text, *, level=1):
        self.said.append(text)

    def advance(self, n=1):
        self.left -= n
        if self.left == 0:
            raise KeyboardInterrupt


class Poisons(Silent):
    """A listener that spoils a weight after so many steps."""

    def __init__(self, model, after):
        self.model, self.left = model, after

    def advance(self, n=1):
        self.left -= n
        if self.left == 0:
            with torch.no_grad():
                next(self.model.connector.parameters()).fill_(float("nan"))


def fresh(lab, lora=False):
    model = lab.make_model()
    if lora:
        torch.manual_seed(1)
        attach_lora(model.llm, 2, 4.0, 0.25)  # dropout: the random states must come back, too
    return model


def curve(ran):
    return [(line["step"], line["loss"], line["lr"], line["padding"]) for line in ran.lines]


@pytest.mark.parametrize("lora", [False, True])
def test_a_broken_run_is_the_unbroken_run(lab, tmp_path, lora):
    stage = STAGE.model_copy(update={"lora": Lora(r=2, alpha=4.0, dropout=0.25)}) if lora else STAGE
    whole = lab.tune(fresh(lab, lora), tmp_path / "whole", stage, common=lab.saving(3))
    assert whole.result.n_steps > 6 and len({line["loss"] for line in whole.lines}) > 6
    for after, begins in ((2, None), (4, None), (2, 3)):  # before the first checkpoint, behind it, and once more
        breaks = Breaks(after)
        with pytest.raises(KeyboardInterrupt):
            lab.tune(fresh(lab, lora), tmp_path / "broken", stage, common=lab.saving(3), listener=breaks)
        assert (f"instruct: going on from step {begins}" in breaks.said) == (begins is not None)
        assert breaks.bars == [(whole.result.n_steps, "step", begins or 0)]
    ran = lab.tune(fresh(lab, lora), tmp_path / "broken", stage, common=lab.saving(3))
    assert found_in(tmp_path / "broken")[0][0] == 3  # it did go on from a checkpoint
    assert curve(ran) == curve(whole)
    assert ran.result.n_samples == whole.result.n_samples
    assert ran.result.weights.keys() == whole.result.weights.keys()
    for name, weight in whole.result.weights.items():
        assert torch.equal(weight, ran.result.weights[name]), name


def test_a_run_that_is_asked_to_stop_saves_the_step_and_goes_on_as_if_nothing_was(lab, tmp_path):
    whole = lab.tune(fresh(lab), tmp_path / "whole", STAGE)
    asked, heard = [], Breaks(-1)
    with pytest.raises(Interrupted):
        lab.tune(fresh(lab), tmp_path / "o", STAGE, listener=heard, stopping=lambda: asked.append(0) or len(asked) >= 4)
    assert [step for step, _ in found_in(tmp_path / "o")] == [4]
    assert heard.said[-1].startswith("instruct: stopped after step 4, ") and "goes on from there" in heard.said[-1]
    ran = lab.tune(fresh(lab), tmp_path / "o", STAGE, stopping=lambda: len(found_in(tmp_path / "o")) > 1)
    assert curve(ran) == curve(whole)
    for name, weight in whole.result.weights.items():
        assert torch.equal(weight, ran.result.weights[name]), name


def test_a_wish_that_comes_in_the_last_step_lets_the_stage_end(lab, tmp_path):
    stage = STAGE.model_copy(update={"epochs": None, "steps": 2})
    asked = []
    ran = lab.tune(fresh(lab), tmp_path, stage, stopping=lambda: asked.append(0) or len(asked) >= 2)
    assert ran.result.n_steps == 2 and found_in(tmp_path) == []


def test_a_gradient_that_is_no_number_stops_the_run_before_the_weights_take_it_in(lab, tmp_path, monkeypatch):
    lines = lab.tune(fresh(lab), tmp_path / "whole", STAGE).lines
    assert all(0 < line["grad_norm"] < 1e3 for line in lines) and len({line["grad_norm"] for line in lines}) == len(
        lines
    )
    real, calls = StageTrainer._clip_grad_norm, []

    def clip(self, model):
        calls.append(model)
        return torch.tensor(float("inf")) if len(calls) == 3 else real(self, model)

    monkeypatch.setattr(StageTrainer, "_clip_grad_norm", clip)
    with pytest.raises(TrainError, match=r"norm of the gradient of step 3 is inf; .* last good checkpoint is .*-2"):
        lab.tune(fresh(lab), tmp_path / "o", STAGE, common=lab.saving(1))


def test_time_left_counts_what_looks_and_checkpoints_take(lab, tmp_path):
    heard = Breaks(-1)
    slow = lambda wrapped, model, step: time.sleep(0.2) or {"eval_loss": 1.0}  # noqa: E731
    stage = STAGE.model_copy(update={"epochs": None, "steps": 11})
    lab.tune(fresh(lab), tmp_path, stage, listener=heard, common=lab.saving(100), evaluate=slow, eval_every=1)
    left = [int(text.split()[-3]) for text in heard.said if text.endswith(" s left")]
    assert len(left) == 10 and all(seconds >= 0.2 * (10 - n) - 1 for n, seconds in enumerate(left))
    assert [in_time(s) for s in (40, 720, 11100, 187200)] == ["40 s", "12 min", "3 h 05 min", "2 d 4 h"]


def test_accumulation_does_not_change_what_is_learned(lab, tmp_path):
    rans = [lab.tune(fresh(lab), tmp_path / str(n), STAGE.model_copy(update={"per_device": n})) for n in (4, 2, 1)]
    for other in rans[1:]:
        for mine, theirs in zip(rans[0].lines, other.lines, strict=True):
            assert theirs["loss"] == pytest.approx(mine["loss"], abs=1e-5)


def test_a_loss_that_is_no_number_stops_the_run_and_the_last_good_checkpoint_stays(lab, tmp_path):
    model = fresh(lab)
    with pytest.raises(TrainError, match=r"the loss of step 6 is nan; .* last good checkpoint is .*checkpoint-4"):
        lab.tune(model, tmp_path, STAGE, common=lab.saving(2), listener=Poisons(model, 5))
    assert [step for step, _ in found_in(tmp_path)] == [2, 4]


def test_spoilt_weights_are_not_saved(lab, tmp_path):
    model = fresh(lab)
    with pytest.raises(TrainError, match=r"no numbers any more .*not saved, .*checkpoint-2"):
        lab.tune(model, tmp_path, STAGE, common=lab.saving(2), listener=Poisons(model, 4))
    assert [step for step, _ in found_in(tmp_path)] == [2]


def test_a_full_disk_keeps_the_checkpoints_before(lab, tmp_path, monkeypatch):
    real, calls = trainer_module.save_weights, []

    def save(weights, path):
        calls.append(path)
        real(weights, path)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trainer_module, "save_weights", save)
    with pytest.raises(TrainError, match="no room for the checkpoint of step 4"):
        lab.tune(fresh(lab), tmp_path, STAGE, common=lab.saving(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-2", "metrics.jsonl"]


def test_out_of_memory_says_what_to_lower(lab, tmp_path, monkeypatch):
    def full(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(PackedLoss, "forward", full)
    with pytest.raises(TrainError, match=r"per_device \(now 2\), packing \(now 2\).*gradient_checkpointing"):
        lab.tune(fresh(lab), tmp_path, STAGE)


def test_the_batch_that_fits_is_found(lab, tmp_path, monkeypatch):
    real = PackedLoss.forward

    def forward(self, batch):
        if len(batch.packed.ids) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return real(self, batch)

    monkeypatch.setattr(PackedLoss, "forward", forward)
    stage = STAGE.model_copy(update={"per_device": "auto", "batch_size": 8, "epochs": 2})
    ran = lab.tune(fresh(lab), tmp_path, stage)
    assert ran.result.per_device == 2
    assert find_per_device.__module__ == "vidqa.train.stage.batch_size"


def test_gradient_checkpointing_gives_the_same_losses(lab, tmp_path):
    plain = lab.tune(fresh(lab), tmp_path / "plain", STAGE)
    common = lab.saving(100)
    hardware = common.hardware.model_copy(update={"gradient_checkpointing": True})
    saving = lab.tune(fresh(lab), tmp_path / "saving", STAGE, common=type(common)(hardware, common.output))
    assert [a["loss"] for a in saving.lines] == pytest.approx([b["loss"] for b in plain.lines], abs=1e-6)
