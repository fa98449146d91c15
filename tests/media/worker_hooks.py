"""What decoder processes are made to do in tests. Imported there by name, so it is no test module."""

from __future__ import annotations

import os
import signal
import sys
import time

import numpy as np

from vidqa.errors import MediaError
from vidqa.records import FrameBatch


def ask_size(path: str) -> int:
    """Something other than decoding that a file may be asked; an empty one kills, one of a byte is refused."""
    size = os.path.getsize(path)
    if size == 0:
        os.kill(os.getpid(), signal.SIGSEGV)
    if size == 1:
        raise MediaError("unreadable", f"{path}: one byte")
    return size


def misbehave(frames: FrameBatch, *, note: str = "") -> FrameBatch:
    """Behave as the width of the picture says; 8 is good.

    Args:
        frames: of one file.
        note: file to which the process writes its id, for tests that look after it.
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
        while True:  # busy, and never back in the interpreter's hands for long
            sum(range(1000))
    if width == 23:
        assert "torch" not in sys.modules and "onnxruntime" not in sys.modules
    return frames
