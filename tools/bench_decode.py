#!/usr/bin/env python
"""Benchmark decoding: 8 frames of a short and a long clip with vidqa, and with decord, PyAV and torchcodec alone.

    python tools/bench_decode.py                   10 s and 120 s, 640 x 360, H.264, HEVC, VP9; best of 3
    python tools/bench_decode.py --long 7200       a two-hour video (encoding it takes a while)
    python tools/bench_decode.py --codec h264.ts --codec h264.avi        containers without a frame index

The clips are encoded here, with B-frames and a keyframe every 10 s, as most encoders do. Every frame shows its own
number, so the correctness of the result is reported next to the speed: `right` is the share of requested frames that
were returned. Each figure includes opening, indexing and conversion to RGB. CPU seconds are printed because they also
hold on a busy machine. `auto`, `pyav` and `decord` are vidqa with all its checks. `raw decord`, `raw pyav` and
`torchcodec` are the plain libraries with one thread, used as in their documentation: PyAV seeks to the keyframe before
each frame and decodes from there. torchcodec is optional; without it, its line shows an error. `whole` decodes every
frame. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

N_WANTED = 8
FPS = 25
ENCODERS = {
    "h264": ("libx264", ".mp4", {"preset": "veryfast", "bf": "3"}),
    "hevc": ("libx265", ".mp4", {"preset": "ultrafast", "x265-params": "log-level=none:bframes=3:open-gop=0"}),
    "vp9": ("libvpx-vp9", ".webm", {"deadline": "realtime", "cpu-used": "8", "b": "2M"}),
    "h264.ts": ("libx264", ".ts", {"preset": "veryfast", "bf": "3"}),
    "hevc.ts": ("libx265", ".ts", {"preset": "ultrafast", "x265-params": "log-level=none:bframes=3:open-gop=0"}),
    "h264.avi": ("libx264", ".avi", {"preset": "veryfast", "bf": "3"}),
    "mpeg2.vob": ("mpeg2video", ".vob", {"g": "15", "bf": "2", "b": "4M"}),
}
#: The codecs measured by default.
DEFAULT_CODECS = ("h264", "hevc", "vp9")
_BITS = 20  # bits of the frame number, shown as blocks along the top edge


def render(number: int, background: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a moving textured frame that shows its number as black and white blocks; uint8 RGB [H, W, 3]."""
    down, right = number * 2 % (background.shape[0] - height), number * 3 % (background.shape[1] - width)
    frame = background[down : down + height, right : right + width].copy()
    block = width // _BITS
    for bit in range(_BITS):
        frame[:32, bit * block : (bit + 1) * block] = 235 if number >> bit & 1 else 16
    return frame


