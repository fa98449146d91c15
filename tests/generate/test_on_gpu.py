"""The engine on a CUDA device: recorded steps give the tokens of the CPU. Skipped where there is none, unless
VIDQA_REQUIRE_GPU=1 says that there must be one.
"""

from __future__ import annotations

import logging

import pytest
import torch

from vidqa.generate.engine import Engine, GenerationSettings, Request
from vidqa.generate.limits import measure
from vidqa.model.llava import VideoLlava
from vidqa.records import Features

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif("not torch.cuda.is_available() and __import__('os').environ.get('VIDQA_REQUIRE_GPU') != '1'"),
]
SETTINGS = GenerationSettings(max_new_tokens=24)


def answers(model: VideoLlava, requests: list[Request], static: bool) -> list[str]:
    engine = Engine(model, SETTINGS, batch_size=8, static=static)
    for i, request in enumerate(requests):
        engine.submit(i, request)
    got: dict[object, str] = {}
    while engine.busy:
        got |= {tag: answer.text for tag, answer in engine.advance()}  # type: ignore[union-attr]
    return [got[i] for i in range(len(requests))]


@pytest.fixture
def requests(clips: dict[str, Features]) -> list[Request]:
    questions = ("What happens?", "Why?", "What colour is the ball? And what is behind it?")
    return [Request((clips[c],), ((q, None),)) for c in ("video", "long", "image", "other") for q in questions]


def test_recorded_steps_give_the_tokens_of_the_cpu(
    model: VideoLlava, requests: list[Request], caplog: pytest.LogCaptureFixture
) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    want = answers(model, requests, static=False)
    model.to("cuda")
    assert answers(model, requests, static=False) == want
    with caplog.at_level(logging.WARNING, logger="vidqa"):
        assert answers(model, requests, static=True) == want
    assert not caplog.records, "steps were not recorded"


def test_half_precision_agrees_with_itself_recorded_or_not(model: VideoLlava, requests: list[Request]) -> None:
    model.to("cuda", torch.bfloat16)
    plain, recorded = answers(model, requests, static=False), answers(model, requests, static=True)
    assert sum(a[:4] == b[:4] for a, b in zip(plain, recorded, strict=True)) >= len(requests) // 2


def test_limits_of_the_device() -> None:
    found = measure(torch.device("cuda"), torch.bfloat16)
    assert found.matrix_per_s > 1e12
    assert found.copy_bytes_per_s > 1e10
