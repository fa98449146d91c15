"""An LLM whose layers accelerate has placed apart says what the published code said. Here the places are the CPU and a
folder from which weights come when they are used; with several GPUs (`--device map`) the same hooks move the values."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
from golden_checks import video_llava
from golden_checks.fixture import Fixture
from golden_checks.language import greedy

pytestmark = pytest.mark.parity

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


def test_the_recorded_tokens_in_one_batch(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    fixture = Fixture.read(GOLDEN, "video_llava_forward")
    model = video_llava.build(fixture)
    visual = video_llava.seen(fixture, model, fixture.report())
    places = {"lm_head": "cpu"}
    places |= {f"model.{name}": "cpu" for name, _ in model.llm.model.named_children() if name != "layers"}
    places |= {f"model.layers.{i}": ("disk", "cpu")[i % 2] for i in range(len(model.llm.model.layers))}
    accelerate.dispatch_model(model.llm, places, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    assert model.llm.model.layers[0].self_attn.q_proj.weight.is_meta, "nothing of this layer is in memory"
    rows, wanted = [], []
    for case, media in fixture.meta["media"].items():
        frames = list(chain.from_iterable(visual[name] for name in media["images_list"]))
        rows.append(video_llava.row_of(fixture, fixture.tensors[f"in/{case}/input_ids"][0], frames, 12))
        wanted.append(fixture.expected(f"{case}/greedy_tokens")[0].tolist())
    said, _ = greedy(model, rows)
    assert said == wanted
