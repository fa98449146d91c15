"""Make the helper modules of this folder importable, here and in decoder processes; a shared test video."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 40 numbered frames: H.264 with B-frames, 10 frames per second."""
    from numbered_videos import write_video

    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", bf="2")
