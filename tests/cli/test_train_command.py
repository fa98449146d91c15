"""`vidqa train`, from a recipe to a model that answers: interrupted, resumed, rejected, and without a cache."""

import errno
import importlib.util
import json
import os
import re
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vidqa.model.bundle.bundle import BUNDLE_FILE, load_bundle, save_bundle
from vidqa.training.data.rejects import Rejected, write_rejects
from vidqa.training.outputs.plots import NO_MATPLOTLIB
from vidqa.training.stage.metrics import MetricsFile

pytestmark = pytest.mark.slow

SMALL = Path(__file__).parents[2] / "examples" / "recipes" / "small.toml"


def conversation(n, video, question="What is it?", answer="red"):
    key = {} if video is None else {"video": video}
    tag = "" if video is None else "<video>\n"
    turns = [{"from": "human", "value": tag + question}, {"from": "gpt", "value": answer}]
    return {"id": f"r{n}", **key, "conversations": turns}


@pytest.fixture
def recipe(tmp_path, tiny_bundle, clips):
    """A function that writes a recipe for the tiny model and the three videos."""

    def write(records=None, *, stages='[[stage]]\nkind = "connector"\nsteps = 3', top="", more=""):
        records = records or [
            conversation(0, "a.mp4"),
            conversation(1, "a.mp4", "How many?", "two"),
            conversation(2, "b.mp4", answer="blue"),
            conversation(3, None, "Write ten", "ten"),
            conversation(4, "deeper/c.mp4"),
        ]
        (tmp_path / "data.json").write_text(json.dumps(records))
        stages = stages.replace("\nsteps", "\nbatch_size = 2\nper_device_batch_size = 2\nlearning_rate = 1e-3\nsteps")
        text = (
            f'{top}\n[model]\nbase = "{tiny_bundle}"\n[[data]]\nfile = "data.json"\nmedia = "clips"\n{stages}\n{more}\n'
        )
        path = tmp_path / "recipe.toml"
        path.write_text(text)
        return path

    return write


TWO_STAGES = '[[stage]]\nkind = "connector"\nsteps = 3\n[[stage]]\nkind = "instruct"\nsteps = 4'


def losses(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["stage"], line["step"], line["loss"], line["lr"]) for line in lines if line["step"]]


@pytest.mark.smoke
def test_two_stages_train_a_model_that_answers(vidqa, recipe, tmp_path, clips, tiny_bundle):
    more = '[eval]\nfile = "data.json"\nmedia = "clips"\neval_steps = 2\nsamples = 2\nmax_new_tokens = 4'
    path, out = recipe(stages=TWO_STAGES, more=more), tmp_path / "finetuned"
    done = vidqa("train", path, "--out", out, "--json")
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert summary["n_steps"] == 7 and summary["n_samples"] == 14 and summary["n_rejected"] == 0
    assert "connector: step 3/3, loss " in done.err and "held-out loss" in done.err
    assert [line[:2] for line in losses(out)] == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3), (2, 4)]

    before, after = load_file(tiny_bundle / "connector.safetensors"), load_file(out / "connector.safetensors")
    assert all(not torch.equal(before[k], after[k]) for k in before)
    assert not torch.equal(*(load_file(b / "llm/model.safetensors")["lm_head.weight"] for b in (tiny_bundle, out)))
    exported = torch.load(out / "export" / "mm_projector.bin", weights_only=True)
    assert set(exported) == {f"model.mm_projector.{k}" for k in after}
    assert torch.equal(exported["model.mm_projector.0.weight"], after["0.weight"])

    samples = pl.read_parquet(out / "samples.parquet")
    assert samples.group_by("stage", "step").len().sort("stage", "step").rows() == [
        (1, 0, 2),
        (1, 2, 2),
        (1, 3, 2),
        (2, 2, 2),
        (2, 4, 2),
    ]
    assert samples["question"][0] == "What is it?" and samples["truth"][0] == "red"
    assert pl.read_parquet(out / "rejects.parquet").is_empty()
    assert "All of them" not in (out / "report.md").read_text()
    report = (out / "report.md").read_text()
    assert "| connector | 3 | 6 |" in report and "| instruct | 4 | 8 |" in report and "None." in report
    assert "| data.json | 5 | 1.0 |" in report and '"media": "clips"' in report  # as the recipe has it
    assert str(tmp_path) not in report.replace(str(tiny_bundle), "")  # the recipe names the base so
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")

    assert vidqa("models", "verify", out).code == 0
    answered = vidqa("ask", clips / "a.mp4", "What is it?", "--model", out, "--json")
    assert answered.code == 0, answered.err
    assert json.loads(answered.out)["model"] == "recipe"

    again = vidqa("train", path, "--out", out)
    assert again.code == 0 and "1-connector: already done" in again.err


