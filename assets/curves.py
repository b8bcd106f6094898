"""Draw the README's learning curves from run folders: python assets/curves.py NAME RUN [RUN ...]

Writes TASK_trained_reward_NAME.png for each task and trained_reward_NAME.png for all into this folder: trained
reward against env steps, a thin line a run and a thick one their median.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mlsh.logger import curve, read_metrics

HERE = Path(__file__).parent
LINES = {"mb": (43.80, "best possible"), "ab": (-0.155, "the earlier port")}  # to compare with
RANGE = {"ab": (-0.25, -0.09)}  # of the returns


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    name, *runs = sys.argv[1:]
    runs = [read_metrics(run) for run in runs]
    tasks = sorted({row["task"] for row in runs[0]})
    for task in [*tasks, None]:
        figure = Figure(figsize=(4, 3), layout="constrained")
        axes = figure.subplots()
        curves = [curve(run, task, "trained_reward") for run in runs]
        for steps, reward in curves:
            axes.plot(steps, reward, color="C0", lw=0.7, alpha=0.5)
        length = min(len(steps) for steps, _ in curves)
        middle = [np.median([series[k][:length] for series in curves], axis=0) for k in (0, 1)]
        axes.plot(*middle, color="C0", lw=2.2, label=f"{'median' if len(runs) > 2 else 'mean'} of {len(runs)} seeds")
        if name in LINES:
            level, label = LINES[name]
            axes.axhline(level, color="C7", ls=":", label=label)
        axes.set(xlabel="million env steps", ylabel="trained reward", title=f"task {task}" if task else "all tasks")
        axes.set_ylim(RANGE.get(name))
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize=8)
        figure.savefig(HERE / f"{f'{task}_' if task else ''}trained_reward_{name}.png", dpi=100)


if __name__ == "__main__":
    main()
