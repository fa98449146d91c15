"""A number -> a small clip on disk, for measuring a machine where nobody named a clip.

Writes with PyAV; knows no reader.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_test_video(path: Path, seconds: float = 10.0, seed: int = 0) -> None:
    """Write a moving textured clip: H.264, 640 x 360, 25 frames a second, a keyframe every two seconds.

    Args:
        path: ends in .mp4; replaced if it is there.
        seconds: length.
        seed: other seeds give other pictures.
    """
    import av

    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 255, (45, 80, 3), dtype=np.uint8)
    picture = np.kron(blocks, np.ones((8, 8, 1), np.uint8))
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast", "g": "50"})
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for i in range(max(1, round(seconds * 25))):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 3 * i, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
