"""Plots with matplotlib: loss curves of a run, and a histogram of sample lengths. The only module that imports it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidqa.common.atomic_io import atomic_write
from vidqa.common.display import plural
from vidqa.common.extras import install_hint, is_installed

NO_MATPLOTLIB = f"not plotted, because the package matplotlib is not installed; {install_hint('train')}"

_SIZE, _DPI = (9.6, 4.8), 100  # inches; 960 x 480 pixels
_OK, _OVER = "tab:blue", "tab:red"
_BINS = 60
#: One sample of a million tokens would squeeze all others into one bar. If the longest sample has more than `_FACTOR`
#: times the tokens of this percentile, the axis ends there, and longer samples have a bar of their own.
_PERCENTILE, _FACTOR = 99.5, 2
#: Weight of the latest value in the running mean, because single steps of small batches hide the trend. For a short
#: stage, the mean is over about a fifth of its steps.
_SMOOTHING, _FIFTH = 0.05, 5


def has_matplotlib() -> bool:
    """Return True if matplotlib is installed."""
    return is_installed("matplotlib")


def save_figure(path: Path, figure: Any) -> Path:
    """Write a figure as a PNG file, atomically."""
    with atomic_write(path) as f:
        figure.savefig(f, format="png", dpi=_DPI)
    return path


def loss_curves(lines: Sequence[Mapping[str, Any]]) -> Any:
    """Plot the losses of all stages over the steps.

    Args:
        lines: lines of metrics.jsonl.

    Returns:
        A matplotlib Figure: the loss of each step, its running mean, held-out losses, and where each stage starts.
    """
    figure, axes = _new_figure()
    means = running_mean(lines)
    for stage in dict.fromkeys(line["stage"] for line in lines):
        numbers = [n for n, line in enumerate(lines) if line["stage"] == stage]
        steps = [n + 1 for n in numbers]
        evaluated = [n for n in numbers if "eval_loss" in lines[n]]
        label = {"loss": "loss", "mean": "loss, running mean", "held-out": "held-out loss"} if numbers[0] == 0 else {}
        losses = [float(lines[n]["loss"]) for n in numbers]
        axes.plot(steps, losses, color=_OK, alpha=0.35, linewidth=1, label=label.get("loss"))
        axes.plot(steps, [means[n] for n in numbers], color=_OK, linewidth=2, label=label.get("mean"))
        if evaluated:
            held_out = [float(lines[n]["eval_loss"]) for n in evaluated]
            points = [n + 1 for n in evaluated]
            axes.plot(points, held_out, color=_OVER, marker="o", linestyle="--", label=label.get("held-out"))
        axes.axvline(numbers[0], color="0.4", linewidth=1)
        axes.annotate(
            f"{stage} {lines[numbers[0]]['name']}",
            (numbers[0], 1),
            xycoords=("data", "axes fraction"),
            xytext=(4, -4),
            textcoords="offset points",
            va="top",
        )
    axes.set(xlabel="step, over all stages", ylabel="loss per token", ylim=(0, None))
    axes.set_xlim(0, max(1, 1.01 * len(lines)))
    if lines:
        _legend_above(axes)
    return figure


def running_mean(lines: Sequence[Mapping[str, Any]]) -> list[float]:
    """Compute the exponential running mean of the losses of each stage.

    Args:
        lines: lines of metrics.jsonl.
    """
    means: list[float] = []
    n_before = 0
    n_steps = Counter(line["stage"] for line in lines)
    for n, line in enumerate(lines):
        n_before = 0 if n == 0 or line["stage"] != lines[n - 1]["stage"] else n_before + 1
        mean = means[-1] if n_before else 0.0
        weight = max(_SMOOTHING, _FIFTH / n_steps[line["stage"]], 1 / (n_before + 1))
        means.append(mean + min(1.0, weight) * (float(line["loss"]) - mean))
    return means


def token_histogram(tokens: np.ndarray, limit: int | None) -> Any:
    """Plot how many samples have how many tokens.

    Args:
        tokens: int64 [N]; may be empty.
        limit: maximum length, shown as a line; longer samples are red.

    Returns:
        A matplotlib Figure.
    """
    figure, axes = _new_figure()
    axes.set_title(plural(len(tokens), "sample"), loc="left")
    axes.set(xlabel="tokens per sample, including visual tokens", ylabel="samples")
    if not len(tokens):
        return figure
    counts, edges, n_longer = histogram_bins(tokens, limit)
    colors = [_OVER if limit and left >= limit else _OK for left in edges[:-1]]
    # A minimum height keeps one long sample among a million visible.
    minimum = max(int(counts.max()), n_longer) / 100
    heights = np.where(counts > 0, np.maximum(counts, minimum), 0)
    axes.bar(edges[:-1], heights, np.diff(edges), align="edge", color=colors)
    right = int(edges[-1])
    if n_longer:
        color, width = _OVER if limit else _OK, right / 20
        longest = int(tokens.max())
        label = f"{n_longer:,} longer than {right:,}, up to {longest:,}"
        height = max(n_longer, minimum)
        bars = axes.bar(right * 1.05, height, width, align="edge", color=color, label=label)
        axes.bar_label(bars, labels=[f"{n_longer:,}"])
        ticks = [tick for tick in axes.get_xticks() if 0 <= tick <= right]
        axes.set_xticks([*ticks, right * 1.05 + width / 2], [*(f"{tick:.0f}" for tick in ticks), "longer"])
    if limit:
        axes.axvline(limit, color=_OVER, linewidth=2, label=f"limit {limit:,}")
    if limit or n_longer:
        _legend_above(axes)
    axes.set_xlim(0, right * (1.12 if n_longer else 1.02))
    return figure


def histogram_bins(tokens: np.ndarray, limit: int | None) -> tuple[np.ndarray, np.ndarray, int]:
    """Choose the bins of the histogram.

    The edges are evenly spaced; the bin that contains the limit is split there. A bin contains the lengths from just
    above its left edge up to its right edge. A few samples that are far longer than the rest are beyond the last edge,
    but the limit never is.

    Args:
        tokens: int64 [N], N > 0.
        limit: maximum length.

    Returns:
        Counts int64 [B], integer edges [B + 1] from 0, and the number of samples beyond the last edge.
    """
    longest = int(tokens.max())
    usual = max(int(np.percentile(tokens, _PERCENTILE, method="lower")), limit or 0, 1)
    last = usual if longest > _FACTOR * usual else max(longest, usual)
    step = -(-last // _BINS)
    edges = np.arange(0, last + step, step)
    if limit:
        edges = np.union1d(edges, [limit])
    return np.histogram(tokens - 0.5, edges)[0], edges, int((tokens > edges[-1]).sum())


def _new_figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="0.88")
    axes.set_axisbelow(True)
    return figure, axes


def _legend_above(axes: Any) -> None:
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, borderaxespad=0.2)
