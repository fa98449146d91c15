"""Damage media files in every way and decode them: `python tools/fuzz_media.py --count 10000 --seed 0`.

Makes small clips and pictures of many kinds, and from them mutants: bits flipped, cut short, parts moved, doubled or
left out, boxes of MP4 spliced and lied about, two files grown together. One in five has a name that says nothing, so
that the scan must look into it. Each goes through scan, probe and decode as in a run, in batches whose main process
stands for that of a run: if it dies or hangs, the mutants are kept and the tool fails. Every file must end as decoded,
as an error with a kind and a sentence, or as left out with a reason.
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
PICTURES = {"j.png": "PNG", "k.jpg": "JPEG", "l.gif": "GIF", "m.webp": "WEBP", "n.tiff": "TIFF", "o.bmp": "BMP"}


def make_originals(folder: Path) -> list[Path]:
    """The sound files; kinds that this build of FFmpeg cannot write are left out."""
    folder.mkdir(parents=True)
    pictures = [np.random.default_rng(i).integers(0, 255, (48, 64, 3), np.uint8) for i in range(12)]
    for name, (form, codec, pixels) in CLIPS.items():
        try:
            with av.open(str(folder / name), "w", format=form) as container:
                rate = 25 if codec == "mpeg2video" else 10
                stream = container.add_stream(codec, rate=rate, options={"g": "4", "bf": "2"} if name > "p" else {})
                stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
                for picture in pictures:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
                container.mux(stream.encode())
        except (av.FFmpegError, ValueError):
            (folder / name).unlink(missing_ok=True)
    stills = [Image.fromarray(picture) for picture in pictures]
    for name, form in PICTURES.items():
        more = {"save_all": True, "append_images": stills[1:4]} if form in ("GIF", "WEBP") else {}
        stills[0].save(folder / name, form, **more)
    return sorted(folder.iterdir())


def flip(data: bytearray, others: list[bytes], chance: random.Random) -> bytearray:
    """Some bits change, half of the time near the beginning, where headers are."""
    for _ in range(chance.choice((1, 2, 8, 64))):
        stop = len(data) if chance.random() < 0.5 else min(len(data), 400)
        data[chance.randrange(stop)] ^= 1 << chance.randrange(8)
    return data


def cut(data: bytearray, others: list[bytes], chance: random.Random) -> bytearray:
    """The end is missing, or the beginning."""
    at = chance.randrange(len(data))
    return data[:at] if chance.random() < 0.8 else data[at:]


def shuffle(data: bytearray, others: list[bytes], chance: random.Random) -> bytearray:
    """A stretch is doubled, left out, or moved."""
    a, b = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    piece, rest = data[a:b], data[:a] + data[b:]
    at = chance.randrange(len(rest) + 1)
    return chance.choice((rest, data[:b] + piece + data[b:], rest[:at] + piece + rest[at:]))


def grow_together(data: bytearray, others: list[bytes], chance: random.Random) -> bytearray:
    """The beginning of one file and the end of another."""
    other = chance.choice(others)
    return data[: chance.randrange(len(data))] + other[chance.randrange(len(other)) :]


def numbers(data: bytearray, others: list[bytes], chance: random.Random) -> bytearray:
    """A field becomes one of the numbers that programs stumble over."""
    at = chance.randrange(max(1, min(len(data), 2000) - 8))
    number = chance.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFF, chance.getrandbits(32)))
    data[at : at + 4] = struct.pack(chance.choice(("<I", ">I")), number)
    return data


def boxes(data: bytearray, others: list[bytes], chance: random.Random) -> bytearray:
    """A box of MP4 lies about its size, is renamed, left out or put into another place; other files are cut instead."""
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
    """First byte and end of all boxes, nested ones included."""
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
    flip, flip, cut, shuffle, grow_together, numbers, boxes, boxes,
)  # fmt: skip


def mutants(originals: list[Path], seed: int, first: int, count: int, folder: Path) -> None:
    """Write mutants number first ... first + count - 1; each depends on the seed and its number alone."""
    folder.mkdir(parents=True)
    sound = [path.read_bytes() for path in originals]
    for number in range(first, first + count):
        chance = random.Random(f"{seed}-{number}")
        k = chance.randrange(len(sound))
        data = bytearray(sound[k])
        for _ in range(chance.choice((1, 1, 2, 3))):
            data = chance.choice(MUTATIONS)(data, sound, chance) or bytearray(b"\0")
        suffix = ".bin" if chance.random() < 0.2 else originals[k].suffix
        (folder / f"{number:06d}{suffix}").write_bytes(data)


def through(folder: Path, timeout_s: float) -> Counter[str]:
    """Scan, probe and decode a folder as a run does; how each file ended.

    Raises:
        RuntimeError: a file was not accounted for, or exactly once.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    found = scan([str(folder)])
    if len(found.items) + len(found.left_out) != len(files):
        raise RuntimeError(f"{len(files)} files, {len(found.items)} found and {len(found.left_out)} left out")
    ends = Counter(f"left out: {out.reason}" for out in found.left_out)
    rule = SamplingSpec()
    jobs = (DecodeJob(path=item.path, seconds=None, sampling=rule) for item in found.items)
    told = set()
    with DecodePool(n_workers=os.cpu_count() or 1, timeout_s=timeout_s, memory_bytes=2 << 30) as pool:
        for _ in pool.look(probe, [item.path for item in found.items]):
            pass  # decoding says it again, and is counted
        for job, result in pool.run(jobs):
            told.add(job.path)
            ends[f"failed: {result.kind}" if isinstance(result, MediaError) else "decoded"] += 1
            if isinstance(result, MediaError) and not result.what:
                raise RuntimeError(f"{job.path}: an error without a sentence")
    if told != {item.path for item in found.items}:
        raise RuntimeError(f"{len(found.items)} files, {len(told)} results")
    return ends


def fuzz(count: int, seed: int, timeout_s: float, keep: Path) -> tuple[Counter[str], list[str]]:
    """Run all mutants, a batch in a process of its own.

    Returns:
        How files ended, and the batches whose process died or hung.
    """
    ends: Counter[str] = Counter()
    broken = []
    with tempfile.TemporaryDirectory(prefix="vidqa-fuzz-") as home:
        originals = make_originals(Path(home) / "sound")
        for first in range(0, count, BATCH):
            folder = Path(home) / f"batch{first}"
            mutants(originals, seed, first, min(BATCH, count - first), folder)
            command = [sys.executable, __file__, "--through", str(folder), "--timeout", str(timeout_s)]
            try:
                # Each file may take its whole time in probe and in decode, and the process some to start.
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
    """Parse, fuzz, say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="mutants [10000]")
    parser.add_argument("--seed", type=int, default=0, help="of the mutants [0]")
    parser.add_argument("--timeout", type=float, default=20.0, help="seconds for decoding one file [20]")
    parser.add_argument("--keep", type=Path, default=Path("fuzz_found"), help="where bad batches are put [fuzz_found]")
    parser.add_argument("--through", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.through:
        print(json.dumps(through(args.through, args.timeout)))
        return
    begin = time.monotonic()
    ends, broken = fuzz(args.count, args.seed, args.timeout, args.keep)
    for end, number in ends.most_common():
        print(f"{number:>7} {end}")
    print("\n".join(broken))
    wall_s = round(time.monotonic() - begin, 1)
    print(json.dumps({"fuzz": "media", "count": args.count, "seed": args.seed, "wall_s": wall_s, "ends": ends}))
    if broken or sum(ends.values()) != args.count:
        sys.exit(1)


if __name__ == "__main__":
    main()
