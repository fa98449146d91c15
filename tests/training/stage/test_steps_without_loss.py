"""A step whose samples are all rejected has no loss, and bfloat16 on a CPU trains."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from vidqa.records import Features
from vidqa.training.api import SamplesInMemory
from vidqa.training.data.rejects import Rejected
from vidqa.training.data.sample import SampleError
from vidqa.training.recipe.definition import Hardware, Stage
from vidqa.training.stage.metrics import StageTotals, StepTotals

pytestmark = pytest.mark.slow

STAGE = Stage(kind="connector", batch_size=1, per_device_batch_size=1, epochs=1, learning_rate=1e-3)


def test_totals_ignore_steps_without_loss() -> None:
    totals = StageTotals()
    totals.add(StepTotals(loss=0.0, n_rejected=2))
    assert totals.mean_loss is None
    totals.add(StepTotals(loss=6.0, n_targets=3))
    assert totals.mean_loss == 2.0


def test_a_step_whose_samples_are_all_rejected_has_no_loss(
    lab: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rejected(self: SamplesInMemory, index: int, error: SampleError, id: str | None = None) -> Rejected:
        return Rejected("data.json", index, str(index), error.kind, error.what)  # as a corpus of files does

    monkeypatch.setattr(SamplesInMemory, "rejected", rejected)

    def features(path: str) -> Features:
        if path == "2.mp4":
            raise SampleError("media_unreadable", "2.mp4 is damaged")
        return lab.make_features(1)

    samples = [lab.make_sample(0, "1.mp4"), lab.make_sample(1, "2.mp4")]
    trained = lab.train(lab.make_model(), tmp_path, STAGE, samples, shuffled=False, features=features)
    first, last = trained.lines
    assert first["loss"] > 0 and (last["loss"], last["rejected"]) == (None, 1)
    assert trained.result.mean_loss == first["loss"]


def test_bfloat16_on_a_cpu_trains(lab: SimpleNamespace, tmp_path: Path) -> None:
    exact = lab.train(lab.make_model(), tmp_path / "fp32", STAGE)
    rounded = lab.train(lab.make_model(), tmp_path / "bf16", STAGE, hardware=Hardware(precision="bf16"))
    pairs = [(a["loss"], b["loss"]) for a, b in zip(exact.lines, rounded.lines, strict=True)]
    assert pairs[0][0] == pytest.approx(pairs[0][1], rel=0.02) and any(a != b for a, b in pairs)
