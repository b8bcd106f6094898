"""The README's tables and learning curves, from run folders: python report.py --help"""

import json
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro
from matplotlib.figure import Figure

from mlsh.config import Config
from mlsh.envs import best_return
from mlsh.errors import UserError, run_command
from mlsh.harness.analyses import PASSED, SEPARATED, SOLVED, print_table
from mlsh.runs.files import make_folder, writing
from mlsh.runs.metrics import read_metrics
from mlsh.runs.plots import curve
from mlsh.settings import cli

LINES = {"AntBandits-v1": (-0.155, "the earlier port")}  # in figures, where the best possible return is not known
RANGE = {"AntBandits-v1": (-0.25, -0.08)}  # of the returns, in figures
IGNORED = {"compile", "seed", "out", "resume", "wandb_project", "wandb_group", "wandb_name"}
IGNORED |= {name for name in Config.changeable() if name != "tasks"}


@dataclass
class Args:
    """Print the README's tables of runs of train.py, and draw their learning curves.

    Where the best possible return is known, positive, and much the same for all tasks, a row a run of the preset, and a
    row a variant (the flags that differ from it) for all its runs; else a row a run and task.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Run folders."""
    figures: str = ""
    """Folder for the learning curves, TASK_trained_reward_NAME.png and trained_reward_NAME.png; none if empty."""
    name: str = ""
    """The NAME in their names; the environment's id if empty."""


class Run(NamedTuple):
    config: dict
    results: dict
    metrics: list  # rows of metrics.csv


def read(folder):
    """The Run in a folder, or None, said aloud, where none has come to its final test."""
    if not folder.is_dir():
        raise UserError(f"there is no run folder {folder}")
    path = folder / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    if "test" not in results:
        print(f"{folder} has no results of train.py, left out", file=sys.stderr)
        return None
    config = Config.from_dict(json.loads((folder / "config.json").read_text())["config"])
    return Run(config.as_dict(), results, read_metrics(folder))


def variant(config):
    """The flags that differ from the environment's preset, as typed."""
    preset = Config.defaults(config["env"]).as_dict()
    flags = []
    for name, default in preset.items():
        value = config[name]
        if name not in IGNORED and value != default:
            typed = f"--{'' if value else 'no_'}{name}" if isinstance(value, bool) else f"{Config.flag(name)} {value}"
            flags.append(typed)
    return " ".join(flags) or "preset"


def solved_at(run, threshold):
    """Env steps and seconds of the outer iteration from which on every task's trained reward is at the threshold."""
    returns = defaultdict(list)  # (iteration, task) -> trained reward of its groups
    end = {}
    for row in run.metrics:
        returns[int(row["iteration"]), row["task"]].append(float(row["trained_reward"]))
        end[int(row["iteration"])] = int(row["env_steps"]), float(row["seconds"])
    below = [i for (i, _), values in returns.items() if statistics.mean(values) < threshold]
    return end.get(max(below, default=-1) + 1)


def in_all(results, unit):
    """The cells for what a run took: env steps, and time in units of so many seconds."""
    return [f"{results['env_steps'] / 1e6:.1f} M", f"{results['seconds'] / unit:.{0 if unit == 1 else 1}f}"]


def print_tasks(runs):
    """A row a run and task."""
    tests = [row for run in runs for row in run.results["test"]]
    final = dict.fromkeys(name for row in tests for name in row if name.startswith("final_"))
    known = any("best_return" in row for row in tests)
    rows = []
    for _, results, _ in sorted(runs, key=lambda run: run.results["seed"]):
        for row in results["test"]:
            cells = [f"{row['task']} ({row['label']})", f"{row['return']:.4f} ± {row['standard_error']:.4f}"]
            cells += [f"{row['best_return']:.4f}" if "best_return" in row else ""] if known else []
            cells += ["" if row.get(name) is None else f"{row[name]:.2f}" for name in final]
            cells += [" / ".join(f"{x:.2f}" for x in row["share"])]
            cells += [" / ".join(f"{x:.3f}" for x in row["sub_policy_returns"])]
            rows.append([results["seed"], *cells, *in_all(results, 3600)])
    header = ["seed", "task", "return", *["at best"] * known]
    header += [*(name.replace("_", " ") for name in final)]
    print_table([*header, "shares", "each alone", "env steps", "hours"], rows)


