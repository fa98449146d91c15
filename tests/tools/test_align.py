"""Contrastive training of vision and text towers, on images of two gray levels."""

import pytest
import torch
from demo_model.align import IGNORE, AlignBatch, Aligner, align, initialise, insert_temporal

from vidqa.model.towers.text import TextConfig, TextTower
from vidqa.model.towers.vit import VisionConfig, VisionTower


@pytest.fixture
def towers():
    torch.manual_seed(0)
    vision = VisionTower(VisionConfig(16, 8, 32, 64, 2, 2, 16))
    text = TextTower(TextConfig(20, 16, 32, 1, 2, 8, 16))
    initialise(vision)
    initialise(text)
    return vision, text


def toy_batches(n_frames: int = 1):
    """Images of one of two gray levels, which caption and patch labels name."""
    generator = torch.Generator().manual_seed(1)
    phrases = torch.tensor([[3, 19], [4, 19]])
    while True:
        dark = torch.rand(8, generator=generator) < 0.5
        dark[:2] = torch.tensor([True, False])
        level = torch.where(dark, -1.0, 1.0)[:, None, None, None, None]
        pixels = level + 0.1 * torch.randn(8, n_frames, 3, 16, 16, generator=generator)
        truth = dark.long()[:, None, None, None].expand(8, n_frames, 4, 1).clone()
        truth[:, :, 0] = IGNORE
        yield (
            AlignBatch(
                pixels,
                phrases[dark.long()],
                torch.ones(8, 2, dtype=torch.bool),
                truth,
                torch.ones(8, dtype=torch.bool),
                torch.ones(8, n_frames, 4, 2, dtype=torch.bool),
            ),
        )


def aligner_of(vision, text):
    ids = torch.tensor([[3, 19], [4, 19]])
    return Aligner(vision, text, [(ids, torch.ones_like(ids, dtype=torch.bool))])


def test_alignment_predicts_what_patches_show(towers):
    reports = []
    aligner = aligner_of(*towers)
    steps = align(
        aligner,
        toy_batches(),
        seconds=600,
        lr=2e-3,
        report=lambda *r: reports.append(r),
        should_stop=lambda: len(reports) >= 6,
    )
    assert steps == 150
    assert reports[-1][2]["0.group0"] == 1.0
    assert not aligner.training


def test_parameters_may_have_different_learning_rates(towers):
    aligner = aligner_of(*towers)
    before = {k: v.clone() for k, v in aligner.state_dict().items()}
    count = iter(range(3))
    align(
        aligner, toy_batches(), seconds=600, lr=lambda name: 1e-3 if "patch_projection" in name else 0.0,
        should_stop=lambda: next(count) == 2,
    )  # fmt: skip
    changed = {k for k, v in aligner.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"patch_projection.weight"}


def test_a_new_video_tower_shares_the_spatial_weights_and_initially_equals_the_image_tower(towers):
    vision, _ = towers
    video = insert_temporal(vision, 4)
    own = {n for n, _ in video.named_parameters() if "temporal" in n}
    shared = {n for n, p in video.named_parameters() if n not in own}
    assert all(dict(video.named_parameters())[n] is dict(vision.named_parameters())[n] for n in shared)
    for layer in video.vision_model.encoder.layers:
        layer.temporal_embedding.data.zero_()
    pixels = torch.randn(2, 4, 3, 16, 16)
    tokens, _ = video(pixels)
    frames, _ = vision(pixels.flatten(0, 1)[:, None])
    assert torch.allclose(tokens.flatten(0, 1), frames[:, 0], atol=1e-5)


def test_a_group_without_labels_in_a_batch_is_ignored(towers):
    (batch,) = next(toy_batches())
    batch.truth[:] = IGNORE
    loss, figures = aligner_of(*towers)(batch)
    assert torch.isfinite(loss)
    assert "group0" not in figures


def test_a_phrase_that_is_not_contrasted_is_no_negative(towers):
    (batch,) = next(toy_batches())
    aligner = aligner_of(*towers)
    batch.contrasted[..., 1] = False
    batch.truth[:] = torch.where(batch.truth == 1, IGNORE, batch.truth)
    loss, figures = aligner(batch)
    assert loss.item() == pytest.approx(figures["clip_loss"])  # a single phrase has no negatives
    loss.backward()
    assert aligner.patch_projection.weight.grad.abs().max() == 0
