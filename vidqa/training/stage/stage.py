"""Stages of a recipe: loads the model of a stage, plans its sequences, trains, and stores the result.

`trainer.py` trains the model that it receives from here; the pipeline provides corpora and features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from vidqa.errors import TrainError
from vidqa.model.bundle.bundle import Bundle
from vidqa.model.llm import load_tokenizer
from vidqa.model.lora import attach_lora
from vidqa.model.video_llava import VideoLlava
from vidqa.prompts.build import training_problem
from vidqa.prompts.chat_formats import ChatFormat, get_format
from vidqa.training.batching.dataset import FeatureSource, TrainingDataset
from vidqa.training.batching.sampler import BatchPlan, Packing, SampleStats, plan_batches
from vidqa.training.data.corpus import Corpus
from vidqa.training.data.rejects import RejectLog
from vidqa.training.distributed import is_first, precision_on, processes, wait_for_all
from vidqa.training.outputs.run_dir import StageFacts, load_stage_weights, read_stage, save_stage
from vidqa.training.outputs.trained_bundle import InitialModel
from vidqa.training.recipe.definition import Recipe, Stage
from vidqa.training.stage.callbacks import Listener
from vidqa.training.stage.evaluate import Evaluator, held_out_plan
from vidqa.training.stage.metrics import MetricsFile, read_metrics
from vidqa.training.stage.quantize import quantize_llm
from vidqa.training.stage.trainer import StageResult, StageTrainer


@dataclass(frozen=True)
class StageRunner:
    """Runs the stages of one recipe, one after another. In several processes, each has its own runner.

    Args:
        recipe: recipe of the run.
        initial: the model to start from.
        out: folder of the run.
        device: device to train on.
        metrics: receives a line for every step of all stages.
        listener: receives messages and progress.
        should_stop: returns True if the run is asked to save a checkpoint and stop.
    """

    recipe: Recipe
    initial: InitialModel
    out: Path
    device: str
    metrics: MetricsFile
    listener: Listener
    should_stop: Callable[[], bool] = lambda: False

    def run(self, number: int, corpus: Corpus, held_out: Corpus | None, features: FeatureSource) -> StageFacts:
        """Run one stage, unless it is finished already.

        Args:
            number: number of the stage, from 1.
            corpus: training data of the stage.
            held_out: the data of the recipe's `eval`; None if it has none.
            features: provides the features of the media of both.

        Returns:
            The facts for the report. The first process also stores them next to the trained weights.

        Raises:
            Interrupted: the run was asked to stop, and has saved a checkpoint.
            TrainError: see `StageTrainer.run`.
        """
        name = self.recipe.stage_names()[number - 1]
        folder, stage = self._folder(number), self.recipe.stage[number - 1]
        if (facts := read_stage(folder)) is not None:
            self.listener.message(f"{name}: already done")
            return facts
        if is_first():
            folder.mkdir(parents=True, exist_ok=True)
        wait_for_all()
        rejects = RejectLog(folder / "rejects.parquet", corpus.n_records, self.recipe.max_reject_rate)
        plan = plan_stage(stage, corpus, self.recipe.seed)
        model = self._load_model(number)
        data = TrainingDataset.for_model(model, corpus, plan, features, stage.unseen_pairs)
        evaluation = self.recipe.eval
        n_samples = sum(len(s) for s in plan.sequences)
        self.listener.message(
            f"stage {number}, {stage.title}: {plan.n_steps} steps over {n_samples} samples, {self.device}"
        )
        trainer = StageTrainer(
            model,
            data,
            stage,
            folder,
            metrics=self.metrics,
            listener=self.listener,
            rejects=rejects,
            number=number,
            hardware=self.recipe.hardware,
            output=self.recipe.output,
            logging=self.recipe.logging,
            seed=self.recipe.seed,
            device=self.device,
            evaluate=self._evaluator(number, held_out, features, model),
            eval_steps=evaluation.eval_steps if evaluation else None,
            should_stop=self.should_stop,
        )
        result = trainer.run()
        facts = self._facts(number, result, rejects)
        if is_first():
            rejects.save()
            save_stage(folder, result.weights, facts)
        wait_for_all()
        return facts

    def _folder(self, number: int) -> Path:
        return self.out / "work" / self.recipe.stage_names()[number - 1]

    def _load_model(self, number: int) -> VideoLlava:
        """Load the base with the trained weights of all previous stages, in the dtypes that this stage needs."""
        stage, hardware = self.recipe.stage[number - 1], self.recipe.hardware
        is_sharded = bool(hardware.fsdp or hardware.deepspeed)
        precision = precision_on(torch.device(self.device), hardware)
        # Trainable parameters are kept in float32, whatever the precision of the computation; frozen ones need not be.
        trains_llm = {"llm", "embeddings", "lm_head"} & stage.parts
        full = self.device == "cpu" or is_sharded or trains_llm or precision == "fp32"
        half = torch.float16 if precision == "fp16" else torch.bfloat16
        bits = stage.lora.quantize if stage.lora else "none"
        load_on = "cpu" if is_sharded or bits != "none" else self.device
        model = self.initial.load(load_on, torch.float32 if full else half)
        model.chat = chat_format_of(stage, model.chat)  # also used for held-out losses and generated answers
        if bits != "none":
            quantize_llm(model, self.initial.base, bits, self.device, half)
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for previous in range(1, number):
                for name, weight in load_stage_weights(self._folder(previous)).items():
                    parameters[name].copy_(weight)
        if stage.lora is not None:
            torch.manual_seed(self.recipe.seed)  # for the initial weights of the adapter
            attach_lora(model.llm, stage.lora.r, stage.lora.alpha, stage.lora.dropout, stage.lora.targets)
        model.connector.float()
        return model

    def _evaluator(
        self, number: int, corpus: Corpus | None, features: FeatureSource, model: VideoLlava
    ) -> Evaluator | None:
        settings, batch_size = self.recipe.eval, self.recipe.stage[number - 1].per_device_batch_size
        if corpus is None or settings is None:
            return None
        plan = held_out_plan(min(len(corpus), settings.max_conversations))
        return Evaluator(
            TrainingDataset.for_model(model, corpus, plan, features),
            batch_size=batch_size if isinstance(batch_size, int) else 8,
            samples=settings.samples,
            max_new_tokens=settings.max_new_tokens,
            table=self.out / "samples.parquet",
            stage=number,
        )

    def _facts(self, number: int, result: StageResult, rejects: RejectLog) -> StageFacts:
        lines = read_metrics(self.metrics.path) if is_first() else []
        lines = [line for line in lines if line["stage"] == number]
        eval_losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
        return StageFacts(
            name=self.recipe.stage[number - 1].title,
            n_steps=result.n_steps,
            n_samples=result.n_samples,
            n_tokens=result.n_tokens,
            n_weights=sum(w.numel() for w in result.weights.values()),
            seconds=result.seconds,
            peak_bytes=result.peak_bytes,
            per_device=result.per_device,
            processes=processes(),
            final_loss=next((float(line["loss"]) for line in reversed(lines) if line["loss"] is not None), None),
            eval_loss=float(eval_losses[-1]) if eval_losses else None,
            rejects=rejects.counts(),
        )


def plan_stage(stage: Stage, corpus: Corpus, seed: int) -> BatchPlan:
    """Plan the sequences of a stage; read all records if packing or grouping by length needs their metadata."""
    packing = Packing(stage.packing, stage.sequences_per_media, stage.group_by_length)
    stats = None
    if packing.limit > 1 or packing.group_by_length:
        found = corpus.token_stats()
        stats = SampleStats([group or None for group in found.groups.tolist()], found.lengths.tolist())
    return plan_batches(
        corpus.epoch_order,
        stage.global_batch_size,
        epochs=stage.epochs or (None if stage.steps else 1.0),
        steps=stage.steps,
        packing=packing,
        stats=stats,
        seed=seed,
    )


def chat_format_of(stage: Stage, default: ChatFormat) -> ChatFormat:
    """Return the chat format of a stage: its own, or that of the base."""
    return get_format(stage.prompt) if stage.prompt else default


def check_chat_formats(recipe: Recipe, base: Bundle) -> None:
    """Check that the answers of a conversation can be located in the chat format of every stage.

    Args:
        recipe: the recipe.
        base: the model to start from.

    Raises:
        TrainError: the tokenizer lacks a token of a format, or its chat template cannot be used for training.
        BundleError: the tokenizer cannot be read.
    """
    tokenizer = load_tokenizer(base.llm_folder)
    default = get_format(base.spec.prompt.format, base.spec.prompt.system)
    for name, stage in zip(recipe.stage_names(), recipe.stage, strict=True):
        chat = chat_format_of(stage, default)
        if problem := training_problem(tokenizer, chat):
            what = f"{name} cannot be trained with the chat format {chat.name}: {base.llm_folder}: {problem}"
            raise TrainError(what, hint="set `prompt` of the stage to another format, such as v1")
