"""Plots with matplotlib: loss curves of a run, and a histogram of sample lengths. The only module that imports it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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


@contextmanager
def _default_style() -> Iterator[None]:
    """Use matplotlib's own settings, because it also reads a `matplotlibrc` in the working folder."""
    import matplotlib

    with matplotlib.rc_context(matplotlib.rcParamsDefault):
        yield


@_default_style()
def save_figure(path: Path, figure: Any) -> Path:
    """Write a figure as a PNG file, atomically."""
    with atomic_write(path) as f:
        figure.savefig(f, format="png", dpi=_DPI)
    return path


@_default_style()
def loss_curves(lines: Sequence[Mapping[str, Any]]) -> Any:
    """Plot the losses of all stages over the steps.

    Args:
        lines: lines of metrics.jsonl.

    Returns:
        A matplotlib Figure: the loss of each step, its running mean, held-out losses, and where each stage starts.
        Steps without a loss, because all of their samples were rejected, are skipped.
    """
    figure, axes = _new_figure()
    before = 0  # steps of the previous stages
    for stage in dict.fromkeys(line["stage"] for line in lines):
        own = [line for line in lines if line["stage"] == stage]
        with_loss = [line for line in own if line["loss"] is not None]
        evaluated = [line for line in own if "eval_loss" in line]
        losses = [float(line["loss"]) for line in with_loss]
        steps = [before + line["step"] for line in with_loss]
        axes.plot(steps, losses, color=_OK, alpha=0.35, linewidth=1, label="loss of each step")
        axes.plot(steps, running_mean(losses), color=_OK, linewidth=2, label="running mean of the loss")
        if evaluated:
            points = [before + line["step"] for line in evaluated]
            held_out = [float(line["eval_loss"]) for line in evaluated]
            axes.plot(points, held_out, color=_OVER, marker="o", linestyle="--", label="held-out loss")
        axes.axvline(before, color="0.4", linewidth=1)
        axes.annotate(
            f"{stage} {own[0]['name']}",
            (before, 1),
            xycoords=("data", "axes fraction"),
            xytext=(4, -4),
            textcoords="offset points",
            va="top",
        )
        before += own[-1]["step"]
    axes.set(xlabel="step, over all stages", ylabel="loss per token", ylim=(0, None))
    axes.set_xlim(0, max(1, 1.01 * before))
    if lines:
        _legend_above(axes)
    return figure


def running_mean(losses: Sequence[float]) -> list[float]:
    """Compute the exponential running mean of the losses of one stage.

    Args:
        losses: one number for each step.
    """
    means: list[float] = []
    for n, loss in enumerate(losses):
        mean = means[-1] if means else 0.0
        weight = max(_SMOOTHING, _FIFTH / len(losses), 1 / (n + 1))
        means.append(mean + min(1.0, weight) * (loss - mean))
    return means


@_default_style()
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
    """Add a legend above the axes, with one entry for all lines that have the same label."""
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(reversed(labels), reversed(handles), strict=True))  # the first line of each label
    axes.legend(
        [unique[label] for label in dict.fromkeys(labels)],
        list(dict.fromkeys(labels)),
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=3,
        frameon=False,
        borderaxespad=0.2,
    )
