"""The recorded preprocessing modes differ enough that comparing with the wrong one would fail."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from golden_checks.fixture import Fixture
from golden_checks.preprocess import TRANSFORMS, run

GOLDEN = Path(__file__).parents[1] / "golden"


def test_the_modes_differ() -> None:
    fixture = Fixture.read(GOLDEN, "preprocess")
    outputs = [run(fixture, name, 0, 224) for name in TRANSFORMS]
    for i, a in enumerate(outputs):
        assert all(np.abs(a - b).max() > 0.1 for b in outputs[i + 1 :])