def read(frame: np.ndarray) -> int:
    """Return the number that a decoded frame shows."""
    block = frame.shape[1] // _BITS
    bits = [frame[8:24, b * block + block // 4 : (b + 1) * block - block // 4].mean() > 128 for b in range(_BITS)]
    return sum(1 << i for i, on in enumerate(bits) if on)


def make_clip(folder: Path, codec: str, seconds: int, width: int, height: int) -> Path:
    """Encode one clip, or return the existing file."""
    import av

    encoder, suffix, options = ENCODERS[codec]
    path = folder / f"{codec}_{seconds}s_{width}x{height}{suffix}"
    if path.exists():
        return path
    blocks = np.random.default_rng(0).integers(0, 255, (height // 8 + 60, width // 8 + 90, 3), dtype=np.uint8)
    background = np.kron(blocks, np.ones((8, 8, 1), np.uint8))
    part = path.with_name(f".part_{path.name}")
    with av.open(str(part), "w") as container:
        stream = container.add_stream(encoder, rate=FPS, options={"g": "250", **options})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(seconds * FPS):
            frame = av.VideoFrame.from_ndarray(render(i, background, height, width), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    part.replace(path)
    return path


def by_vidqa(backend: str) -> Callable[[Path], list[int]]:
    """Return a function that decodes 8 frames with a backend of vidqa."""

    def run(path: Path) -> list[int]:
        from vidqa.media.decode import decode

        media = decode(str(path), backend=backend)  # type: ignore[arg-type]
        return [read(frame) for frame in media.segments[0].frames.pixels]  # type: ignore[union-attr]

    return run


def raw_decord(path: Path) -> list[int]:
    """Decode 8 frames with plain decord, one thread."""
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    frames = reader.get_batch(np.linspace(0, len(reader) - 1, N_WANTED).astype(int)).asnumpy()
    return [read(frame) for frame in frames]


def raw_pyav(path: Path) -> list[int]:
    """Decode 8 frames with plain PyAV: one seek per frame, frames identified by their timestamp."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        rate, base = stream.average_rate, stream.time_base
        assert rate is not None and base is not None
        n = stream.frames or round(float(container.duration or 0) / av.time_base * float(rate))
        start, found = stream.start_time or 0, []
        for wanted in np.linspace(0, n - 1, N_WANTED).astype(int):
            tick = start + int(wanted / rate / base)
            container.seek(tick, stream=stream)
            frame = next(f for f in container.decode(stream) if f.pts is not None and f.pts + 1 / rate / base > tick)
            found.append(read(frame.to_ndarray(format="rgb24")))
    return found


def torchcodec(path: Path) -> list[int]:
    """Decode 8 frames with plain torchcodec, one thread."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1)
    wanted = np.linspace(0, len(decoder) - 1, N_WANTED).astype(int).tolist()
    return [read(frame) for frame in decoder.get_frames_at(wanted).data.numpy()]


def whole(path: Path) -> list[int]:
    """Decode every frame with PyAV, one thread, and convert 8 of them."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        n = stream.frames or round(float(container.duration or 0) / av.time_base * FPS)
        wanted = {int(i) for i in np.linspace(0, n - 1, N_WANTED)}
        frames = (f for i, f in enumerate(container.decode(stream)) if i in wanted)
        return [read(frame.to_ndarray(format="rgb24")) for frame in frames]


WAYS: dict[str, Callable[[Path], list[int]]] = {
    "auto": by_vidqa("auto"),
    "pyav": by_vidqa("pyav"),
    "decord": by_vidqa("decord"),
    "raw decord": raw_decord,
    "raw pyav": raw_pyav,
    "torchcodec": torchcodec,
    "whole": whole,
}


def measure(way: str, path: Path, n_frames: int, repeat: int) -> dict[str, object]:
    """Return best, median and spread of several runs in seconds, and the share of correct frames."""
    wanted = [int(i) for i in np.linspace(0, n_frames - 1, N_WANTED)]
    seconds, cpu, right = [], [], 1.0
    for _ in range(repeat):
        began, began_cpu = time.perf_counter(), time.process_time()
        try:
            got = WAYS[way](path)
        except Exception as e:  # noqa: BLE001 - a library that fails is a result of this benchmark
            return {"error": f"{type(e).__name__}: {e}".splitlines()[0]}
        seconds.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
        right = min(right, sum(a == b for a, b in zip(got, wanted, strict=False)) / N_WANTED)
    middle = statistics.median(seconds)
    spread = max(seconds) - min(seconds)
    return {"best_s": min(seconds), "median_s": middle, "spread_s": spread, "cpu_s": min(cpu), "right": right}


def environment() -> dict[str, object]:
    """Return versions, hardware and commit."""
    found: dict[str, object] = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }
    for name in ("av", "decord", "torchcodec", "numpy", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    found["cpu"] = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    found["load"] = [round(x, 1) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None
    git = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    found["commit"] = git.stdout.strip() or None
    return found


def main() -> int:
    """Encode the clips, measure, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", type=int, default=10, help="seconds of the short clip [10]")
    parser.add_argument("--long", type=int, default=120, help="seconds of the long clip [120]")
    parser.add_argument("--size", default="640x360", help="WIDTHxHEIGHT [640x360]")
    parser.add_argument("--codec", choices=sorted(ENCODERS), action="append", help="repeatable [h264, hevc, vp9]")
    parser.add_argument("--way", choices=list(WAYS), action="append", help="repeatable [all]")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each measurement [3]")
    parser.add_argument("--clips", type=Path, help="keep the clips in this folder and reuse them")
    args = parser.parse_args()
    width, height = (int(n) for n in args.size.split("x"))
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.clips or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{'clip':16}{'way':12}{'best s':>9}{'median s':>10}{'CPU s':>8}{'right':>7}")
        for codec in args.codec or DEFAULT_CODECS:
            for seconds in (args.short, args.long):
                print(f"encoding {codec} {seconds} s ...", end="\r", file=sys.stderr, flush=True)
                path = make_clip(folder, codec, seconds, width, height)
                for way in args.way or WAYS:
                    found = measure(way, path, seconds * FPS, args.repeat)
                    results.append({"codec": codec, "seconds": seconds, "way": way, **found})
                    line = f"{codec + f' {seconds} s':16}{way:12}"
                    if "error" in found:
                        print(line + str(found["error"])[:80], flush=True)
                    else:
                        times = f"{found['best_s']:9.3f}{found['median_s']:10.3f}{found['cpu_s']:8.3f}"
                        print(f"{line}{times}{found['right']:7.0%}", flush=True)
    print(json.dumps({"bench": "decode", "size": args.size, "n_wanted": N_WANTED, "results": results, **environment()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
