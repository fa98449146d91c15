"""Faults that tests inject into decoder processes, which import this module by name."""

from __future__ import annotations

import os
import signal
import time

import numpy as np

from vidqa.encoders.preprocess import preprocess
from vidqa.media.probe import has_video_stream, probe
from vidqa.records import EncoderInput, FrameBatch, MediaFacts

SEGFAULT, OOM_KILLED, HANGS, GREEDY = 34, 36, 38, 40


def faulty_preprocess(frames: FrameBatch, **settings: object) -> EncoderInput:
    """Like `preprocess`, but frames of certain widths crash, hang or exhaust the process as a bad file does."""
    width = frames.pixels.shape[2]
    if width == SEGFAULT:
        os.kill(os.getpid(), signal.SIGSEGV)
    if width == OOM_KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    if width == HANGS:
        time.sleep(600)
    if width == GREEDY:
        np.ones(100 << 27)  # 100 GB
    return preprocess(frames, **settings)  # type: ignore[arg-type]


def hang_after_two_seconds(frames: FrameBatch, **settings: object) -> EncoderInput:
    """Like `preprocess`, but frames from the third second on hang the process."""
    if frames.pts_s[0] > 1.9:
        time.sleep(600)
    return preprocess(frames, **settings)  # type: ignore[arg-type]


def faulty_probe(path: str) -> MediaFacts:
    """Like `probe`, but one file crashes the process as a bad file crashes a demuxer."""
    if "segfault" in path:
        os.kill(os.getpid(), signal.SIGSEGV)
    return probe(path)


def faulty_has_video_stream(path: str) -> bool:
    """Like `has_video_stream`, with the same exception."""
    if "segfault" in path:
        os.kill(os.getpid(), signal.SIGSEGV)
    return has_video_stream(path)
