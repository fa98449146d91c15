"""Functions that tests run in decoder processes, which import this module by name."""

from __future__ import annotations

import os
import signal
import sys
import time

import numpy as np

from vidqa.errors import MediaError
from vidqa.media.workers.heartbeat import beat
from vidqa.records import FrameBatch


def file_size(path: str) -> int:
    """Return the size of a file; crash on an empty file, and fail on a file of one byte."""
    size = os.path.getsize(path)
    if size == 0:
        os.kill(os.getpid(), signal.SIGSEGV)
    if size == 1:
        raise MediaError("unreadable", f"{path}: one byte")
    return size


def slow(path: str) -> str:
    """Take three seconds, in which packets arrive."""
    for _ in range(30):
        time.sleep(0.1)
        beat()
    return path


def hang_in_third_segment(frames: FrameBatch, *, start_s: float = 2.0) -> FrameBatch:
    """Hang at the first segment that starts at `start_s` or later."""
    if frames.pts_s[0] >= start_s:
        time.sleep(600)
    return frames


def misbehave(frames: FrameBatch, *, note: str = "") -> FrameBatch:
    """Misbehave in the way selected by the width of the frames; 8 is normal.

    Args:
        frames: frames of one file.
        note: file to which the process appends its process id.
    """
    if note:
        with open(note, "a") as f:
            f.write(f"{os.getpid()}\n")
    width = frames.pixels.shape[2]
    if width == 16:
        os.kill(os.getpid(), signal.SIGSEGV)
    if width == 17:
        time.sleep(600)
    if width == 18:
        np.ones(1 << 30)  # 8 GB
    if width == 19:
        raise IndexError("a strange file")
    if width == 20:
        os._exit(3)
    if width == 21:
        os.write(1, b"noise of a C library\n")
        os.write(2, b"noise of a C library\n")
        print("noise of Python")
    if width == 22:
        while True:  # busy
            sum(range(1000))
    if width == 23:
        assert "torch" not in sys.modules and "onnxruntime" not in sys.modules
    return frames