def print_seeds(runs, threshold):
    """A row a run, and how long it took until all tasks were at the threshold."""
    rows, reached = [], []
    for run in sorted(runs, key=lambda run: run.results["seed"]):
        test, at = run.results["test"], solved_at(run, threshold)
        reached.append(at)
        cells = [f"{row['return']:.2f} ± {row['standard_error']:.2f}" for row in test]
        cells.append(" ; ".join(" / ".join(f"{x:.2f}" for x in row["share"]) for row in test))
        cells += [f"{at[0] / 1e6:.1f} M", f"{at[1]:.0f}"] if at else ["never", "never"]
        rows.append([run.results["seed"], *cells, *in_all(run.results, 1)])
    labels = [f"task {row['task']} ({row['label']})" for row in test]
    last = ["shares", f"to {threshold:.1f}: env steps", "seconds", "in all: env steps", "seconds"]
    print_table(["seed", *labels, *last], rows)
    if all(reached):
        for name, pick in (("median", statistics.median), ("worst", max)):
            steps, seconds = (pick(at[k] for at in reached) for k in (0, 1))
            print(f"\n{name} to {threshold:.1f}: {steps / 1e6:.1f} M env steps, {seconds:.0f} s")


def print_variants(variants, best):
    """A row a variant: how many of its runs have learned all tasks."""
    passed, separated, rows = PASSED * best, SEPARATED * best, []
    for name, runs in variants.items():
        worst = [min(row["return"] for row in run.results["test"]) for run in runs]
        steps = statistics.mean(run.results["env_steps"] for run in runs)
        counts = [sum(x >= passed for x in worst), sum(x > separated for x in worst)]
        rows.append([f"`{name}`", len(runs), *counts, f"{statistics.mean(worst):.1f}", f"{steps / 1e6:.1f} M"])
    header = ["variant", "runs", f"all tasks ≥ {passed:.1f}", f"all tasks > {separated:.0f}"]
    print_table([*header, "worse task, mean", "env steps"], rows)


def draw(runs, env, folder, name):
    """A figure of each task, of at most six, and one of all: a thin line a run, a thick one their median."""
    tasks = sorted({row["task"] for row in runs[0].metrics})
    for task in [*(tasks if len(tasks) <= 6 else []), None]:
        figure = Figure(figsize=(4, 3), layout="constrained")
        axes = figure.subplots()
        curves = [curve(run.metrics, task, "trained_reward") for run in runs]
        for steps, reward in curves:
            axes.plot(steps, reward, color="C0", lw=0.7, alpha=0.5)
        length = min(len(steps) for steps, _ in curves)
        middle = [np.median([series[k][:length] for series in curves], axis=0) for k in (0, 1)]
        axes.plot(*middle, color="C0", lw=2.2, label=f"{'median' if len(runs) > 2 else 'mean'} of {len(runs)} seeds")
        best = best_return(env)
        level, label = (best, "best possible") if best else LINES.get(env, (None, None))
        if label:
            axes.axhline(level, color="C7", ls=":", label=label)
        axes.set(xlabel="million env steps", ylabel="trained reward", title=f"task {task}" if task else "all tasks")
        axes.set_ylim(RANGE.get(env))
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize=8)
        with writing(folder):
            figure.savefig(folder / f"{f'{task}_' if task else ''}trained_reward_{name}.png", dpi=100)


def main():
    args = cli(Args)
    if not args.runs:
        raise UserError("name a run folder")
    of_env = defaultdict(list)
    for run in filter(None, map(read, args.runs)):
        of_env[run.results["env"].split(":")[-1]].append(run)
    if not of_env:
        raise UserError("none of the runs has come to its final test; let train.py -c finish one")
    if args.figures and len(of_env) > 1:
        raise UserError(f"a figure is of one environment, and these runs are of {', '.join(of_env)}; name those of one")
    for env, runs in of_env.items():
        best = best_return(env)
        if not best or best < 0 or any("best_return" in run.results["test"][0] for run in runs):  # no one part to reach
            print_tasks(runs)
            continue
        variants = defaultdict(list)
        for run in runs:
            variants[variant(run.config)].append(run)
        if "preset" in variants:
            print_seeds(variants["preset"], SOLVED * best)
        print_variants(variants, best)
    if args.figures:
        folder = Path(args.figures)
        make_folder(folder)
        draw(runs, env, folder, args.name or env)


if __name__ == "__main__":
    run_command(main)
