"""Lengths of samples -> a histogram as a picture. Knows numbers only."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vidqa.common import atomic_io

_WIDTH, _HEIGHT = 960, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 24, 48, 56  # margins in pixels
_BINS = 60
#: One sample of a million tokens would leave all others a single bar. Where the longest is more than so many times the
#: length that this share (%) of the samples keeps to, the axis ends there, and what is longer has a bar of its own.
_SHARE, _TIMES = 99.5, 2
_BEYOND = 90  # pixels for that bar
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_INK, _BAR, _OVER, _PALE = (40, 40, 40), (86, 128, 178), (196, 78, 82), (222, 222, 222)


def save_histogram(path: Path, tokens: np.ndarray, limit: int | None) -> Path:
    """Draw how many samples have how many tokens.

    Args:
        path: of the PNG; whole or not written at all.
        tokens: int64 [N]; none gives an empty picture that says so.
        limit: drawn as a line; what lies beyond it is red.
    """
    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(15)
    draw.text((_LEFT, 14), f"Tokens of a sample, visual ones included: {len(tokens)} samples", _INK, font)
    if len(tokens):
        _draw_bars(draw, font, tokens, limit)
    with atomic_io.atomic_write(path) as f:
        image.save(f, "PNG")
    return path


def bins(tokens: np.ndarray, limit: int | None) -> tuple[np.ndarray, np.ndarray, int]:
    """Counts [B], whole edges [B + 1] from 0 on, and how many samples are longer than the last edge.

    The edges are evenly spaced; the bin that the limit falls into is split there. A bin holds the lengths from just
    above its left edge up to its right edge. Samples lie behind the last edge where a few are far longer than the rest;
    the limit never does.
    """
    longest = int(tokens.max())
    usual = max(int(np.percentile(tokens, _SHARE, method="lower")), limit or 0, 1)
    most = usual if longest > _TIMES * usual else max(longest, usual)
    step = -(-most // _BINS)
    edges = np.arange(0, most + step, step)
    if limit:
        edges = np.union1d(edges, [limit])
    return np.histogram(tokens - 0.5, edges)[0], edges, int((tokens > edges[-1]).sum())


def _draw_bars(draw: ImageDraw.ImageDraw, font: _Font, tokens: np.ndarray, limit: int | None) -> None:
    counts, edges, n_beyond = bins(tokens, limit)
    right_end, height = _WIDTH - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    width = right_end - _LEFT - (_BEYOND if n_beyond else 0)
    most, highest = int(edges[-1]), max(int(counts.max()), n_beyond)

    def x(value: float) -> float:
        return _LEFT + width * value / most

    def y(value: float) -> float:
        return _TOP + height * (1 - value / highest)

    def bar(count: int, left: float, right: float, colour: tuple[int, int, int]) -> None:
        # At least one pixel high: a single long sample among a million must be seen.
        draw.rectangle((left + 1, min(y(count), y(0) - 1), max(right - 1, left + 1), y(0)), colour)

    for mark in _round_marks(highest):
        draw.line((_LEFT, y(mark), right_end, y(mark)), _PALE)
        draw.text((_LEFT - 8, y(mark)), f"{mark}", _INK, font, anchor="rm")
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            bar(count, x(left), x(right), _OVER if limit and left >= limit else _BAR)
    draw.line((_LEFT, y(0), x(most), y(0)), _INK)
    for mark in _round_marks(most):
        draw.line((x(mark), y(0), x(mark), y(0) + 5), _INK)
        draw.text((x(mark), y(0) + 9), f"{mark}", _INK, font, anchor="mt")
    if n_beyond:
        bar(n_beyond, right_end - _BEYOND / 2, right_end, _OVER if limit else _BAR)
        draw.text((right_end - _BEYOND / 4, y(n_beyond) - 4), f"{n_beyond}", _INK, font, anchor="mb")
        label = f"{n_beyond} longer than {most}, up to {int(tokens.max())}"
        draw.text((right_end, y(0) + 28), label, _INK, font, anchor="rt")
    if limit:
        draw.line((x(limit), _TOP, x(limit), y(0)), _OVER, 2)
        # On the side that has more room: on the other it would stand over bars, or outside of the picture.
        side, anchor = (6, "lt") if 2 * limit < most else (-6, "rt")
        draw.text((x(limit) + side, _TOP), f"limit {limit}", _OVER, font, anchor=anchor)


def _round_marks(most: int) -> range:
    """Round numbers from 0 up to `most`, five or so."""
    wanted = max(1.0, most / 5)
    power = 10 ** int(math.log10(wanted))
    step = next(power * n for n in (1, 2, 5, 10) if power * n >= wanted)
    return range(0, most + 1, step)