def test_held_out_loss_and_result_use_the_chat_format_of_the_stage(vidqa, recipe, tmp_path):
    more = '[eval]\nfile = "data.json"\nmedia = "clips"\nsamples = 0'
    stages = '[[stage]]\nkind = "connector"\nprompt = "plain"\nsteps = 1\n[[stage]]\nkind = "instruct"\nsteps = 1'
    held_out = {}
    for prompt in ("v1", "llava_v0"):
        out = tmp_path / prompt
        asked = stages.replace(
            '"instruct"', f'"instruct"\nwarmup_ratio = 1.0\nprompt = "{prompt}"'
        )  # its only step is at lr 0
        done = vidqa("train", recipe(stages=asked, more=more), "--out", out)
        assert done.code == 0, done.err
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        held_out[prompt] = [line["eval_loss"] for line in lines if line["step"]]
        written = json.loads((out / "bundle.json").read_text())
        assert written["prompt"]["format"] == prompt and written["source"]["base"].startswith("tiny@")
    first, second = zip(*held_out.values(), strict=True)
    assert first[0] == first[1]  # both were trained on plain captions
    assert second[0] != second[1]


def test_an_adapter_is_stored_separately_or_merged(vidqa, recipe, tmp_path, clips, tiny_bundle):
    stages = '[[stage]]\nkind = "instruct"\nsteps = 3\n[stage.lora]\nr = 2\nalpha = 64.0\ndropout = 0.0'
    answers, weights = [], []
    for merge in ("false", "true"):
        out = tmp_path / merge
        done = vidqa("train", recipe(stages=stages, more=f"[output]\nmerge_lora = {merge}"), "--out", out)
        assert done.code == 0, done.err
        assert vidqa("models", "verify", out).code == 0
        answered = vidqa("ask", clips / "a.mp4", "What is it?", "--model", out)
        assert answered.code == 0, answered.err
        answers.append(answered.out)
        from vidqa.model.bundle.bundle import load_bundle
        from vidqa.model.video_llava import load_model

        weights.append(load_model(load_bundle(out), "cpu").state_dict())
    apart, merged = tmp_path / "false" / "llm", tmp_path / "true" / "llm"
    assert (apart / "model.safetensors").read_bytes() == (tiny_bundle / "llm/model.safetensors").read_bytes()
    assert "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight" in load_file(
        apart / "adapter/adapter_model.safetensors"
    )
    assert not (merged / "adapter").exists()
    assert answers[0] == answers[1]
    assert weights[0].keys() == weights[1].keys()
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name])
    plain = load_file(tiny_bundle / "llm/model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(weights[0][f"llm.{name}"], plain[name])


def test_on_the_fly_has_the_same_losses_and_stores_no_features(vidqa, recipe, tmp_path):
    path = recipe(stages=TWO_STAGES)
    for encode in ("cache", "on-the-fly"):
        done = vidqa(
            "train", path, "--out", tmp_path / encode, "--encode", encode, "--cache-dir", tmp_path / f"c{encode}"
        )
        assert done.code == 0, done.err
    assert "the cache would need up to " in done.err
    assert not list((tmp_path / "con-the-fly").rglob("*.safetensors"))
    cached, live = losses(tmp_path / "cache"), losses(tmp_path / "on-the-fly")
    for expected, actual in zip(cached, live, strict=True):
        assert actual[:2] == expected[:2] and actual[2] == pytest.approx(expected[2], abs=1e-4)


@pytest.mark.timeout(900)
def test_a_killed_run_resumes_to_the_same_model(start, vidqa, recipe, tmp_path):
    stages = TWO_STAGES.replace("steps = 3", "steps = 5").replace("steps = 4", "steps = 60")
    path = recipe(stages=stages, more="[output]\nsave_steps = 2\nmm_projector = false\n[logging]\nlogging_steps = 1")
    assert vidqa("train", path, "--out", tmp_path / "full").code == 0
    process = start("train", path, "--out", tmp_path / "resumed")
    ready = tmp_path / "resumed/work/2-instruct"
    until = time.monotonic() + 200
    while not list(ready.glob("checkpoint-*")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    _, stderr = process.communicate()
    assert list(ready.glob("checkpoint-*")), stderr
    assert not (tmp_path / "resumed/bundle.json").exists()
    done = vidqa("train", path, "--out", tmp_path / "resumed")
    assert done.code == 0, done.err
    assert "1-connector: already done" in done.err and "instruct: resuming from step " in done.err
    assert losses(tmp_path / "resumed") == losses(tmp_path / "full")
    for name in ("connector.safetensors", "llm/model.safetensors"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "full" / name).read_bytes()


@pytest.mark.timeout(900)
def test_a_signal_ends_the_step_and_saves_a_checkpoint(start, vidqa, recipe, tmp_path):
    stages = '[[stage]]\nkind = "connector"\nsteps = 40'
    path = recipe(stages=stages, more="[logging]\nlogging_steps = 1")
    process = start("train", path, "--out", tmp_path / "o")
    until = time.monotonic() + 200
    while not (tmp_path / "o/metrics.jsonl").exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    _, stderr = process.communicate()
    step = losses(tmp_path / "o")[-1][1]
    assert process.returncode == 143 and f"connector: stopped after step {step}, " in stderr, stderr
    assert [p.name for p in (tmp_path / "o/work/1-connector").glob("checkpoint-*")] == [f"checkpoint-{step}"]
    done = vidqa("train", path, "--out", tmp_path / "o")
    assert done.code == 0 and f"connector: resuming from step {step}" in done.err, done.err
    assert [line[1] for line in losses(tmp_path / "o")] == list(range(1, 41))


@pytest.mark.parametrize(("rank", "printed"), [("0", "vidqa: terminated\n"), ("1", "")])
def test_of_several_processes_only_the_first_prints(vidqa, monkeypatch, rank, printed):
    """All of them receive the signal of a terminal or of torchrun."""
    from vidqa.pipeline import train

    def stopped(*_, reporter, **__):
        with reporter.stop.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)

    monkeypatch.setattr(train, "train", stopped)
    monkeypatch.setenv("RANK", rank)
    done = vidqa("train", "recipe.toml")
    assert done.code == 143 and done.out == ""
    first = "stopping after the current batch; press Ctrl-C again to exit at once\n"
    assert done.err == (first + printed if rank == "0" else "")


def test_a_changed_recipe_does_not_resume_another_run(vidqa, recipe, tmp_path):
    out = tmp_path / "out"
    assert vidqa("train", recipe(), "--out", out).code == 0
    changed = recipe(top="seed = 5")
    rejected = vidqa("train", changed, "--out", out)
    assert rejected.code == 2
    assert "has a run with a different recipe" in rejected.err and "--resume never" in rejected.err
    assert "\n  seed: was 0, is 5\n" in rejected.err
    restarted = vidqa("train", changed, "--out", out, "--resume", "never")
    assert restarted.code == 0 and len(losses(out)) == 3


def test_unseen_pairs_are_ignored_in_the_loss_and_are_part_of_the_run(vidqa, recipe, tmp_path):
    pairs = tmp_path / "pairs.toml"
    pairs.write_text('pairs = [["red", "star"]]\n[groups]\ncolour = ["red", "blue"]\nshape = ["star", "ring"]\n')
    records = [conversation(n, "a.mp4", "What colour is the star?", "It is blue") for n in range(4)]
    stage = '[[stage]]\nkind = "instruct"\nsteps = 2'
    file = recipe(records, stages=stage)
    assert vidqa("train", file, "--out", tmp_path / "plain").code == 0
    file = recipe(records, stages=f'{stage}\nunseen_pairs = "pairs.toml"')
    assert vidqa("train", file, "--out", tmp_path / "out").code == 0
    (_, _, plain, _), (_, _, without, _) = losses(tmp_path / "plain")[0], losses(tmp_path / "out")[0]
    assert without < plain  # the tiny model would predict `red`
    assert '"unseen_pairs": "pairs.toml"' in (tmp_path / "out" / "report.md").read_text()
    checked = vidqa("train", file, "--check-data", "--out", tmp_path / "check")
    assert "unseen pairs: 4 answer tokens whose loss ignores other tokens" in checked.err + checked.out
    pairs.write_text(pairs.read_text().replace("star", "ring", 1))
    rejected = vidqa("train", file, "--out", tmp_path / "out")
    assert rejected.code == 2 and "stage.1.unseen_pairs" in rejected.err
    pairs.write_text("pairs = 3\n")
    rejected = vidqa("train", file, "--out", tmp_path / "out")
    assert rejected.code == 2 and f"{pairs}:1: `pairs`: input should be a valid tuple" in rejected.err


def test_a_sweep_over_seeds_has_different_runs_that_report_their_overrides(vidqa, recipe, tmp_path):
    path = recipe(top="seed = 9", more="[output]\nmm_projector = false")
    written = path.read_text()
    ends = {}
    for seed in (1, 2):
        done = vidqa(
            "train", path, "--set", f"seed={seed}", "--set", "stage.1.learning_rate=5e-3", "--out", tmp_path / str(seed)
        )
        assert done.code == 0, done.err
        report = (tmp_path / str(seed) / "report.md").read_text()
        assert f"- set on the command line: `seed={seed}`, `stage.1.learning_rate=5e-3`" in report
        assert f'"seed": {seed}' in report and '"learning_rate": 0.005' in report
        ends[seed] = losses(tmp_path / str(seed))
    assert path.read_text() == written
    assert ends[1] != ends[2]  # the order of the data differs
    assert max(lr for *_, lr in ends[1]) == 5e-3
    same = vidqa("train", path, "--set", "seed=1", "--set", "stage.1.learning_rate=5e-3", "--out", tmp_path / "1")
    assert same.code == 0 and "1-connector: already done" in same.err
    path.write_text(written.replace("seed = 9", "seed = 1").replace("learning_rate = 1e-3", "learning_rate = 5e-3"))
    assert vidqa("train", path, "--out", tmp_path / "again").code == 0
    assert losses(tmp_path / "again") == ends[1]  # an override is equivalent to a change of the file
    path.write_text(written)
    for others, is_now in (
        (["--set", "seed=2", "--set", "stage.1.learning_rate=5e-3"], "seed: was 1, is 2"),
        ([], "no --set"),
    ):
        rejected = vidqa("train", path, *others, "--out", tmp_path / "1")
        assert rejected.code == 2 and "has a run with a different recipe" in rejected.err, rejected.err
        assert (
            is_now in rejected.err
            and "was started with --set seed=1 --set stage.1.learning_rate=5e-3; this is " in rejected.err
        )
        assert "stage.1.learning_rate: was 0.005, is 0.001" in rejected.err or others
    checked = vidqa("train", path, "--check-data", "--set", "stage.1.steps=7", "--out", tmp_path / "o")
    assert checked.code == 0 and "  7 steps of 2 sequences" in checked.out
    wrong = vidqa(
        "train",
        path,
        "--set",
        "stage.1.learning_rate=fast",
        "--set",
        "stage.2.learning_rate=1",
        "--out",
        tmp_path / "w",
    )
    assert (
        wrong.code == 2
        and "--set stage.1.learning_rate=fast: `stage.learning_rate`" in wrong.err
        and "no stage `2`" in wrong.err
    )
    assert not (tmp_path / "w").exists()


def full_after(monkeypatch, n):
    """Simulate a full disk after n writes of metrics."""
    real, calls = MetricsFile.flush, []

    def flush(self):
        calls.append(self)
        if len(calls) > n:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self)

    monkeypatch.setattr(MetricsFile, "flush", flush)


