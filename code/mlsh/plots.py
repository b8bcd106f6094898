"""Curves of several runs as one: their interquartile mean and its interval."""

import warnings

import numpy as np
from matplotlib.figure import Figure
from scipy import stats


def interquartile_mean(y, axis=-1):
    """Mean of the middle half, of all with fewer than four (Agarwal et al. 2021)."""
    return stats.trim_mean(y, 0.25, axis=axis)


def interval(y):
    """Interquartile mean over the last axis of `y`, and the ends of its 95 % bootstrap interval (one run has none)."""
    if y.shape[-1] == 1:
        return y[..., 0], y[..., 0], y[..., 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of equal values
        ends = stats.bootstrap(
            (y,), interquartile_mean, axis=-1, n_resamples=2000, method="percentile", vectorized=True, rng=0
        ).confidence_interval
    return interquartile_mean(y), ends.low, ends.high


def draw_bands(path, panels, xlabel, ylabel="mean episode return", symlog=0.0):
    """Write a figure of panels side by side: {title: {label: (x [n], y [n, runs])}}.

    `symlog`: a logarithmic x axis that is linear up to there.
    """
    labels = dict.fromkeys(label for lines in panels.values() for label in lines)
    colour = {label: f"C{i}" for i, label in enumerate(labels)}
    figure = Figure(figsize=(4.4 * len(panels), 3.6), layout="constrained")
    for axes, (title, lines) in zip(
        figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels.items(), strict=True
    ):
        for label, (x, y) in lines.items():
            middle, low, high = interval(np.asarray(y))
            axes.plot(x, middle, colour[label], label=label)
            axes.fill_between(x, low, high, color=colour[label], alpha=0.2, lw=0)
        if symlog:
            axes.set_xscale("symlog", linthresh=symlog)
        axes.set(title=title, xlabel=xlabel)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel(ylabel)
    handles = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(5, len(handles)), fontsize=8)
    figure.savefig(path, dpi=110)
