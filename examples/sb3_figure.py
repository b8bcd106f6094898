"""Compare masters of sb3_masters.py with MLSH's own: python sb3_figure.py FIGURE.png ADAPTATION.csv SB3.csv [SB3.csv …]

ADAPTATION.csv is from evaluate.py. Prints a table of means and standard deviations over masters.
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from mlsh.runs.plots import draw_bands

Returns = dict[int, list[float]]  # env steps -> return of each master


def read(paths: list[str]) -> dict[str, dict[str, Returns]]:
    """Task -> learner -> returns."""
    tasks: dict[str, dict[str, Returns]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for path in paths:
        for row in csv.DictReader(Path(path).read_text().splitlines()):
            task = row["task"].removeprefix("task ").split()[0]
            learner = f"{row['algorithm']} of Stable-Baselines3" if "algorithm" in row else "master of MLSH"
            tasks[f"task {task}"][learner][int(row["env_steps"])].append(float(row["return"]))
    return tasks


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    figure, *paths = sys.argv[1:]
    panels = {}
    for task, learners in read(paths).items():
        shared = sorted(set.intersection(*(set(returns) for returns in learners.values())))
        panels[task] = {name: (np.array(shared), np.array([x[n] for n in shared])) for name, x in learners.items()}
        for name, (env_steps, returns) in panels[task].items():
            for n, values in zip(env_steps, returns, strict=True):
                print(f"{task}, {name}, {n:,} env steps: {values.mean():.1f} ± {values.std(ddof=1):.1f}")
        panels[task] = {name: (env_steps / 1000, returns) for name, (env_steps, returns) in panels[task].items()}
    draw_bands(Path(figure), panels, "thousand env steps on the task")


if __name__ == "__main__":
    main()
