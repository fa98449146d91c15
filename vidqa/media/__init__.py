"""Media files -> decoded frames.

In: paths, folders, globs. Out: `MediaItem`s (scan), `MediaFacts` (probe), frames of each segment (decode).

scan.py, globs.py, ignored_names.py   find media files
selection/                            choose some of them by name, age, duration or number
files.py, sniff.py, image_formats/    recognize them by content
container.py, frame_index/, probe.py  open a video; its facts and the pts of its frames
completeness/                         notes about incomplete and damaged videos
segments.py, frame_sampling.py        choose the frames to decode
decode.py, backends/                  decode them
pixels.py, color_matrix.py            frames as they are displayed
workers/                              decode in separate processes, with time and memory limits
"""

from __future__ import annotations

from vidqa.common.lazy_exports import lazy_exports

__all__ = ["DecodeJob", "DecodePool", "ScanResult", "open_reader"]

__getattr__ = lazy_exports(
    __name__,
    {
        "DecodeJob": "workers.decode_pool",
        "DecodePool": "workers.decode_pool",
        "ScanResult": "scan",
        "open_reader": "decode",
    },
)
