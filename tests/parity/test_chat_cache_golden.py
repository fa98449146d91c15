"""The chat KV cache yields the tokens of the published code: one media item, several, images and videos mixed."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
import torch
from golden_checks import video_llava
from golden_checks.fixture import Fixture

from vidqa.generate.kv_cache.chat_cache import ChatKVCache
from vidqa.model.video_llava import VideoLlava
from vidqa.records import Prompt

GOLDEN = Path(__file__).resolve().parent.parent / "golden"

pytestmark = pytest.mark.parity

Case = tuple[Prompt, tuple[torch.Tensor, ...], list[int]]


@pytest.fixture(scope="module")
def model_and_cases() -> tuple[VideoLlava, dict[str, Case]]:
    fixture = Fixture.read(GOLDEN, "video_llava_forward")
    model = video_llava.build(fixture)
    visual = video_llava.seen(fixture, model, fixture.report())
    cases = {}
    for name, media in fixture.meta["media"].items():
        frames = list(chain.from_iterable(visual[name] for name in media["images_list"]))
        sequence = video_llava.row_of(fixture, fixture.tensors[f"in/{name}/input_ids"][0], frames)
        cases[name] = (sequence.prompt, sequence.visual, fixture.expected(f"{name}/greedy_tokens")[0].tolist())
    return model, cases


def decode_greedily(cache: ChatKVCache, case: Case) -> list[int]:
    """As many greedy tokens as the reference has."""
    prompt, visual, wanted = case
    logits, tokens = cache.prefill(prompt, visual), []
    for _ in wanted:
        tokens.append(int(logits.argmax()))
        logits = cache.decode_step(tokens[-1])
    return tokens


@pytest.mark.parametrize("name", ["video", "image", "text", "video_image", "image_video", "two_images"])
def test_same_tokens_from_any_cache_state(name: str, model_and_cases: tuple[VideoLlava, dict[str, Case]]) -> None:
    model, cases = model_and_cases
    prompt, _, wanted = cases[name]
    cache = ChatKVCache(model)
    assert decode_greedily(cache, cases[name]) == wanted
    assert decode_greedily(cache, cases[name]) == wanted, "again, with all but the last token cached"
    cache = ChatKVCache(model)
    cache.prefill(Prompt(prompt.ids[:1], prompt.slots[:1]), ())
    assert decode_greedily(cache, cases[name]) == wanted, "with one token cached"
    longer = Prompt(*(part.repeat(2) for part in (prompt.ids[-2:], prompt.slots[-2:])))
    cache.prefill(longer, ())
    assert decode_greedily(cache, cases[name]) == wanted, "after another sequence"
