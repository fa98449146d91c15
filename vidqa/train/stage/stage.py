"""One stage of a recipe: its model loaded, its sequences laid out, tuned, and its weights kept.

Between `loop`, which tunes what it is given, and the pipeline, which knows where features come from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from vidqa.model.lora import attach_lora
from vidqa.model.video_llava import VideoLlava
from vidqa.prompts.chat_formats import ChatFormat, get_format
from vidqa.train.batching.dataset import FeatureSource, TrainingDataset
from vidqa.train.batching.sampler import BatchPlan, Packing, Survey, plan_run
from vidqa.train.data import Corpus, RejectLog
from vidqa.train.data.unseen_pairs import UnseenPairs
from vidqa.train.distributed import RunConfig, is_first, precision_on, processes
from vidqa.train.outputs.report import StageFacts
from vidqa.train.outputs.run_dir import save_stage, stage_weights
from vidqa.train.outputs.trained_bundle import InitialModel
from vidqa.train.recipe.definition import Recipe, Stage
from vidqa.train.stage.callbacks import Listener
from vidqa.train.stage.evaluate import Evaluator, held_out
from vidqa.train.stage.loop import StageContext, StageResult, run_stage
from vidqa.train.stage.metrics import MetricsFile, read_metrics
from vidqa.train.stage.quantize import quantise


@dataclass(frozen=True)
class StageRun:
    """A stage and all that it does not share with others."""

    recipe: Recipe
    number: int  # from 1
    folder: Path
    start: InitialModel
    device: str
    common: RunConfig
    metrics: MetricsFile
    listener: Listener
    unseen: UnseenPairs | None = None  # what the stage's `unseen_pairs` says
    stopping: Callable[[], bool] = lambda: False  # whether somebody wants the run to stop at a checkpoint

    @property
    def stage(self) -> Stage:
        """Its words."""
        return self.recipe.stage[self.number - 1]

    def go(
        self, corpus: Corpus, held_out_corpus: Corpus | None, features: FeatureSource, rejects: RejectLog, samples: Path
    ) -> StageFacts:
        """Tune, and keep what came of it.

        Args:
            corpus: of the stage.
            held_out_corpus: of the recipe's `eval`, where it has one.
            features: of the media of both.
            rejects: hears of bad samples.
            samples: the table of answers.

        Returns:
            The facts for the report; written beside the weights by the first process.

        Raises:
            Interrupted: the run was asked to stop, and stands at a checkpoint.
        """
        stage = self.stage
        plan = plan_of(self.stage, corpus, self.recipe.seed)
        model = self._model()
        data = TrainingDataset.of_model(model, corpus, plan, features, self.unseen)
        around = StageContext(
            self.folder,
            self.listener,
            self.metrics,
            self.common,
            rejects,
            self._evaluator(held_out_corpus, features, samples, model),
            self.recipe.eval.every if self.recipe.eval else None,
            number=self.number,
            stopping=self.stopping,
            device=self.device,
        )
        n = sum(len(s) for s in plan.sequences)
        self.listener.say(f"stage {self.number}, {stage.title}: {plan.n_steps} steps over {n} samples, {self.device}")
        result = run_stage(model, data, stage, around)
        facts = self._facts(result, rejects)
        if is_first():
            rejects.save()
            save_stage(self.folder, result.weights, facts)
        return facts

    def _model(self) -> VideoLlava:
        """The base with what the stages before have learned, in the types that this stage wants."""
        stage, hardware = self.stage, self.common.hardware
        on_cpu = self.device == "cpu"
        in_pieces = bool(hardware.fsdp or hardware.deepspeed)
        precision = precision_on(torch.device(self.device), hardware)
        full = on_cpu or in_pieces or {"llm", "embeddings", "lm_head"} & stage.parts or precision == "fp32"
        half = torch.float16 if precision == "fp16" else torch.bfloat16
        # What learns is kept in float32 and computed in less; what stands still need not be.
        bits = stage.lora.quantize if stage.lora else "none"
        place = "cpu" if in_pieces or bits != "none" else self.device
        model = self.start.model(place, torch.float32 if full else half)
        model.chat = chat_of(stage, model.chat)  # held-out losses and answers are in the stage's format, too
        if bits != "none":
            quantise(model, self.start.base, bits, self.device, half)
        own = dict(model.named_parameters())
        with torch.no_grad():
            for before in self.recipe.stage_names()[: self.number - 1]:
                for name, weight in stage_weights(self.folder.parent / before).items():
                    own[name].copy_(weight)
        if stage.lora is not None:
            torch.manual_seed(self.recipe.seed)  # the adapters' first weights
            attach_lora(model.llm, stage.lora.r, stage.lora.alpha, stage.lora.dropout, stage.lora.targets)
        model.connector.float()
        return model

    def _evaluator(
        self, corpus: Corpus | None, features: FeatureSource, samples: Path, model: VideoLlava
    ) -> Evaluator | None:
        words = self.recipe.eval
        if corpus is None or words is None:
            return None
        plan = held_out(min(len(corpus), words.max_conversations))
        data = TrainingDataset.of_model(model, corpus, plan, features)
        at_once = self.stage.per_device if isinstance(self.stage.per_device, int) else 8
        return Evaluator(
            data,
            at_once=at_once,
            samples=words.samples,
            max_new_tokens=words.max_new_tokens,
            table=samples,
            stage=self.number,
        )

    def _facts(self, result: StageResult, rejects: RejectLog) -> StageFacts:
        lines = read_metrics(self.metrics.path) if is_first() else []
        mine = [line for line in lines if line["stage"] == self.number]
        looks = [line["eval_loss"] for line in mine if "eval_loss" in line]
        return StageFacts(
            name=self.stage.title,
            n_steps=result.n_steps,
            n_samples=result.n_samples,
            n_tokens=result.n_tokens,
            n_weights=sum(w.numel() for w in result.weights.values()),
            seconds=result.seconds,
            peak_bytes=result.peak_bytes,
            per_device=result.per_device,
            processes=processes(),
            final_loss=float(mine[-1]["loss"]) if mine else 0.0,
            eval_loss=float(looks[-1]) if looks else None,
            rejects=rejects.counts(),
        )


def plan_of(stage: Stage, corpus: Corpus, seed: int) -> BatchPlan:
    """How a stage goes through its data."""
    packing = Packing(stage.packing, stage.visits, stage.order == "length")
    looked = None
    if packing.limit > 1 or packing.by_length:
        found = corpus.look()
        looked = Survey([group or None for group in found.groups.tolist()], found.lengths.tolist())
    return plan_run(
        corpus.epoch_order,
        stage.global_batch,
        epochs=stage.epochs or (None if stage.steps else 1.0),
        steps=stage.steps,
        packing=packing,
        survey=looked,
        seed=seed,
    )


def chat_of(stage: Stage, usual: ChatFormat) -> ChatFormat:
    """The chat format that a stage tunes with: its own, or the base's."""
    return get_format(stage.prompt) if stage.prompt else usual
