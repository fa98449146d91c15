"""Write a synthetic test video, for benchmarks that are run without the user's own videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_test_video(path: Path, seconds: float = 10.0, seed: int = 0) -> None:
    """Write a video of a moving texture: H.264, 640 x 360, 25 frames per second, a keyframe every two seconds.

    Args:
        path: output file, ending in .mp4; overwritten if it exists.
        seconds: duration.
        seed: seed of the texture.
    """
    import av

    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 255, (45, 80, 3), dtype=np.uint8)
    texture = np.kron(blocks, np.ones((8, 8, 1), np.uint8))
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast", "g": "50"})
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for i in range(max(1, round(seconds * 25))):
            frame = av.VideoFrame.from_ndarray(np.roll(texture, 3 * i, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
