"""An LLM dispatched layer by layer by accelerate yields the tokens of the published code.

Here the layers are on the CPU or offloaded to disk; with several GPUs (`--device map`) the same hooks move the values.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
from golden_checks import video_llava
from golden_checks.fixture import Fixture
from golden_checks.language import greedy

pytestmark = pytest.mark.parity

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


def test_dispatched_layers_yield_the_recorded_tokens(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    fixture = Fixture.read(GOLDEN, "video_llava_forward")
    model = video_llava.build(fixture)
    visual = video_llava.seen(fixture, model, fixture.report())
    device_map = {"lm_head": "cpu"}
    device_map |= {f"model.{name}": "cpu" for name, _ in model.llm.model.named_children() if name != "layers"}
    device_map |= {f"model.layers.{i}": ("disk", "cpu")[i % 2] for i in range(len(model.llm.model.layers))}
    accelerate.dispatch_model(model.llm, device_map, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    assert model.llm.model.layers[0].self_attn.q_proj.weight.is_meta, "this layer is not in memory"
    rows, expected = [], []
    for case, media in fixture.meta["media"].items():
        frames = list(chain.from_iterable(visual[name] for name in media["images_list"]))
        rows.append(video_llava.row_of(fixture, fixture.tensors[f"in/{case}/input_ids"][0], frames, 12))
        expected.append(fixture.expected(f"{case}/greedy_tokens")[0].tolist())
    tokens, _ = greedy(model, rows)
    assert tokens == expected
