"""Fuzz the media stage with damaged files: `python tools/fuzz_media.py --count 10000 --seed 0`.

Writes small clips and images in many formats and derives mutants from them: flipped bits, truncation, chunks that are
moved, duplicated or removed, MP4 boxes that are spliced or have wrong sizes, two files joined together. One in five has
an uninformative suffix, so that the scan must inspect its content. Mutants go through scan, probe and decode in
batches, each in a subprocess that stands for the main process of a run. If that process crashes or hangs, the tool
keeps the mutants and fails. Every file must end as decoded, as an error with a kind and a message, or as excluded with
a reason. Half of them are decoded in windows, which must follow each other without gaps.

With `--originals DIR` the files of a folder are damaged too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from PIL import Image

from vidqa.errors import MediaError
from vidqa.media.probe import probe
from vidqa.media.scan import scan
from vidqa.media.workers.decode_pool import DecodeJob, DecodePool
from vidqa.records import SamplingSpec

BATCH = 250
WINDOW_S = 0.3
#: Name -> container, codec and pixel format of a clip.
CLIPS = {
    "a.mp4": ("mp4", "libx264", "yuv420p"),
    "b.mp4": ("mp4", "mpeg4", "yuv420p"),
    "c.mkv": ("matroska", "libx264", "yuv420p"),
    "d.webm": ("webm", "libvpx", "yuv420p"),
    "e.avi": ("avi", "mjpeg", "yuvj420p"),
    "f.ts": ("mpegts", "mpeg2video", "yuv420p"),
    "g.mov": ("mov", "libx265", "yuv420p"),
    "h.flv": ("flv", "flv1", "yuv420p"),
    "i.webm": ("webm", "libvpx-vp9", "yuv420p"),
    "p.avi": ("avi", "libx264", "yuv420p"),
    "q.ts": ("mpegts", "libx264", "yuv420p"),
    "r.vob": ("vob", "mpeg2video", "yuv420p"),
}
IMAGES = {"j.png": "PNG", "k.jpg": "JPEG", "l.gif": "GIF", "m.webp": "WEBP", "n.tiff": "TIFF", "o.bmp": "BMP"}


def make_originals(folder: Path) -> list[Path]:
    """Write the intact files, except in formats that this build of FFmpeg cannot write."""
    folder.mkdir(parents=True)
    frames = [np.random.default_rng(i).integers(0, 255, (48, 64, 3), np.uint8) for i in range(12)]
    for name, (form, codec, pixels) in CLIPS.items():
        try:
            with av.open(str(folder / name), "w", format=form) as container:
                rate = 25 if codec == "mpeg2video" else 10
                stream = container.add_stream(codec, rate=rate, options={"g": "4", "bf": "2"} if name > "p" else {})
                stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
                for frame in frames:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                container.mux(stream.encode())
        except (av.FFmpegError, ValueError):
            (folder / name).unlink(missing_ok=True)
    write_odd_clips(folder, frames)
    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(folder / "pages.tiff", "TIFF", save_all=True, append_images=images[1:3])
    images[0].save(folder / "rotated.tiff", "TIFF", tiffinfo={274: 6}, compression="tiff_lzw")
    rgba = [image.convert("RGBA") for image in images]
    for image in rgba:
        image.putalpha(128)
    rgba[0].save(folder / "alpha.avif", "AVIF")
    rgba[0].save(folder / "moving.png", "PNG", save_all=True, append_images=rgba[1:4], duration=[100, 2000, 100, 100])
    for name, form in IMAGES.items():
        more = {"save_all": True, "append_images": images[1:4]} if form in ("GIF", "WEBP") else {}
        images[0].save(folder / name, form, **more)
    return sorted(folder.iterdir())


def write_odd_clips(folder: Path, frames: list[np.ndarray]) -> None:
    """Write clips with unusual times or layouts: a variable rate, a jumping clock, fragments, JPEG images in a row."""
    steady = [n * 100 for n in range(len(frames))]
    for name, times_ms, options in (
        ("late.mp4", [*steady[:-2], 30_500, 30_540], {}),
        ("slides.mkv", [0, 14_000, 21_000], {}),
        ("jump.mkv", [*steady[:-1], 95_443_000], {}),
        ("fragments.mp4", steady, {"movflags": "frag_keyframe+empty_moov"}),
        ("faststart.mp4", steady, {"movflags": "faststart"}),
    ):
        with av.open(str(folder / name), "w", options=options) as container:
            stream = container.add_stream("libx264", rate=1000, options={"g": "4", "bf": "0"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
            for pixels, time_ms in zip(frames, times_ms, strict=False):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    with (folder / "camera.mjpeg").open("wb") as f:
        for pixels in frames:
            Image.fromarray(pixels).save(f, "JPEG")


def flip(data: bytearray, others: list[bytes], chance: random.Random) -> bytearray:
    """Flip some bits, half of the time near the start, where the headers are."""
    for _ in range(chance.choice((1, 2, 8, 64))):
        stop = len(data) if chance.random() < 0.5 else min(len(data), 400)
        data[chance.randrange(stop)] ^= 1 << chance.randrange(8)
    return data


def cut(data: bytearray, others: list[bytes], chance: random.Random) -> bytearray:
    """Cut off the end, or the start."""
    at = chance.randrange(len(data))
    return data[:at] if chance.random() < 0.8 else data[at:]


def shuffle(data: bytearray, others: list[bytes], chance: random.Random) -> bytearray:
    """Duplicate, remove or move a chunk."""
    a, b = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    piece, rest = data[a:b], data[:a] + data[b:]
    at = chance.randrange(len(rest) + 1)
    return chance.choice((rest, data[:b] + piece + data[b:], rest[:at] + piece + rest[at:]))


def join(data: bytearray, others: list[bytes], chance: random.Random) -> bytearray:
    """Join the start of one file and the end of another."""
    other = chance.choice(others)
    return data[: chance.randrange(len(data))] + other[chance.randrange(len(other)) :]


def numbers(data: bytearray, others: list[bytes], chance: random.Random) -> bytearray:
    """Overwrite four bytes with a number that often breaks parsers."""
    at = chance.randrange(max(1, min(len(data), 2000) - 8))
    number = chance.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFF, chance.getrandbits(32)))
    data[at : at + 4] = struct.pack(chance.choice(("<I", ">I")), number)
    return data


def boxes(data: bytearray, others: list[bytes], chance: random.Random) -> bytearray:
    """Set a wrong size of an MP4 box, rename it, remove it, duplicate it or replace it; truncate other files."""
    found = list(_boxes(data, 0, len(data)))
    if data[4:8] != b"ftyp" or not found:
        return cut(data, others, chance)
    a, b = chance.choice(found)
    act = chance.randrange(5)
    if act == 0:
        data[a : a + 4] = struct.pack(">I", chance.choice((0, 1, 7, 0xFFFFFFFF, (b - a) * 2, chance.getrandbits(32))))
    elif act == 1:
        data[a + 4 : a + 8] = chance.choice((b"free", b"moov", b"trak", b"stbl", b"mdat", b"dref", b"zzzz"))
    elif act == 2:
        del data[a:b]
    elif act == 3:
        data[b:b] = data[a:b]
    else:
        c, d = chance.choice(found)
        data[a:b] = data[c:d]
    return data


def _boxes(data: bytearray, start: int, stop: int) -> list[tuple[int, int]]:
    """Return (start, end) of all boxes, including nested ones."""
    found = []
    while start + 8 <= stop:
        size = struct.unpack(">I", data[start : start + 4])[0]
        if size < 8 or start + size > stop:
            break
        found.append((start, start + size))
        if bytes(data[start + 4 : start + 8]) in (
            b"moov",
            b"trak",
            b"mdia",
            b"minf",
            b"stbl",
            b"edts",
            b"dinf",
            b"udta",
        ):
            found += _boxes(data, start + 8, start + size)
        start += size
    return found


MUTATIONS: tuple[Callable[[bytearray, list[bytes], random.Random], bytearray], ...] = (
    flip, flip, cut, shuffle, join, numbers, boxes, boxes,
)  # fmt: skip


def mutants(originals: list[Path], seed: int, first: int, count: int, folder: Path) -> None:
    """Write mutants number `first` to `first + count - 1`; each depends only on the seed and its number."""
    folder.mkdir(parents=True)
    intact = [path.read_bytes() for path in originals]
    for number in range(first, first + count):
        chance = random.Random(f"{seed}-{number}")
        k = chance.randrange(len(intact))
        data = bytearray(intact[k])
        for _ in range(chance.choice((1, 1, 2, 3))):
            data = chance.choice(MUTATIONS)(data, intact, chance) or bytearray(b"\0")
        suffix = ".bin" if chance.random() < 0.2 else originals[k].suffix
        (folder / f"{number:06d}{suffix}").write_bytes(data)


def through(folder: Path, timeout_s: float) -> Counter[str]:
    """Scan, probe and decode a folder as a run does; count the outcomes.

    Raises:
        RuntimeError: a file has no outcome or more than one.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    found = scan([str(folder)])
    if len(found.items) + len(found.ignored) != len(files):
        raise RuntimeError(f"{len(files)} files, {len(found.items)} found and {len(found.ignored)} excluded")
    ends = Counter(f"excluded: {out.reason}" for out in found.ignored)
    rule = SamplingSpec()
    lengths_s = (None, WINDOW_S)
    jobs = (DecodeJob(item.path, lengths_s[n % 2], rule) for n, item in enumerate(found.items))
    finished = set()
    with DecodePool(n_workers=os.cpu_count() or 1, timeout_s=timeout_s, memory_bytes=2 << 30) as pool:
        for _ in pool.map_unordered(probe, [item.path for item in found.items]):
            pass  # decoding reports the same error, which is counted below
        for job, result in pool.run(jobs):
            finished.add(job.path)
            ends[f"failed: {result.kind}" if isinstance(result, MediaError) else "decoded"] += 1
            if isinstance(result, MediaError) and not result.what:
                raise RuntimeError(f"{job.path}: an error without a sentence")
            if not isinstance(result, MediaError):
                ends["with notes"] += bool(result.facts.notes)
                bounds = [(one.start_s, one.end_s) for one in result.segments]
                if bounds[0][0] != 0 or any(a[1] != b[0] for a, b in pairwise(bounds)):
                    raise RuntimeError(f"{job.path}: the windows leave gaps or overlap: {bounds[:9]}")
    if finished != {item.path for item in found.items}:
        raise RuntimeError(f"{len(found.items)} files, {len(finished)} results")
    return ends


