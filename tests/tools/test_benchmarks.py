"""Small runs of the benchmarks that take seconds: they measure what they report."""

from __future__ import annotations

import json
import sys

import pytest


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    found: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


@pytest.mark.slow
def test_scan_of_existing_files(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import bench_scan

    monkeypatch.setattr(sys, "argv", ["bench_scan.py", "--files", "30"])
    assert bench_scan.main() == 0
    (line,) = last_line(capsys)["results"]  # type: ignore[misc]
    assert (line["files"], line["known"], line["done"]) == (30, 30, 0)
    assert line["peak_mb"] > 10


def test_cache_reads(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import bench_cache

    monkeypatch.setattr(sys, "argv", ["bench_cache.py", "--entries", "3", "--shape", "2,5,16"])
    assert bench_cache.main() == 0
    results = last_line(capsys)["results"]
    assert {"write", "cold: plain", "warm: vidqa, 1 thread", "copy"} <= set(results)  # type: ignore[call-overload]


def test_import_shares() -> None:
    import bench_start

    log = "\n".join(
        (
            "import time: self [us] | cumulative | imported package",
            "import time:    100000 |     100000 |     torch._dynamo.a",
            "import time:    200000 |     300000 |   torch",
            "import time:     50000 |     350000 | vidqa.pipeline.ask",
            "some other line",
        )
    )
    own, tree = bench_start.shares(log)
    assert own == {"torch._dynamo": 0.1, "torch": 0.2, "vidqa": 0.05}
    assert tree == [("vidqa.pipeline.ask", 0.35)]


def test_questions_differ() -> None:
    import bench_answers

    assert len(set(bench_answers.questions(16))) == 16
