"""Learning curves of one run or of several, as numbers and as figures."""

import io
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from mlsh.runs.files import UNENCODABLE, write_whole

Array = NDArray[Any]


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to `path`, a .png; raise a UserError if that fails."""
    replace_unencodable(figure)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    write_whole(path, content.getbuffer())


def replace_unencodable(figure: Figure) -> None:
    """Replace what is no UTF-8 in the texts of a figure, such as names of folders, because it cannot be drawn."""
    for text in figure.findobj(Text):
        text.set_text(text.get_text().encode(errors=UNENCODABLE).decode())


def interval(y: Array) -> tuple[Array, Array, Array]:
    """Return the mean over the last axis of `y` (runs), and both ends of its 95 % interval by Student's t.

    With one run, both ends are the mean.
    """
    mean, runs = y.mean(-1), y.shape[-1]
    half = stats.t.ppf(0.975, runs - 1) * stats.sem(y, axis=-1) if runs > 1 else 0 * mean
    return mean, mean - half, mean + half


def steps_to_fraction(fraction: float, env_steps: Array, returns: Array) -> float:
    """Return the first of `env_steps` [n] at which the mean of `returns` [n, seeds] reaches a fraction of its last.

    The gap to the last value is measured by the size of that value: 95 % of −0.1 is −0.105.
    """
    mean = returns.mean(1)
    return float(env_steps[(mean >= mean[-1] - (1 - fraction) * abs(mean[-1])).argmax()])


def steps_to_level(level: float, env_steps: Array, returns: Array) -> float:
    """Return the first of `env_steps` [n] at which `returns` [n] reach a level, or infinity if they never do.

    The mean of five measurements around each point counts, because a single one is as noisy as its episodes.
    """
    good = np.convolve(np.pad(returns, 2, mode="edge"), np.full(5, 0.2), "valid") >= level
    return float(env_steps[good.argmax()]) if good.any() else math.inf


def last_tenth(y: Array) -> Array:
    """Return the mean over the last tenth of the last axis."""
    return y[..., -max(1, y.shape[-1] // 10) :].mean(-1)


def draw_bands(
    path: Path,
    panels: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]],
    xlabel: str,
    ylabel: str = "mean episode return",
    symlog: float = 0.0,
    columns: int = 0,
) -> None:
    """Write a figure of panels side by side, each with lines and their 95 % intervals.

    `panels` is {title: {label: (x [n], y [n, runs])}}. With `symlog` the x axis is linear up to there and logarithmic
    beyond. With `columns` there are rows of so many panels, and each has its own y axis. Raises a UserError if the
    figure cannot be written.
    """
    labels = dict.fromkeys(label for lines in panels.values() for label in lines)
    colour = {label: f"C{i}" for i, label in enumerate(labels)}
    width = columns or len(panels)
    height = math.ceil(len(panels) / width)
    figure = Figure(figsize=(4.4 * width, 3.6 * height), layout="constrained")
    all_axes = figure.subplots(height, width, squeeze=False, sharey=not columns).flat
    for axes, (title, lines) in zip(all_axes, panels.items(), strict=False):
        for label, (x, y) in lines.items():
            middle, low, high = interval(np.asarray(y))
            axes.plot(x, middle, colour[label], label=label)
            axes.fill_between(x, low, high, color=colour[label], alpha=0.2, lw=0)
        if symlog:
            axes.set_xscale("symlog", linthresh=symlog)
        else:
            axes.locator_params(axis="x", nbins=5)
        axes.set_title(title, parse_math=False)
        axes.set_xlabel(xlabel)
        axes.grid(alpha=0.3)
    for unused in all_axes[len(panels) :]:
        unused.remove()
    figure.axes[0].set_ylabel(ylabel)
    handles = {str(line.get_label()): line for axes in figure.axes for line in axes.lines}
    legend = figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=2 * width, fontsize=8
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    save_figure(figure, path)


def curve(
    rows: Sequence[Mapping[str, Any]], task: str | None, reward: str, steps: str = "env_steps"
) -> tuple[list[float], list[float]]:
    """Return the curve of a reward: for each outer iteration the millions of steps, and the mean over the groups.

    `rows` are those of a metrics.csv, with strings as values; `reward` and `steps` are columns of it. Only the groups
    on `task` count; None stands for all tasks.
    """
    values, at = defaultdict(list), {}
    for row in rows:
        if task in (None, row["task"]):
            values[row["iteration"]].append(float(row[reward]))
            at[row["iteration"]] = int(row[steps]) / 1e6
    return list(at.values()), [float(np.mean(values[i])) for i in at]


def draw_rewards(axes: Axes, rows: Sequence[Mapping[str, Any]], task: str | None, rewards: Mapping[str, str]) -> None:
    """Draw the curves of a run's rewards; the arguments are those of `curve` and `draw_curves`."""
    styles = ("C7:", "C0-", "C1--", "C2-.")
    for i, (reward, label) in enumerate(rewards.items()):
        axes.plot(*curve(rows, task, reward), styles[i % len(styles)], label=label)
    axes.set_xlabel("million env steps")
    axes.grid(alpha=0.3)


def draw_curves(path: Path, rows: Sequence[Mapping[str, Any]], rewards: Mapping[str, str]) -> None:
    """Write a figure of a run's rewards against env steps: a panel for each of up to six tasks, and one for all.

    `rows` are those of a metrics.csv; `rewards` maps its columns to labels. Raises a UserError if it cannot be written.
    """
    tasks = sorted({row["task"] for row in rows})
    panels = [*(tasks if len(tasks) <= 6 else []), None]
    figure = Figure(figsize=(4 * len(panels), 3.2), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels, strict=True):
        draw_rewards(axes, rows, task, rewards)
        axes.set_title("all tasks" if task is None else f"task {task}", parse_math=False)
    figure.axes[0].set_ylabel("mean episode return")
    figure.axes[0].legend()
    save_figure(figure, path)


def draw_map(
    path: Path, percent: Array, rows: Sequence[object], columns: Sequence[object], xlabel: str, ylabel: str, title: str
) -> None:
    """Write a figure of percentages [rows, columns] as colours and numbers, with the first row at the bottom."""
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(percent, vmin=0, vmax=100, origin="lower", aspect="auto")
    for (i, j), x in np.ndenumerate(percent):
        axes.text(j, i, f"{x:.0f}", ha="center", va="center", color="w" if x < 57 else "k")
    axes.set(xticks=range(len(columns)), xticklabels=columns, yticks=range(len(rows)), yticklabels=rows)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    figure.colorbar(image)
    save_figure(figure, path)
