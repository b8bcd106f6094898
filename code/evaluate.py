"""How fast a new task is learned, the sub-policies frozen: python evaluate.py --help"""

import csv
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from mlsh import checkpoint
from mlsh.config import EvaluationConfig
from mlsh.errors import UserError, run_command
from mlsh.evaluation import KINDS, evaluate, steps_to
from mlsh.logger import make_folder, writing
from mlsh.plots import draw_bands

SHOWN = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # updates in the table


@dataclass
class Args(EvaluationConfig):
    """Learn each task anew with what runs have learned, and write the return after every update.

    MLSH trains a fresh master over frozen sub-policies; a shared policy (--num_low 1) is fine-tuned; a run without
    sub-policies (--num_low 0) is PPO from scratch; an RL² policy just plays on, an episode in place of an update
    (--updates, --hlr, --bs and --look are not for it).
    Prints a table, and writes adaptation.csv and adaptation.png.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Run folders or checkpoints, a line each in the figure."""
    out: str = ""
    """Folder for the files; default: the first run's."""


def print_table(results):
    """A row a run and task: returns after some updates, env steps to 90 % and 95 % of the last, mean over env steps."""
    last = max(len(steps) for steps, *_ in results.values()) - 1
    shown = sorted({last, *(n for n in SHOWN if n < last)})
    rows = [["run", "task", *(f"after {n}" for n in shown), "to 90 %", "to 95 %", "area"]]
    for name, (steps, returns, labels) in results.items():
        for j, label in enumerate(labels):
            mean = returns[:, j].mean(1)
            cells = [f"{mean[n]:.4g}" if n < len(mean) else "" for n in shown]
            cells += [f"{steps_to(part, steps, returns[:, j]):,.0f}" for part in (0.9, 0.95)]
            cells.append(f"{np.trapezoid(mean, steps) / steps[-1]:.4g}" if steps[-1] else "")
            rows.append([name, label, *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        padded = [
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(padded))


def write(results, out):
    """Write adaptation.csv and adaptation.png of `results` (name -> what `evaluate` gave) to the folder `out`."""
    panels = defaultdict(dict)
    temporary = out / "adaptation.csv.tmp"
    with writing(out):
        with open(temporary, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["run", "task", "seed", "update", "env_steps", "return"])
            for name, (steps, returns, labels) in results.items():
                for j, label in enumerate(labels):
                    panels[label][name] = steps, returns[:, j]
                    for (n, seed), x in np.ndenumerate(returns[:, j]):
                        writer.writerow([name, label, seed, n, f"{steps[n]:.0f}", f"{x:.6g}"])
        draw_bands(out / "adaptation.png", panels, "env steps on the new task")
        os.replace(temporary, out / "adaptation.csv")


def main():
    args = tyro.cli(Args, use_underscores=True)
    args.validate()
    if not args.runs:
        raise UserError("name a run folder or a checkpoint")
    for run in args.runs:
        checkpoint.load(run, KINDS)  # what is none is refused before anything is written
    runs = [run.resolve() for run in args.runs]
    runs = [run.parent if run.name == "checkpoint.pt" else run for run in runs]
    names = [run.stem if run.is_file() else run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    if len(set(names)) < len(names):
        raise UserError("a run is named twice; name each once")
    out = Path(args.out or (runs[0].parent if runs[0].is_file() else runs[0]))
    make_folder(out)
    results = {name: evaluate(run, args) for name, run in zip(names, runs, strict=True)}
    print_table(results)
    write(results, out)


if __name__ == "__main__":
    run_command(main)