def fuzz(count: int, seed: int, timeout_s: float, keep: Path, more: Path | None) -> tuple[Counter[str], list[str]]:
    """Run all mutants in batches, each in a separate process.

    Returns:
        The number of files per outcome, and the batches whose process crashed or hung.
    """
    ends: Counter[str] = Counter()
    broken = []
    with tempfile.TemporaryDirectory(prefix="vidqa-fuzz-") as home:
        originals = make_originals(Path(home) / "intact")
        originals += sorted(path for path in more.iterdir() if path.is_file()) if more else []
        for first in range(0, count, BATCH):
            folder = Path(home) / f"batch{first}"
            mutants(originals, seed, first, min(BATCH, count - first), folder)
            command = [sys.executable, __file__, "--through", str(folder), "--timeout", str(timeout_s)]
            try:
                # Each file may use its full timeout in probe and in decode; the process needs time to start.
                limit_s = 120 + 2 * timeout_s * BATCH
                done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
                trouble = f"exit {done.returncode}: {done.stderr[-500:]}" if done.returncode else None
            except subprocess.TimeoutExpired:
                trouble = f"no end within {limit_s:.0f} s"
            if trouble is None:
                ends.update(json.loads(done.stdout.splitlines()[-1]))
            else:
                broken.append(f"mutants {first} to {first + BATCH - 1}: {trouble}")
                shutil.copytree(folder, keep / folder.name, dirs_exist_ok=True)
            shutil.rmtree(folder)
            print(f"{min(first + BATCH, count)} of {count}", file=sys.stderr, flush=True)
    return ends, broken


def main() -> None:
    """Fuzz and print the outcomes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="number of mutants [10000]")
    parser.add_argument("--seed", type=int, default=0, help="random seed [0]")
    parser.add_argument("--timeout", type=float, default=20.0, help="seconds per file [20]")
    parser.add_argument("--keep", type=Path, default=Path("fuzz_found"), help="folder for failing batches [fuzz_found]")
    parser.add_argument("--originals", type=Path, metavar="DIR", help="also damage the files of this folder")
    parser.add_argument("--through", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.through:
        print(json.dumps(through(args.through, args.timeout)))
        return
    start = time.monotonic()
    ends, broken = fuzz(args.count, args.seed, args.timeout, args.keep, args.originals)
    for end, number in ends.most_common():
        print(f"{number:>7} {end}")
    print("\n".join(broken))
    wall_s = round(time.monotonic() - start, 1)
    print(json.dumps({"fuzz": "media", "count": args.count, "seed": args.seed, "wall_s": wall_s, "ends": ends}))
    if broken or ends.total() - ends["with notes"] != args.count:
        sys.exit(1)


if __name__ == "__main__":
    main()