def test_settings_that_an_error_suggests_to_change_may_change_on_resume(vidqa, recipe, tmp_path, monkeypatch):
    stages = (
        '[[stage]]\nkind = "connector"\nbatch_size = 2\nper_device_batch_size = 2\nlearning_rate = 1e-3\nepochs = 2'
    )
    more = "[output]\nsave_steps = 1\n[logging]\nlogging_steps = 1"
    assert vidqa("train", recipe(stages=stages, more=more), "--out", tmp_path / "full").code == 0
    with monkeypatch.context() as full:
        full_after(full, 4)
        assert vidqa("train", recipe(stages=stages, more=more), "--out", tmp_path / "o").code == 1
    smaller = stages.replace("per_device_batch_size = 2", "per_device_batch_size = 1")
    changed = (
        f'{more}\n[hardware]\ngradient_checkpointing = true\n[eval]\nfile = "data.json"\nmedia = "clips"\nsamples = 0'
    )
    done = vidqa("train", recipe(stages=smaller, more=changed, top="max_reject_rate = 0.5"), "--out", tmp_path / "o")
    assert done.code == 0 and "connector: resuming from step 2" in done.err, done.err
    for expected, actual in zip(losses(tmp_path / "o"), losses(tmp_path / "full"), strict=True):
        assert expected[:2] == actual[:2] and expected[2] == pytest.approx(actual[2], abs=1e-4)


