"""LanguageBind towers: independent videos in a batch, frame groups, exported graphs.

test_golden compares the towers with values recorded from the original classes.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden_checks.fixture import Fixture
from golden_checks.towers import Pair
from torch import Tensor
from torch.nn import functional as F

from vidqa.model.onnx.export import export_text, export_tower

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-5


def pair(name: str) -> Pair:
    return Pair(Fixture.read(GOLDEN, name))


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_temporal_attention_changes_the_result() -> None:
    gold = pair("languagebind_video")
    states, _ = gold.tower(temporal_length=0).vision_model(gold.pixels)
    with_time = gold.fixture.expected(f"vision_hidden_states_{gold.tower().config.n_layers - 1}")
    assert float((states[-2] - with_time).abs().max()) > 0.1


@torch.no_grad()
def test_videos_of_a_batch_are_independent() -> None:
    """The published class takes T from its config and mixes videos if it is wrong; here T is an axis."""
    gold = pair("languagebind_video")
    tower = gold.tower()
    two = gold.pixels[:, : tower.config.temporal_length // 2]
    close(tower(two)[0][:1], tower(two[:1])[0])


def test_a_partial_frame_group_is_rejected() -> None:
    tower = pair("languagebind_video").tower()
    size, n = tower.config.image_size, tower.config.temporal_length + 1
    with pytest.raises(ValueError, match="cannot be split into groups"):
        tower(torch.zeros(1, n, 3, size, size))


def test_exported_video_graph_equals_the_reference(tmp_path: Path) -> None:
    """The fused graph in onnxruntime reproduces the published values, not only our torch code."""
    import onnxruntime

    gold = pair("languagebind_video")
    tower = gold.tower()
    assert export_tower(tower, tmp_path / "tower.onnx", gold.pixels.shape[1]).fused
    session = onnxruntime.InferenceSession(str(tmp_path / "tower.onnx"), providers=["CPUExecutionProvider"])
    tokens, embedding = (torch.from_numpy(v) for v in session.run(None, {"pixel_values": gold.pixels.numpy()}))
    close(tokens, gold.fixture.expected(f"vision_hidden_states_{tower.config.n_layers - 1}"))
    close(embedding, gold.fixture.expected("image_features_unnormalised"))


def test_exported_text_graph_equals_the_reference(tmp_path: Path) -> None:
    import onnxruntime

    gold = pair("languagebind_image")
    report = export_text(gold.text_tower(), tmp_path / "text.onnx", external_above=1000)
    assert report.max_abs_error <= 1e-4  # with random padding, batches of 1 and 2
    assert report.external_data == "text.onnx.data"
    session = onnxruntime.InferenceSession(str(tmp_path / "text.onnx"), providers=["CPUExecutionProvider"])
    ids, mask = (gold.fixture.tensors[f"in/{k}"].numpy() for k in ("input_ids", "attention_mask"))
    (embedding,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
    close(F.normalize(torch.from_numpy(embedding), dim=-1), gold.fixture.expected("text_embeds"))
