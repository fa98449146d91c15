"""A run that is interrupted and resumed has the same losses and weights as an uninterrupted one, bit for bit."""

import errno
import time

import pytest
import torch

from vidqa.errors import TrainError
from vidqa.model.lora import attach_lora
from vidqa.training.recipe.definition import Hardware, Lora, Stage
from vidqa.training.stage import trainer as trainer_module
from vidqa.training.stage.batch_size import find_per_device_batch_size
from vidqa.training.stage.callbacks import Interrupted, Silent, duration_text
from vidqa.training.stage.checkpoints import list_checkpoints
from vidqa.training.stage.loss import PackedLoss
from vidqa.training.stage.trainer import StageTrainer

pytestmark = pytest.mark.slow

STAGE = Stage(kind="instruct", epochs=5, batch_size=4, per_device_batch_size=2, learning_rate=3e-3, packing=2)


class InterruptAfter(Silent):
    """A listener that interrupts the run after some steps, before the last of them is saved."""

    def __init__(self, n_steps):
        self.remaining, self.messages, self.bars = n_steps, [], []

    def progress(self, total, unit, done=0, *, phase):
        self.bars.append((total, unit, done))
        return super().progress(total, unit, done, phase=phase)

    def message(self, text, *, level=1):
        self.messages.append(text)

    def advance(self, n=1):
        self.remaining -= n
        if self.remaining == 0:
            raise KeyboardInterrupt


class CorruptAfter(Silent):
    """A listener that sets a weight to NaN after some steps."""

    def __init__(self, model, n_steps):
        self.model, self.remaining = model, n_steps

    def advance(self, n=1):
        self.remaining -= n
        if self.remaining == 0:
            with torch.no_grad():
                next(self.model.connector.parameters()).fill_(float("nan"))


def new_model(lab, lora=False):
    model = lab.make_model()
    if lora:
        torch.manual_seed(1)
        attach_lora(model.llm, 2, 4.0, 0.25)  # with dropout, so the RNG state must be restored as well
    return model


def curve(trained):
    return [(line["step"], line["loss"], line["lr"], line["padding"]) for line in trained.lines]


@pytest.mark.parametrize("lora", [False, True])
def test_a_resumed_run_equals_an_uninterrupted_run(lab, tmp_path, lora):
    stage = STAGE.model_copy(update={"lora": Lora(r=2, alpha=4.0, dropout=0.25)}) if lora else STAGE
    full = lab.train(new_model(lab, lora), tmp_path / "full", stage, **lab.save_every(3))
    assert full.result.n_steps > 6 and len({line["loss"] for line in full.lines}) > 6
    for after, resumed_at in ((2, None), (4, None), (2, 3)):  # before the first checkpoint, after it, and once more
        listener = InterruptAfter(after)
        with pytest.raises(KeyboardInterrupt):
            lab.train(new_model(lab, lora), tmp_path / "resumed", stage, **lab.save_every(3), listener=listener)
        assert (f"instruct: resuming from step {resumed_at}" in listener.messages) == (resumed_at is not None)
        assert listener.bars == [(full.result.n_steps, "step", resumed_at or 0)]
    trained = lab.train(new_model(lab, lora), tmp_path / "resumed", stage, **lab.save_every(3))
    assert list_checkpoints(tmp_path / "resumed")[0][0] == 3  # it did resume from a checkpoint
    assert curve(trained) == curve(full)
    assert trained.result.n_samples == full.result.n_samples
    assert trained.result.weights.keys() == full.result.weights.keys()
    for name, weight in full.result.weights.items():
        assert torch.equal(weight, trained.result.weights[name]), name


def test_a_run_that_is_asked_to_stop_saves_a_checkpoint_and_resumes_exactly(lab, tmp_path):
    full = lab.train(new_model(lab), tmp_path / "full", STAGE)
    calls, listener = [], InterruptAfter(-1)
    with pytest.raises(Interrupted):
        lab.train(
            new_model(lab),
            tmp_path / "o",
            STAGE,
            listener=listener,
            should_stop=lambda: calls.append(0) or len(calls) >= 4,
        )
    assert [step for step, _ in list_checkpoints(tmp_path / "o")] == [4]
    message = listener.messages[-1]
    assert message.startswith("instruct: stopped after step 4, ") and "run the same command again to resume" in message
    trained = lab.train(
        new_model(lab), tmp_path / "o", STAGE, should_stop=lambda: len(list_checkpoints(tmp_path / "o")) > 1
    )
    assert curve(trained) == curve(full)
    for name, weight in full.result.weights.items():
        assert torch.equal(weight, trained.result.weights[name]), name


def test_a_stop_request_in_the_last_step_lets_the_stage_finish(lab, tmp_path):
    stage = STAGE.model_copy(update={"epochs": None, "steps": 2})
    calls = []
    trained = lab.train(new_model(lab), tmp_path, stage, should_stop=lambda: calls.append(0) or len(calls) >= 2)
    assert trained.result.n_steps == 2 and list_checkpoints(tmp_path) == []