def test_a_run_without_checkpoints_may_be_replaced_by_another_recipe(vidqa, recipe, tmp_path, monkeypatch):
    with monkeypatch.context() as full:
        full_after(full, 0)
        assert vidqa("train", recipe(more="[logging]\nlogging_steps = 1"), "--out", tmp_path / "o").code == 1
    done = vidqa("train", recipe(top="seed = 5"), "--out", tmp_path / "o")
    assert done.code == 0 and len(losses(tmp_path / "o")) == 3, done.err


def test_a_resumed_run_has_the_rejects_of_its_checkpoint(vidqa, recipe, tmp_path, monkeypatch):
    records = [conversation(n, "a.mp4", answer=" " if n % 2 else "red") for n in range(6)]
    stages = '[[stage]]\nkind = "connector"\nbatch_size = 2\nper_device_batch_size = 2\nepochs = 1'
    path = recipe(
        records,
        stages=stages,
        top="max_reject_rate = 0.9",
        more="[output]\nsave_steps = 1\n[logging]\nlogging_steps = 1",
    )
    with monkeypatch.context() as full:
        full_after(full, 4)
        assert vidqa("train", path, "--out", tmp_path / "o").code == 1
    write_rejects(
        tmp_path / "o/work/1-connector/rejects.parquet",
        [Rejected(str(tmp_path / "data.json"), 4, "r4", "media_missing", "fixed since")],
    )
    done = vidqa("train", path, "--out", tmp_path / "o")
    assert done.code == 0 and "resuming from step 2" in done.err, done.err
    assert pl.read_parquet(tmp_path / "o/rejects.parquet")["id"].to_list() == ["r1", "r3", "r5"]
    assert "- connector: 3 answerless" in (tmp_path / "o/report.md").read_text()


