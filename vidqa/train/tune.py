"""Features + conversations -> a tuned connector and LLM: the two stages of Video-LLaVA.

Stage `connector` trains the connector alone, stage `instruct` the connector and the LLM, stage `language` the LLM alone
on text (for a language model that is made from nothing, as the demo's is). Encoders are not here at all: what they saw
comes in as features. The loop is transformers' Trainer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidqa.errors import UsageError
from vidqa.model.llava import VideoLlava
from vidqa.prompts.build import IGNORED, build_labels
from vidqa.records import Features
from vidqa.train.data import Sample
from vidqa.train.packing import Packed, attention_mask, collate, pack

Stage = Literal["language", "connector", "instruct"]
FeatureSource = Callable[[str], Features]


@dataclass(frozen=True)
class TuneSettings:
    """One stage of tuning. Defaults of schedule and optimiser are the paper's (AdamW, cosine, no weight decay)."""

    stage: Stage
    epochs: float
    batch_size: int  # packed sequences a step
    lr: float
    warmup_ratio: float = 0.03
    max_conversations: int = 10  # of one medium in one sequence; drawn anew each time the medium comes up
    seed: int = 0
    weight_decay: float = 0.0


def trainable(model: VideoLlava, stage: Stage) -> None:
    """Freeze everything but what the stage trains."""
    model.connector.requires_grad_(stage in ("connector", "instruct"))
    model.llm.requires_grad_(stage in ("language", "instruct"))


class PackedDataset(torch.utils.data.Dataset[tuple[Packed, Features | None]]):
    """Groups of samples about one medium -> packed sequences with their features.

    Args:
        groups: samples that share a medium; text-only samples may be grouped, too.
        model: gives tokenizer and chat format.
        features: reads the features of a medium by its path.
        max_conversations: most conversations in a sequence.
        seed: of the draw of conversations; the draw changes from visit to visit.
    """

    def __init__(
        self,
        groups: Sequence[tuple[Sample, ...]],
        model: VideoLlava,
        features: FeatureSource,
        *,
        max_conversations: int,
        seed: int,
    ) -> None:
        self.groups, self.features, self.limit = groups, features, max_conversations
        self.tokenizer, self.chat, self.shape = model.tokenizer, model.chat, model.media_shape
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> tuple[Packed, Features | None]:
        group = self.groups[index]
        chosen = [group[i] for i in self.rng.permutation(len(group))[: self.limit]]
        media = group[0].media
        if len(media) > 1:
            raise UsageError(f"sample {group[0].id}: {len(media)} media; conversations are packed about one")
        features = self.features(media[0].path) if media else None
        shape = [self.shape(features)] if features else []
        labelled = [build_labels(self.tokenizer, self.chat, s.turns, shape) for s in chosen]
        for sample, made in zip(chosen, labelled, strict=True):
            if made.problem:
                raise UsageError(f"sample {sample.id}: {made.problem}")
        return pack(labelled), features


class PackedLoss(nn.Module):
    """Packed batch -> mean cross entropy over the tokens to learn; what the Trainer calls the model."""

    def __init__(self, model: VideoLlava) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any, features: list[Features]) -> dict[str, Tensor]:
        """Loss of one batch.

        Args:
            batch: a PackedBatch.
            features: of the sequences that have slots, in their order.
        """
        batch = batch.to(self.model.device)
        visual = self.model.visual_tokens(features)
        width = self.model.llm.get_input_embeddings().weight.shape[1]
        joined = torch.cat(visual) if visual else torch.empty(0, width, device=self.model.device)
        embeds = self.model.embed(batch.ids, batch.slots, joined)
        decoder = self.model.llm.get_decoder()
        mask = attention_mask(batch.branch)
        states = decoder(
            inputs_embeds=embeds, attention_mask=mask, position_ids=batch.positions, use_cache=False
        ).last_hidden_state
        learn = batch.labels[:, 1:] != IGNORED  # position i says what stands at i + 1
        logits = self.model.llm.get_output_embeddings()(states[:, :-1][learn])
        return {"loss": F.cross_entropy(logits, batch.labels[:, 1:][learn])}


def tune(
    model: VideoLlava,
    groups: Sequence[tuple[Sample, ...]],
    features: FeatureSource,
    settings: TuneSettings,
    *,
    folder: Path,
    report: Callable[[dict[str, float]], None] | None = None,
) -> dict[str, float]:
    """Run one stage; the model is changed in place.

    Args:
        model: connector and LLM.
        groups: from `vidqa.train.data.by_media`.
        features: reads features by media path.
        settings: the stage.
        folder: for the Trainer's own files.
        report: called with step, loss, learning rate every 50 steps.

    Returns:
        The Trainer's closing figures (train_loss, train_runtime, ...).
    """
    trainable(model, settings.stage)
    data = PackedDataset(groups, model, features, max_conversations=settings.max_conversations, seed=settings.seed)
    trainer = _trainer(model, data, settings, folder, report)
    model.train()
    result = trainer.train()
    model.eval().requires_grad_(False)
    return dict(result.metrics)


def _trainer(
    model: VideoLlava,
    data: PackedDataset,
    settings: TuneSettings,
    folder: Path,
    report: Callable[[dict[str, float]], None] | None,
) -> Any:
    """A Trainer that draws by `LengthBuckets`, reports, and leaves stdout alone."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class Report(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            if report and logs:
                report({"step": state.global_step, "of": state.max_steps, **logs})

    class PackedTrainer(Trainer):
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return LengthBuckets(data.groups, settings.batch_size, settings.seed)

    n_processes = int(os.environ.get("WORLD_SIZE", 1))
    steps = max(1, round(settings.epochs * len(data) / (settings.batch_size * n_processes)))
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.lr,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, int(steps * settings.warmup_ratio)),
        weight_decay=settings.weight_decay,
        max_grad_norm=1.0,
        logging_steps=50,
        save_strategy="no",
        report_to=[],
        seed=settings.seed,
        use_cpu=model.device.type == "cpu",
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_num_workers=0,
    )
    trainer = PackedTrainer(
        model=PackedLoss(model), args=arguments, train_dataset=data, data_collator=_collate, callbacks=[Report()]
    )
    trainer.remove_callback(PrinterCallback)  # it writes to stdout, which is for results
    return trainer


class LengthBuckets(torch.utils.data.Sampler[int]):
    """A random order in which pictures, clips and text mix freely from batch to batch, but little padding is needed.

    Inside windows of 50 batches the groups are sorted by medium (its kind decides the length), the batches of a window
    then shuffled.
    """

    def __init__(self, groups: Sequence[tuple[Sample, ...]], batch_size: int, seed: int) -> None:
        self.kinds = [group[0].media[0].kind if group[0].media else "" for group in groups]
        self.batch_size, self.rng = batch_size, np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.kinds)

    def __iter__(self) -> Iterator[int]:
        order = self.rng.permutation(len(self.kinds))
        window = 50 * self.batch_size
        for start in range(0, len(order), window):
            part = sorted(order[start : start + window].tolist(), key=lambda i: self.kinds[i])
            batches = [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
            for k in self.rng.permutation(len(batches)):
                yield from batches[k]


def _collate(items: Sequence[tuple[Packed, Features | None]]) -> dict[str, Any]:
    return {"batch": collate([p for p, _ in items]), "features": [f for _, f in items if f is not None]}