def test_a_non_finite_gradient_stops_the_run_before_the_optimizer_step(lab, tmp_path, monkeypatch):
    lines = lab.train(new_model(lab), tmp_path / "full", STAGE).lines
    assert all(0 < line["grad_norm"] < 1e3 for line in lines) and len({line["grad_norm"] for line in lines}) == len(
        lines
    )
    real, calls = StageTrainer._clip_grad_norm, []

    def clip(self, model):
        calls.append(model)
        return torch.tensor(float("inf")) if len(calls) == 3 else real(self, model)

    monkeypatch.setattr(StageTrainer, "_clip_grad_norm", clip)
    with pytest.raises(TrainError, match=r"the gradient norm of step 3 is inf; .* last good checkpoint is .*-2"):
        lab.train(new_model(lab), tmp_path / "o", STAGE, **lab.save_every(1))


def test_the_remaining_time_includes_evaluations_and_checkpoints(lab, tmp_path):
    listener = InterruptAfter(-1)
    slow = lambda wrapped, model, step: time.sleep(0.2) or {"eval_loss": 1.0}  # noqa: E731
    stage = STAGE.model_copy(update={"epochs": None, "steps": 11})
    lab.train(new_model(lab), tmp_path, stage, listener=listener, **lab.save_every(100), evaluate=slow, eval_steps=1)
    remaining = [int(text.split()[-3]) for text in listener.messages if text.endswith(" s left")]
    assert len(remaining) == 10
    assert all(seconds >= 0.2 * (10 - n) - 1 for n, seconds in enumerate(remaining))
    assert [duration_text(s) for s in (40, 720, 11100, 187200)] == ["40 s", "12 min", "3 h 05 min", "2 d 4 h"]


def test_gradient_accumulation_does_not_change_the_losses(lab, tmp_path):
    runs = [
        lab.train(new_model(lab), tmp_path / str(n), STAGE.model_copy(update={"per_device_batch_size": n}))
        for n in (4, 2, 1)
    ]
    for other in runs[1:]:
        for expected, actual in zip(runs[0].lines, other.lines, strict=True):
            assert actual["loss"] == pytest.approx(expected["loss"], abs=1e-5)


def test_a_non_finite_loss_stops_the_run_and_the_last_good_checkpoint_remains(lab, tmp_path):
    model = new_model(lab)
    with pytest.raises(TrainError, match=r"the loss of step 6 is nan; .* last good checkpoint is .*checkpoint-4"):
        lab.train(model, tmp_path, STAGE, **lab.save_every(2), listener=CorruptAfter(model, 5))
    assert [step for step, _ in list_checkpoints(tmp_path)] == [2, 4]


def test_non_finite_weights_are_not_saved(lab, tmp_path):
    model = new_model(lab)
    with pytest.raises(TrainError, match=r"weights are not finite .*not saved, .*checkpoint-2"):
        lab.train(model, tmp_path, STAGE, **lab.save_every(2), listener=CorruptAfter(model, 4))
    assert [step for step, _ in list_checkpoints(tmp_path)] == [2]


def test_a_full_disk_keeps_earlier_checkpoints(lab, tmp_path, monkeypatch):
    real, calls = trainer_module.save_weights, []

    def save(weights, path):
        calls.append(path)
        real(weights, path)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trainer_module, "save_weights", save)
    with pytest.raises(TrainError, match="disk full while writing the checkpoint of step 4"):
        lab.train(new_model(lab), tmp_path, STAGE, **lab.save_every(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-2", "metrics.jsonl"]


def test_an_out_of_memory_error_names_the_settings_to_lower(lab, tmp_path, monkeypatch):
    def full(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(PackedLoss, "forward", full)
    with pytest.raises(
        TrainError, match=r"per_device_batch_size \(now 2\); lower packing \(now 2\).*gradient_checkpointing"
    ):
        lab.train(new_model(lab), tmp_path, STAGE)


def test_the_largest_batch_size_that_fits_is_found(lab, tmp_path, monkeypatch):
    real = PackedLoss.forward

    def forward(self, batch):
        if len(batch.packed.ids) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return real(self, batch)

    monkeypatch.setattr(PackedLoss, "forward", forward)
    stage = STAGE.model_copy(update={"per_device_batch_size": "auto", "batch_size": 8, "epochs": 2})
    trained = lab.train(new_model(lab), tmp_path, stage)
    assert trained.result.per_device == 2
    assert find_per_device_batch_size.__module__ == "vidqa.training.stage.batch_size"


def test_gradient_checkpointing_does_not_change_the_losses(lab, tmp_path):
    plain = lab.train(new_model(lab), tmp_path / "plain", STAGE)
    hardware = Hardware(gradient_checkpointing=True)
    recomputed = lab.train(new_model(lab), tmp_path / "recomputed", STAGE, hardware=hardware)
    assert [a["loss"] for a in recomputed.lines] == pytest.approx([b["loss"] for b in plain.lines], abs=1e-6)
