"""Curves and their figures: a run's, and those of several runs as one, a mean with its interval."""

from collections import defaultdict

import numpy as np
from matplotlib.figure import Figure
from scipy import stats


def interval(y):
    """Mean over the last axis of `y`, runs, and the ends of its 95 % interval by Student's t (one run has none)."""
    mean, runs = y.mean(-1), y.shape[-1]
    half = stats.t.ppf(0.975, runs - 1) * stats.sem(y, axis=-1) if runs > 1 else 0 * mean
    return mean, mean - half, mean + half


def steps_to(part, steps, returns):
    """The first env steps at which the mean over seeds of returns [n, seeds] is as good as `part` of its last value.

    "95 % of −0.1" is −0.105: what is missing is measured by the size of the last value.
    """
    mean = returns.mean(1)
    return steps[(mean >= mean[-1] - (1 - part) * abs(mean[-1])).argmax()]


def steps_until(level, env_steps, returns):
    """The first of the env steps [n] at which the mean of five of returns [n] around it is at `level`; else infinite.

    One measurement alone is as noisy as its episodes.
    """
    good = np.convolve(np.pad(returns, 2, mode="edge"), np.full(5, 0.2), "valid") >= level
    return env_steps[good.argmax()] if good.any() else np.inf


def last_tenth(y):
    """Mean over the last tenth of the last axis."""
    return y[..., -max(1, y.shape[-1] // 10) :].mean(-1)


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
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2 * len(panels), fontsize=8)
    figure.savefig(path, dpi=110)


def curve(rows, task, reward, steps="env_steps"):
    """`steps` (millions) and mean `reward` of the groups on `task` (None: on any), of each outer iteration.

    `rows`: of a metrics.csv, dicts of strings.
    """
    values, at = defaultdict(list), {}
    for row in rows:
        if task in (None, row["task"]):
            values[row["iteration"]].append(float(row[reward]))
            at[row["iteration"]] = int(row[steps]) / 1e6
    return list(at.values()), [np.mean(values[i]) for i in at]


def draw_curves(path, rows, rewards):
    """Write a figure of a run: a panel a task (of at most six) and one for all, each of `rewards` against env steps.

    `rewards`: column of metrics.csv -> label.
    """
    tasks = sorted({row["task"] for row in rows})
    panels = [*(tasks if len(tasks) <= 6 else []), None]
    figure = Figure(figsize=(4 * len(panels), 3.2), layout="constrained")
    styles = ("C7:", "C0-", "C1--", "C2-.")
    for axes, task in zip(figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels, strict=True):
        for i, (reward, label) in enumerate(rewards.items()):
            axes.plot(*curve(rows, task, reward), styles[i % len(styles)], label=label)
        axes.set(title="all tasks" if task is None else f"task {task}", xlabel="million env steps")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("mean episode return")
    figure.axes[0].legend()
    figure.savefig(path, dpi=110)


def draw_map(path, percent, rows, columns, xlabel, ylabel, title):
    """Write a figure of percentages [rows, columns] as colours and numbers; the first row is below."""
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(percent, vmin=0, vmax=100, origin="lower", aspect="auto")
    for (i, j), x in np.ndenumerate(percent):
        axes.text(j, i, f"{x:.0f}", ha="center", va="center", color="w" if x < 57 else "k")
    axes.set(xticks=range(len(columns)), xticklabels=columns, yticks=range(len(rows)), yticklabels=rows)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    figure.colorbar(image)
    figure.savefig(path, dpi=110)