def test_a_full_disk_is_reported_and_the_run_can_be_resumed(vidqa, recipe, tmp_path, monkeypatch):
    path = recipe(more="[output]\nsave_steps = 1\n[logging]\nlogging_steps = 1")
    with monkeypatch.context() as full:
        full_after(full, 4)
        stopped = vidqa("train", path, "--out", tmp_path / "o")
    assert stopped.code == 1 and f"disk full while writing the run in {tmp_path / 'o'}: No space left" in stopped.err
    assert "run the same command again: it resumes from the last checkpoint" in stopped.err
    done = vidqa("train", path, "--out", tmp_path / "o")
    assert done.code == 0 and "connector: resuming from step 2" in done.err, done.err
    assert [line[1] for line in losses(tmp_path / "o")] == [1, 2, 3]


def test_bad_samples_are_rejected_counted_and_listed_until_there_are_too_many(vidqa, recipe, tmp_path, clips):
    (clips / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + b"\0" * 64)
    records = [
        conversation(0, "a.mp4"),
        conversation(1, "gone.mp4"),
        conversation(2, "broken.mp4"),
        conversation(3, "b.mp4", answer=" "),
        conversation(4, "b.mp4", question="<video>\nand again?"),
        conversation(5, "b.mp4", answer="long " * 2000),
    ]
    stages = '[[stage]]\nkind = "connector"\nbatch_size = 3\nper_device_batch_size = 3\nepochs = 2'
    done = vidqa("train", recipe(records, stages=stages, top="max_reject_rate = 0.9"), "--out", tmp_path / "out")
    assert done.code == 0, done.err
    table = pl.read_parquet(tmp_path / "out/rejects.parquet")
    assert dict(table.select("id", "kind").rows()) == {
        "r1": "media_missing",
        "r2": "media_unreadable",
        "r3": "answerless",
        "r4": "placeholder_mismatch",
        "r5": "too_long",
    }
    assert "1 too_long" in (tmp_path / "out/report.md").read_text()
    stopped = vidqa("train", recipe(records, stages=stages), "--out", tmp_path / "strict")
    assert stopped.code == 1
    assert "more than max_reject_rate 0.01" in stopped.err
    assert not (tmp_path / "strict/bundle.json").exists()


def test_an_invalid_recipe_is_rejected_before_anything_is_written(vidqa, recipe, tmp_path, monkeypatch):
    done = vidqa(
        "train", recipe(stages='[[stage]]\nkind = "tuning"', more="[hardware]\ngpus = 8"), "--out", tmp_path / "o"
    )
    assert done.code == 2
    assert "recipe.toml:8: `stage.kind`" in done.err and "recipe.toml:10: unknown key `hardware.gpus`" in done.err
    lora = '[[stage]]\nkind = "instruct"\nsteps = 3\n[stage.lora]\nquantize = "4bit"'
    asked = recipe(stages=lora, more='[logging]\nwandb = true\n[hardware]\nfsdp = "full_shard"')
    installed = importlib.util.find_spec
    for missing, words in (
        (
            ("wandb", "bitsandbytes"),
            ("logging.wandb requires the package wandb", "stage.lora.quantize requires the package"),
        ),
        ((), ("hardware.fsdp requires GPUs", "stage instruct: lora.quantize requires a GPU")),
    ):
        there = {name: None if name in missing else installed("json") for name in ("wandb", "bitsandbytes")}
        find = partial(_find, there, installed)
        monkeypatch.setattr(importlib.util, "find_spec", find)
        rejected = vidqa("train", asked, "--out", tmp_path / "o", "--device", "cpu")
        assert rejected.code == 2 and all(one in rejected.err for one in words), rejected.err
    assert not (tmp_path / "o").exists()


def _find(there, installed, name, *more):
    return there[name] if name in there else installed(name, *more)


