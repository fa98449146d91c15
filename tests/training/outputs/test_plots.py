"""Plots: the running mean of losses, and the bins and bars of the histogram of sample lengths."""

import matplotlib
import numpy as np
import pytest
from PIL import Image

from vidqa.training.outputs.plots import histogram_bins, loss_curves, running_mean, save_figure, token_histogram

BLUE, RED = (31 / 255, 119 / 255, 180 / 255, 1.0), (214 / 255, 39 / 255, 40 / 255, 1.0)


def lines(*stages):
    return [
        {"stage": n, "name": f"s{n}", "step": step, "loss": loss}
        for n, losses in enumerate(stages, start=1)
        for step, loss in enumerate(losses, start=1)
    ]


def bars(figure):
    """(left, height, color) of each bar that is not empty."""
    (axes,) = figure.axes
    return [(bar.get_x(), bar.get_height(), bar.get_facecolor()) for bar in axes.patches if bar.get_height()]


def legend(figure):
    found = figure.axes[0].get_legend()
    return [text.get_text() for text in found.get_texts()] if found else []


def test_the_running_mean_of_a_short_stage_follows_it():
    falling = [4.0 * 0.7**n for n in range(12)]
    means = running_mean(falling)
    assert means[0] == falling[0] and running_mean([9.0, 9.0]) == [9.0, 9.0]
    assert falling[11] < means[11] < falling[6]  # it lags a few of the twelve steps


def test_the_running_mean_of_a_long_stage_hides_single_steps():
    means = running_mean([1.0 + n % 2 for n in range(400)])
    assert means[200:] == pytest.approx([1.5] * 200, abs=0.03)


def test_loss_curves_have_axes_a_legend_and_the_start_of_each_stage(tmp_path):
    before = {"stage": 1, "name": "s1", "step": 0, "loss": None, "eval_loss": 2.5}
    metrics = [before, *lines([3.0, 2.0, 1.0], [None, 0.5, 0.4])]
    metrics[3]["eval_loss"], metrics[6]["eval_loss"] = 1.5, 0.6
    figure = loss_curves(metrics)
    (axes,) = figure.axes
    assert axes.get_xlabel() == "step, over all stages" and axes.get_ylabel() == "loss per token"
    assert legend(figure) == ["loss of each step", "running mean of the loss", "held-out loss"]
    assert [text.get_text() for text in axes.texts] == ["1 s1", "2 s2"] and axes.get_xlim()[0] == 0
    steps, losses = axes.lines[0].get_data()
    assert list(steps) == [1, 2, 3] and list(losses) == [3.0, 2.0, 1.0]
    first, second = ([line for line in axes.lines if line.get_linestyle() == "--"][n].get_data() for n in (0, 1))
    assert [list(first[0]), list(second[0])] == [[0, 3], [6]]  # the first point is the model before training
    assert list(axes.lines[4].get_xdata()) == [5, 6]  # the fourth step has no loss, because its samples were rejected
    assert Image.open(save_figure(tmp_path / "curves.png", figure)).size == (960, 480)


def test_plots_do_not_depend_on_the_settings_of_matplotlib(tmp_path):
    """It also reads a matplotlibrc in the working folder, which may require LaTeX."""
    tokens = np.arange(1, 40)
    plain = [save_figure(tmp_path / "a.png", token_histogram(tokens, 20)).read_bytes()]
    plain.append(save_figure(tmp_path / "a.png", loss_curves([])).read_bytes())
    with matplotlib.rc_context({"text.usetex": True, "axes.facecolor": "red", "savefig.facecolor": "red"}):
        other = [save_figure(tmp_path / "b.png", token_histogram(tokens, 20)).read_bytes()]
        other.append(save_figure(tmp_path / "b.png", loss_curves([])).read_bytes())
    assert other == plain


def test_loss_curves_without_steps_can_be_saved(tmp_path):
    assert save_figure(tmp_path / "none.png", loss_curves([])).exists()


@pytest.mark.parametrize(
    ("longest", "limit"), [(7, None), (3000, None), (3000, 2048), (900, 2048), (2048, 2048), (5, 3)]
)
def test_bins_count_every_sample_and_none_crosses_the_limit(longest, limit):
    tokens = np.random.default_rng(0).integers(1, longest + 1, 500)
    tokens[0] = longest
    counts, edges, n_longer = histogram_bins(tokens, limit)
    assert counts.sum() == 500 and n_longer == 0
    assert len(counts) <= 61
    if limit:
        assert counts[edges[:-1] >= limit].sum() == (tokens > limit).sum()


@pytest.mark.parametrize("limit", [None, 300])
@pytest.mark.parametrize("n", [60, 5000])
def test_one_extreme_sample_does_not_squeeze_the_others_into_one_bar(n, limit):
    tokens = np.random.default_rng(0).integers(100, 281, n)
    tokens[n // 2] = 1_000_000
    counts, edges, n_longer = histogram_bins(tokens, limit)
    assert counts.sum() + n_longer == n and n_longer == (tokens > edges[-1]).sum()
    assert n_longer <= max(1, n // 100) and len(counts) <= 61
    assert (counts > 0).sum() > 25
    assert limit is None or limit in edges
    figure = token_histogram(tokens, limit)
    left, height, color = bars(figure)[-1]  # longer samples have their own bar at the end,
    assert left > edges[-1] and height >= n_longer and color == (RED if limit else BLUE)
    assert any("up to 1,000,000" in text for text in legend(figure))  # explained in the legend
    without = token_histogram(np.delete(tokens, n // 2), limit)
    assert not any("up to" in text for text in legend(without))


@pytest.mark.parametrize("limit", [2000, 1600, 1400, 60])
def test_the_limit_is_a_line_with_a_label_outside_the_bars(limit):
    tokens = np.append(np.full(2000, 20), np.arange(20, 3001, 10))
    figure = token_histogram(tokens, limit)
    (axes,) = figure.axes
    assert list(axes.lines[-1].get_xdata()) == [limit, limit] and legend(figure) == [f"limit {limit:,}"]
    figure.canvas.draw()
    assert axes.get_legend().get_window_extent().y0 >= axes.get_window_extent().y1


def test_samples_beyond_the_limit_are_red_and_visible(tmp_path):
    for tokens, limit in ((np.full(1000, 100), None), (np.append(np.full(100_000, 100), 3000), 2048)):
        figure = token_histogram(tokens, limit)
        assert [color for *_, color in bars(figure)] == ([BLUE, RED] if limit else [BLUE])
        pixels = np.asarray(Image.open(save_figure(tmp_path / "a.png", figure)).convert("RGB"))
        inside = pixels[100:, 700:]  # without the legend and the line of the limit
        assert (inside == (214, 39, 40)).all(-1).any() == bool(limit)  # one sample among 100,000 is visible
    assert save_figure(tmp_path / "none.png", token_histogram(np.zeros(0, np.int64), 10)).exists()
