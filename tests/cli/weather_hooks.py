"""What decoder processes do in the tests of bad weather. Imported there by name, so it is no test module."""

from __future__ import annotations

import os
import signal
import time

import numpy as np

from vidqa.encoders.preprocess import preprocess
from vidqa.media.probe import has_video_stream, probe
from vidqa.records import EncoderInput, FrameBatch, MediaFacts

SEGFAULT, OOM_KILLED, HANGS, GREEDY = 34, 36, 38, 40


def strike(frames: FrameBatch, **how: object) -> EncoderInput:
    """As `preprocess`, but for frames of certain widths, which do to their process what a bad file does to a decoder."""
    width = frames.pixels.shape[2]
    if width == SEGFAULT:
        os.kill(os.getpid(), signal.SIGSEGV)
    if width == OOM_KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    if width == HANGS:
        time.sleep(600)
    if width == GREEDY:
        np.ones(100 << 27)  # 100 GB
    return preprocess(frames, **how)  # type: ignore[arg-type]


def strike_probe(path: str) -> MediaFacts:
    """As `probe`, but one file does to its process what a bad file does to a demuxer."""
    if "segfault" in path:
        os.kill(os.getpid(), signal.SIGSEGV)
    return probe(path)


def strike_look(path: str) -> bool:
    """As `has_video_stream`, with the same exception."""
    if "segfault" in path:
        os.kill(os.getpid(), signal.SIGSEGV)
    return has_video_stream(path)
