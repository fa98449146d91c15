"""Contrastive vision-language pre-training of the demo model's towers, at clip level and at patch level.

Clip level: the pooled embedding of a clip against the embedding of its caption, as in CLIP (Radford et al. 2021,
symmetric cross entropy over the batch). Patch level: every patch token of the layer that the LLM reads, against the
embeddings of short phrases, with one group of phrases per attribute; the generator of the clip provides the true phrase
of each patch. The patch level makes patch tokens meaningful, and not only the class token.

The order is that of LanguageBind: images first; then videos, with temporal attention inserted into the same spatial
weights, which the image tower keeps using.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from vidqa.model.towers.text import TextTower
from vidqa.model.towers.vit import VisionTower

IGNORE = -1


@dataclass(frozen=True)
class AlignBatch:
    """One batch of videos (or images, T = 1) with their captions.

    `truth[b, t, p, g]` is the index of the phrase of group g that is true for patch p in frame t (patches without the
    class token), or IGNORE. Captions with `captioned` False are not part of the contrastive loss. Phrases with
    `contrasted` False are not negatives of the patch.
    """

    pixels: Tensor  # float32 [B, T, 3, H, W]
    caption_ids: Tensor  # int64 [B, S]
    caption_mask: Tensor  # bool [B, S]
    truth: Tensor  # int64 [B, T, patches, G]
    captioned: Tensor  # bool [B]
    contrasted: Tensor  # bool [B, T, patches, phrases of all groups]

    def to(self, device: torch.device) -> AlignBatch:
        """Copy the batch to another device."""
        return AlignBatch(*(getattr(self, f.name).to(device) for f in fields(self)))


class Aligner(nn.Module):
    """A vision tower and a text tower with their contrastive losses.

    Args:
        vision: the tower to align; its hidden state `layer` is aligned patch by patch.
        text: the text tower, trained as well.
        phrases: for each attribute, token ids [n_phrases, S] and mask of its phrases.
        layer: hidden state that the LLM reads.
    """

    def __init__(
        self, vision: VisionTower, text: TextTower, phrases: list[tuple[Tensor, Tensor]], layer: int = -2
    ) -> None:
        super().__init__()
        self.vision, self.text, self.layer = vision, text, layer
        self.patch_norm = nn.LayerNorm(vision.config.hidden_size)
        self.patch_projection = nn.Linear(vision.config.hidden_size, vision.config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # initial value in CLIP
        self.patch_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.group_sizes = [len(ids) for ids, _ in phrases]
        width = max(ids.shape[1] for ids, _ in phrases)
        self.register_buffer("phrase_ids", torch.cat([F.pad(i, (0, width - i.shape[1])) for i, _ in phrases]))
        self.register_buffer("phrase_mask", torch.cat([F.pad(m, (0, width - m.shape[1])) for _, m in phrases]))

    def forward(self, batch: AlignBatch) -> tuple[Tensor, dict[str, float]]:
        """Compute the loss and figures (contrastive accuracy, accuracy of each phrase group)."""
        tokens, pooled = self.vision(batch.pixels, self.layer)
        captioned = batch.captioned
        caption = F.normalize(self.text(batch.caption_ids[captioned], batch.caption_mask[captioned]), dim=-1)
        scale = self.logit_scale.exp().clamp(max=100)
        logits = scale * F.normalize(pooled[captioned], dim=-1) @ caption.T
        target = torch.arange(len(logits), device=logits.device)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        figures = {"clip": (logits.argmax(1) == target).float().mean().item(), "clip_loss": loss.item()}
        patch_logits = self.phrase_logits(tokens).masked_fill(~batch.contrasted, -torch.inf)
        for g, part in enumerate(patch_logits.split(self.group_sizes, dim=-1)):
            truth = batch.truth[..., g]
            labeled = truth != IGNORE
            if not labeled.any():
                continue
            predicted, target = part[labeled], truth[labeled]
            loss = loss + F.cross_entropy(predicted, target)
            figures[f"group{g}"] = (predicted.argmax(-1) == target).float().mean().item()
        return loss, figures

    def phrase_logits(self, tokens: Tensor) -> Tensor:
        """Compare patch tokens with all phrases: float32 [B, T, 1 + patches, D] -> logits [B, T, patches, phrases]."""
        patches = F.normalize(self.patch_projection(self.patch_norm(tokens[:, :, 1:])), dim=-1)
        phrases = F.normalize(self.text(self.phrase_ids, self.phrase_mask), dim=-1)
        return self.patch_scale.exp().clamp(max=100) * patches @ phrases.T


@torch.no_grad()
def initialise(tower: VisionTower | TextTower) -> None:
    """Initialize weights as in CLIP (Radford et al. 2021, openai/CLIP model.py), scaled by width and depth.

    The small fixed standard deviation that is usual for large models leaves narrow towers with almost no signal in
    their residual branches.
    """
    width, depth = tower.config.hidden_size, tower.config.n_layers
    model: Any = tower.text_model if isinstance(tower, TextTower) else tower.vision_model
    for layer in model.encoder.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            nn.init.normal_(projection.weight, std=width**-0.5)
        for out in (layer.self_attn.out_proj, layer.mlp.fc2):
            nn.init.normal_(out.weight, std=width**-0.5 * (2 * depth) ** -0.5)
        nn.init.normal_(layer.mlp.fc1.weight, std=(2 * width) ** -0.5)
        for linear in (m for m in layer.modules() if isinstance(m, nn.Linear)):
            nn.init.zeros_(linear.bias)
    if isinstance(tower, TextTower):
        nn.init.normal_(model.embeddings.token_embedding.weight, std=0.02)
        nn.init.normal_(model.embeddings.position_embedding.weight, std=0.01)
        nn.init.normal_(tower.text_projection.weight, std=width**-0.5)
    else:
        nn.init.normal_(model.embeddings.class_embedding, std=width**-0.5)
        nn.init.normal_(model.embeddings.position_embedding.weight, std=width**-0.5)
        nn.init.normal_(tower.visual_projection.weight, std=width**-0.5)


def insert_temporal(tower: VisionTower, temporal_length: int) -> VisionTower:
    """Create a video tower that shares the spatial weights of `tower` and has new temporal attention.

    The temporal output projection is zero, so that the new tower initially returns the same as the old one for each
    frame, apart from the small temporal embeddings.
    """
    video = VisionTower(replace(tower.config, temporal_length=temporal_length))
    target = video.vision_model
    target.embeddings, target.pre_layrnorm = tower.vision_model.embeddings, tower.vision_model.pre_layrnorm
    target.post_layernorm, video.visual_projection = tower.vision_model.post_layernorm, tower.visual_projection
    layers: Any = zip(target.encoder.layers, tower.vision_model.encoder.layers, strict=True)
    for new, old in layers:
        new.self_attn, new.layer_norm1, new.mlp, new.layer_norm2 = (
            old.self_attn,
            old.layer_norm1,
            old.mlp,
            old.layer_norm2,
        )
        new.temporal_attn.load_state_dict(old.self_attn.state_dict())
        nn.init.zeros_(new.temporal_attn.out_proj.weight)
        nn.init.zeros_(new.temporal_attn.out_proj.bias)
        nn.init.normal_(new.temporal_embedding, std=0.02)
    return video


def align(
    aligner: Aligner | nn.ModuleList,
    batches: Iterator[tuple[AlignBatch, ...]],
    *,
    seconds: float,
    lr: float | Callable[[str], float],
    report: Callable[[int, float, dict[str, float]], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> int:
    """Train for a fixed time, with a cosine schedule over time so that any budget ends at a low learning rate.

    In a process group every process has its own batches, and gradients are averaged; all processes must start from the
    same weights. The first process keeps the time.

    Args:
        aligner: one aligner, or several that share weights; each step adds up their losses on their batches.
        batches: infinite; one batch per aligner.
        seconds: wall-clock budget.
        lr: peak learning rate of AdamW (weight decay 0.05 on matrices, none on embeddings, as usual for ViTs; betas
            0.9, 0.98 as in CLIP), for all parameters or by parameter name, so that new parts can train faster.
        report: called every 25 steps with step, share of the budget and figures.
        should_stop: called after each step.

    Returns:
        Number of steps.
    """
    parts = list(aligner) if isinstance(aligner, nn.ModuleList) else [aligner]
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, p in aligner.named_parameters():
        is_embedding = any(f"{kind}_embedding" in name for kind in ("position", "temporal", "token"))
        decay = 0.05 if p.ndim >= 2 and not is_embedding else 0.0
        key = (lr(name) if callable(lr) else lr, decay)
        groups.setdefault(key, []).append(p)
    optimizer = torch.optim.AdamW(
        [{"params": ps, "peak": peak, "weight_decay": decay} for (peak, decay), ps in groups.items()],
        lr=0.0,
        betas=(0.9, 0.98),
        fused=True,
    )
    start, step = time.monotonic(), 0
    aligner.train()
    while (share := _of_first_process((time.monotonic() - start) / seconds)) < 1 and not should_stop():
        warm = min(1.0, (step + 1) / 200)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * warm * (0.02 + 0.98 * (1 + math.cos(math.pi * share)) / 2)
        figures: dict[str, float] = {}
        for k, (part, batch) in enumerate(zip(parts, next(batches), strict=True)):
            loss, found = part(batch)
            loss.backward()
            figures |= {f"{k}.{name}": value for name, value in found.items()}
        _average_gradients(aligner)
        nn.utils.clip_grad_norm_(aligner.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if report and step % 25 == 0:
            report(step, share, figures)
    aligner.eval()
    return step


def _of_first_process(share: float) -> float:
    """Broadcast the value of the first process."""
    if not distributed.is_initialized():
        return share
    value = torch.tensor(share, dtype=torch.float64)
    distributed.broadcast(value, 0)
    return float(value)


def _average_gradients(module: nn.Module) -> None:
    """Average gradients with one all-reduce; a parameter that a process did not use has a zero gradient there."""
    if not distributed.is_initialized():
        return
    parameters = [p for p in module.parameters() if p.requires_grad]
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view_as(p)
