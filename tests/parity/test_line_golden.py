"""A line of tokens, grown piece by piece, says what the published code said: one medium, several, both kinds mixed."""

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
        frames = list(chain.from_iterable(visual[medium] for medium in media["images_list"]))
        row = video_llava.row_of(fixture, fixture.tensors[f"in/{name}/input_ids"][0], frames)
        cases[name] = (row.prompt, row.visual, fixture.expected(f"{name}/greedy_tokens")[0].tolist())
    return model, cases


def say(line: ChatKVCache, case: Case) -> list[int]:
    """As many likeliest tokens as the reference said."""
    prompt, visual, wanted = case
    logits, said = line.take_in(prompt, visual), []
    for _ in wanted:
        said.append(int(logits.argmax()))
        logits = line.step(said[-1])
    return said


@pytest.mark.parametrize("name", ["video", "image", "text", "video_image", "image_video", "two_images"])
def test_same_tokens_however_the_line_came_about(
    name: str, model_and_cases: tuple[VideoLlava, dict[str, Case]]
) -> None:
    model, cases = model_and_cases
    prompt, _, wanted = cases[name]
    line = ChatKVCache(model)
    assert say(line, cases[name]) == wanted
    assert say(line, cases[name]) == wanted, "again, when all but the last token is there already"
    line = ChatKVCache(model)
    line.take_in(Prompt(prompt.ids[:1], prompt.slots[:1]), ())
    assert say(line, cases[name]) == wanted, "from a beginning of one token"
    longer = Prompt(*(part.repeat(2) for part in (prompt.ids[-2:], prompt.slots[-2:])))
    line.take_in(longer, ())
    assert say(line, cases[name]) == wanted, "after something else"
