"""Frame sampling: the index rules of the published models."""

from __future__ import annotations

from golden_checks.fixture import Fixture
from golden_checks.report import Report
from vidqa.media.frame_sampling import arange_indices, frame_indices, linspace_indices
from vidqa.records import SamplingSpec


def check(fixture: Fixture) -> Report:
    """Compare every recorded vector and the recorded floating-point edge cases."""
    report, meta = fixture.report(), fixture.meta
    for rule in ("linspace", "arange"):
        for k, vectors in meta.get(rule, {}).items():
            for n, indices in vectors.items():
                got = frame_indices(int(n), SamplingSpec(rule, int(k)))[0]  # type: ignore[arg-type]
                report.exact(f"{rule} n={n} k={k}", got, indices)
    for n, indices in meta.get("video_chatgpt", {}).items():
        report.exact(f"video_chatgpt n={n}", frame_indices(int(n), SamplingSpec("segments", 100))[0], indices)
    for name, facts in meta.get("numeric_facts", {}).items():
        if name.startswith("linspace vs integer arithmetic"):
            for k, (_, first) in facts.items():
                for n in first:
                    exact = [i * (n - 1) // (int(k) - 1) for i in range(int(k))]
                    report.exact(f"linspace n={n} k={k} is numpy's", linspace_indices(n, int(k)) != exact, True)
        elif name.startswith("arange length"):
            for k, (_, first) in facts.items():
                for n in first:
                    report.exact(f"arange n={n} k={k} returns k frames", len(arange_indices(n, int(k))), int(k))
    return fixture.close(report)