def test_tensorboard_receives_the_metrics(vidqa, recipe, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = vidqa("train", recipe(more="[logging]\nlogging_steps = 1\ntensorboard = true"), "--out", tmp_path / "o")
    assert done.code == 0, done.err
    events = EventAccumulator(str(tmp_path / "o/work/1-connector/tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"train/loss", "train/lr", "train/padding", "train/tokens_per_s"} <= set(tags)
    written = [(e.step, e.value) for e in events.Scalars("train/loss")]
    assert written == [(step, pytest.approx(loss)) for _, step, loss, _ in losses(tmp_path / "o")]


def test_held_out_losses_are_printed_at_once(vidqa, recipe, tmp_path):
    more = '[eval]\nfile = "data.json"\nmedia = "clips"\neval_steps = 2\nsamples = 0'
    done = vidqa("train", recipe(more=f"{more}\n[logging]\nlogging_steps = 50"), "--out", tmp_path / "o")
    assert done.code == 0, done.err
    printed = [line for line in done.err.splitlines() if "held-out loss" in line and line.startswith("connector: ")]
    assert [line.split(",")[0] for line in printed[1:]] == ["connector: step 2/3", "connector: step 3/3"]
    first = json.loads((tmp_path / "o/metrics.jsonl").read_text().splitlines()[0])
    assert (first["step"], first["loss"]) == (0, None)
    assert printed[0] == f"connector: held-out loss before training {first['eval_loss']:.4f}"


def test_without_matplotlib_plots_are_skipped_with_a_note(vidqa, recipe, tmp_path, monkeypatch):
    for module in ("pipeline.check_data", "pipeline.train", "training.outputs.report"):
        monkeypatch.setattr(f"vidqa.{module}.has_matplotlib", lambda: False)
    note = NO_MATPLOTLIB
    path = recipe(stages='[[stage]]\nkind = "connector"\nsteps = 1')
    checked = vidqa("train", path, "--check-data", "--out", tmp_path / "o")
    assert checked.code == 0 and f"histogram: {note}" in checked.out, checked.err
    done = vidqa("train", path, "--out", tmp_path / "o")
    assert done.code == 0 and f"loss curves: {note}" in done.err, done.err
    assert f"Loss curves: {note}" in (tmp_path / "o/report.md").read_text()
    assert not (tmp_path / "o/curves.png").exists() and not list((tmp_path / "o/check").rglob("*.png"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_shipped_small_recipe(vidqa, tmp_path):
    done = vidqa("train", SMALL, "--out", tmp_path / "small")
    assert done.code == 0, done.err
    curve = [line[2] for line in losses(tmp_path / "small")]
    assert len(curve) == 30 and sum(curve[20:]) / 10 < 0.5 * sum(curve[:10]) / 10


def test_data_is_checked_without_training(vidqa, recipe, tmp_path):
    records = [conversation(0, "a.mp4"), conversation(1, "gone.mp4"), conversation(2, None, "Write ten", "ten")]
    done = vidqa("train", recipe(records), "--check-data", "--out", tmp_path / "o", "--json")
    assert done.code == 1, done.err  # more than 1% is rejected
    (found,) = [json.loads(line) for line in done.out.splitlines()]
    assert found["records"] == 3 and found["rejected"] == {"media_missing": 1} and not found["passes"]
    assert pl.read_parquet(found["rejects"])["id"].to_list() == ["r1"]
    assert found["steps"] == 3 and found["cache_bytes"] > 0
    assert Path(found["histogram"]).read_bytes().startswith(b"\x89PNG")
    good = vidqa("train", recipe(), "--check-data", "--out", tmp_path / "o")
    assert good.code == 0, good.err
    assert "1-connector:" in good.out and "within max_reject_rate" in good.out
    assert "  3 steps of 2 sequences, 1.2 epochs\n  features: up to " in good.out
    assert " free on the disk of the cache\n  checkpoints and model: up to " in good.out
    assert found["cache_free_bytes"] > 1e6 and found["disk_free_bytes"] > 1e6
    assert not (tmp_path / "o" / "bundle.json").exists()


def test_the_check_reports_the_disk_space_that_training_requires(vidqa, recipe, tmp_path, monkeypatch):
    path = recipe(stages=TWO_STAGES, more='[eval]\nfile = "data.json"\nmedia = "clips"')
    done = vidqa("train", path, "--check-data", "--out", tmp_path / "o", "--json")
    connector, both, held_out = (json.loads(line)["disk_bytes"] for line in done.out.splitlines())
    assert 0 < connector < both and held_out is None
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=1 << 40, free=both - 1))
    checked = vidqa("train", path, "--check-data", "--out", tmp_path / "o")
    assert checked.code == 1 and checked.out.count("free on the disk of the run: NOT ENOUGH") == 1, checked.out
    stopped = vidqa("train", path, "--out", tmp_path / "run")
    assert stopped.code == 1 and "not enough disk space for 2 checkpoints and the model" in stopped.err, stopped.err


@pytest.mark.parametrize("as_option", [False, True])
def test_an_impossible_export_is_rejected_before_anything_is_written(vidqa, recipe, tmp_path, as_option):
    pytest.importorskip("onnx")
    path = recipe(more="" if as_option else "[output]\ntransformers = true")
    options = ["--set", "output.transformers=true"] if as_option else []
    rejected = vidqa("train", path, *options, "--set", "model.base=demo", "--out", tmp_path / "o")
    where = "--set output.transformers=true: " if as_option else f"{path}:14: "
    assert rejected.code == 2 and f"{where}`output.transformers`: video.onnx: this encoder has temporal" in rejected.err
    assert "try: transformers = false" in rejected.err and not (tmp_path / "o").exists()
    checked = vidqa("train", path, *options, "--set", "model.base=demo", "--out", tmp_path / "o", "--check-data")
    assert (checked.code, checked.err) == (2, rejected.err) and not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("stage.1.train=['temporal']", "stage connector: this model has no weights for temporal"),
        ("hardware.precision=fp16", 'hardware.precision = "fp16" requires a GPU'),
    ],
)
def test_the_check_refuses_what_training_refuses(vidqa, recipe, tmp_path, settings, words):
    for check in ([], ["--check-data"]):
        refused = vidqa("train", recipe(), "--set", settings, "--out", tmp_path / "o", *check)
        assert refused.code == 2 and words in refused.err, refused.err
        assert not (tmp_path / "o").exists()


def test_the_folder_above_the_run_must_exist(vidqa, recipe, tmp_path):
    for more in ((), ("--check-data",)):
        refused = vidqa("train", recipe(), "--out", tmp_path / "gone" / "run", *more)
        assert refused.code == 2 and f"the folder {tmp_path / 'gone'} does not exist" in refused.err, refused.err
        assert "writable" not in refused.err and not (tmp_path / "gone").exists()


def test_a_run_needs_a_folder_of_its_own(vidqa, recipe, tmp_path, clips):
    before = sorted(clips.rglob("*"))
    for check in ([], ["--check-data"], ["--resume", "never"]):
        refused = vidqa("train", recipe(), "--out", clips, *check)
        assert refused.code == 2 and "clips contains other files (a.mp4, b.mp4, deeper); a training run" in refused.err
    assert sorted(clips.rglob("*")) == before


def test_the_batch_size_alone_is_enough(vidqa, recipe, tmp_path):
    done = vidqa("train", recipe(), "--set", "stage.1.batch_size=3", "--out", tmp_path / "refused")
    assert done.code == 2 and "not a multiple of `per_device_batch_size` 2" in done.err
    path = recipe(stages='[[stage]]\nkind = "connector"\nbatch_size = 3\nsteps=1')
    path.write_text(path.read_text().replace("batch_size = 2\nper_device_batch_size = 2\n", ""))
    done = vidqa("train", path, "--out", tmp_path / "o")
    assert done.code == 0 and "| 1 x 3 |" in (tmp_path / "o/report.md").read_text(), done.err


REWRITES = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if loop.last %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize(
    ("template", "reason"),
    [(None, "the tokenizer has no chat template"), (REWRITES, "turn 1 is written differently once another")],
)
def test_a_chat_template_that_cannot_be_trained_is_refused_once(vidqa, recipe, tmp_path, tiny_bundle, template, reason):
    bundle = load_bundle(str(tiny_bundle))

    def fill(folder):
        shutil.copytree(bundle.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(BUNDLE_FILE))
        settings = json.loads((folder / "llm/tokenizer_config.json").read_text())
        (folder / "llm/tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))

    save_bundle(tmp_path / "base", bundle.spec, fill)
    stages = '[[stage]]\nkind = "connector"\nprompt = "chat_template"\nsteps = 1'
    options = ("--set", f"model.base={tmp_path / 'base'}", "--out", tmp_path / "o")
    for more in ((), ("--check-data",)):
        done = vidqa("train", recipe(stages=stages), *options, *more)
        assert done.code == 1 and done.err.count(reason) == 1, done.err
        assert "cannot be trained with the chat format chat_template" in done.err and "Traceback" not in done.err


def nasty(clips):
    """Records of each published layout, and why each is rejected; None if it is accepted."""
    two = {"video": ["a.mp4", "b.mp4"], "image": "p.png"}
    span = {"source": "VATEX", "video": "abcdefghijk.mp4"}
    (clips / "VATEX").mkdir()
    shutil.copy(clips / "a.mp4", clips / "VATEX/abcdefghijk.mp4")
    Image.new("RGB", (32, 32), "red").save(clips / "p.png")
    (clips / "text.mp4").write_text("no clip\n" * 99)
    llava = [
        ({"id": None, "video": "a.mp4", **turns("What <video> is it?")}, None),
        (two | turns("<video>\nand <image> or <video>?"), None),
        (two | turns("<video>\n<video>?"), "placeholder_mismatch"),
        ({"id": None, "video": "a.mp4", **turns("<VIDEO> What?")}, "placeholder_mismatch"),
        ({"id": "same", **turns("Only text")}, None),
        ({"id": "same", **turns("Only text", " ")}, "answerless"),
        ({"video": "p.png", **turns("<video>")}, "media_unreadable"),
        ({"image": "a.mp4", **turns("<image>")}, "media_unreadable"),
        (turns("a </s> b", "<image> </s>"), None),
        (turns("a\0b"), "reserved_text"),
        (turns("a", "b " * 3000), "too_long"),
    ]
    valley = [
        (span | {"v_id": "abcdefghijk_000000_000001"} | turns("<video>\nWhat?"), None),
        (span | {"v_id": "abcdefghijk_000002_000001"} | turns("<video>\nWhat?"), "bad_span"),
        (span | {"v_id": "abcdefghijk_000900_000901"} | turns("<video>\nWhat?"), "bad_span"),
        (span | {"v_id": "abcdefghijk"} | turns("<video>\nWhat?"), None),
    ]
    instruct = [
        ({"q": "What?", "a": "red", "video_id": "v_c", "id": None}, None),
        ({"q": "<video> What?", "a": "red", "video_id": "a"}, "placeholder_mismatch"),
        ({"q": "What?", "a": 3, "video_id": "a"}, "bad_record"),
        ({"q": "What?", "a": "b\udcff", "video_id": "a"}, "bad_record"),
        ({"q": "What?", "a": "red", "video_id": "text"}, "media_unreadable"),
        ({"q": "What?", "a": "red", "video_id": "gone"}, "media_missing"),
    ]
    return llava, valley, instruct


def turns(question, answer="red"):
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


@pytest.mark.slow
def test_chat_records_are_checked_and_trained(vidqa, tmp_path, clips, tiny_bundle):
    def chat(part):
        user = {"role": "user", "content": [part, {"type": "text", "text": "What?"}]}
        return json.dumps({"messages": [user, {"role": "assistant", "content": "red"}]})

    parts = [{"type": "video", "video": "a.mp4"}, {"type": "video_url", "video_url": {"url": "b.mp4"}}]
    remote = {"type": "image_url", "image_url": {"url": "https://example.org/a.jpg"}}
    (tmp_path / "chat.jsonl").write_text("\n".join(chat(part) for part in [*parts, remote]))
    path = tmp_path / "chat.toml"
    path.write_text(
        f'max_reject_rate = 0.5\n[model]\nbase = "{tiny_bundle}"\n[[data]]\nfile = "chat.jsonl"\nmedia = "clips"\n'
        '[[stage]]\nkind = "connector"\nsteps = 1\nbatch_size = 2\nper_device_batch_size = 2\n'
    )
    checked = vidqa("train", path, "--check-data", "--out", tmp_path / "o", "--json")
    assert checked.code == 0, checked.err
    found = json.loads(checked.out)
    assert found["records"] == 3 and found["rejected"] == {"media_remote": 1}
    (message,) = pl.read_parquet(found["rejects"])["message"]
    assert "https://example.org/a.jpg: only local files are read" in message
    assert vidqa("train", path, "--out", tmp_path / "o").code == 0


def test_check_and_training_reject_the_same_records_of_every_format(vidqa, tmp_path, clips, tiny_bundle):
    llava, valley, instruct = nasty(clips)
    (tmp_path / "llava.json").write_text(json.dumps([record for record, _ in llava]))
    lines = [json.dumps(record) for record, _ in (*valley, *instruct)] + ['{"id": 1, "conv']
    (tmp_path / "mixed.jsonl").write_bytes(b"\xef\xbb\xbf\n\n" + "\r\n \n".join(lines).encode())
    listed = [
        {k: [v] if k in ("image", "video") and isinstance(v, str) else v for k, v in record.items()}
        for record, _ in (*llava, *valley)
    ]
    kinds = {"image": pl.List(pl.String), "video": pl.List(pl.String)}
    pl.DataFrame(listed, schema_overrides=kinds, infer_schema_length=None).write_parquet(tmp_path / "nested.parquet")
    expected = {("llava.json", n): why for n, (_, why) in enumerate(llava)}
    expected |= {("nested.parquet", n): why for n, (_, why) in enumerate((*llava, *valley))}
    expected |= {("mixed.jsonl", n): why for n, (_, why) in enumerate((*valley, *instruct, (None, "bad_json")))}
    sources = (("llava.json", 0.5), ("llava.json", 2.0), ("mixed.jsonl", 1.0), ("nested.parquet", 0.5))
    path = tmp_path / "nasty.toml"
    path.write_text(
        f'max_reject_rate = 0.9\n[model]\nbase = "{tiny_bundle}"\n'
        + "".join(
            f'[[data]]\nname = "s{n}"\nfile = "{name}"\nmedia = "clips"\nweight = {weight}\n'
            for n, (name, weight) in enumerate(sources)
        )
        + '[[stage]]\nkind = "connector"\nbatch_size = 8\nper_device_batch_size = 8\nepochs = 2'
    )
    checked = vidqa("train", path, "--check-data", "--out", tmp_path / "o", "--json")
    assert checked.code == 0, checked.err
    found = json.loads(checked.out)
    trained = vidqa("train", path, "--out", tmp_path / "o")
    assert trained.code == 0, trained.err
    before, after = (pl.read_parquet(p) for p in (found["rejects"], tmp_path / "o/rejects.parquet"))
    kinds = {(Path(source).name, n): kind for source, n, kind in before.select("source", "record", "kind").rows()}
    assert kinds == {record: why for record, why in expected.items() if why}
    assert after.select("source", "record", "id", "kind").equals(before.select("source", "record", "id", "kind"))
    assert "None" not in before["id"].to_list()
    assert found["records"] == len(expected) and sum(found["rejected"].values()) == before.height
    report = (tmp_path / "o/report.md").read_text()
    assert "| llava.json | 11 | 0.5 |" in report and "| llava.json | 11 | 2.0 |" in report
    assert {kind: int(n) for n, kind in re.findall(r"- connector: (\d+) (\w+)", report)} == found["rejected"]
