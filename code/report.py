"""Tables and learning curves of finished runs of train.py: python report.py --help"""

import csv
import inspect
import io
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro
from matplotlib.figure import Figure

from mlsh.config import Config
from mlsh.envs import best_return
from mlsh.errors import UserError, command
from mlsh.harness.analyses import PASSED, SEPARATED, SOLVED, print_table
from mlsh.harness.finished import Run, read_run
from mlsh.harness.page import Table, write_page
from mlsh.outcome import most_information
from mlsh.runs import checkpoint
from mlsh.runs.files import make_folder, safe_name, write_whole
from mlsh.runs.log import final_test_tables
from mlsh.runs.plots import curve, save_figure
from mlsh.settings import DESCRIBED, cli
from mlsh.sub_policies import report_sub_policies, tabulate_sub_policies

EARLIER_PORT = {  # env -> task -> return that the earlier port reports; None: mean over tasks
    "MovementBandits-v0": {None: 27.0, "0": 25.0, "1": 30.0},
    "AntBandits-v1": {None: -0.155, "0": -0.155, "1": -0.155},
}
RETURN_RANGE = {"MovementBandits-v0": (0, 46), "AntBandits-v1": (-0.25, -0.08)}  # of figures
MANY_RUNS = 5  # more than these are drawn as a band


@dataclass
class Args:
    """Print tables of finished runs of train.py, draw their learning curves, and write a page about them.

    If the best possible return is known, positive, and the same for all tasks, there are two tables: one row per run
    of the preset, and one row per variant (a set of flags that differ from the preset). Otherwise there is one row per
    run and task.

    Examples:
        python report.py runs/mb-0 runs/mb-1
        python report.py runs/mb-* --figures ../assets --name mb --csv ../docs/results/movement-bandits.csv
        python report.py runs/mb-0 --html mb-0.html
        python report.py runs/mb-0 --sub_policies
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, DESCRIBED] = ()
    """Run folders."""
    figures: Annotated[str, DESCRIBED] = ""
    """Folder for the figures trained_reward_NAME.png and TASK_trained_reward_NAME.png. Default: no figures."""
    name: Annotated[str, DESCRIBED] = ""
    """The NAME in the names of the figures. Default: the id of the environment."""
    csv: Annotated[str, DESCRIBED] = ""
    """CSV file with one row per run: returns, standard errors, shares, env steps, seconds. Default: no file."""
    sub_policies: Annotated[bool, tyro.conf.FlagCreatePairsOff, DESCRIBED] = False
    """Examine the sub-policies of each run instead: this trains new masters, and takes longer than the final test."""
    html: Annotated[str, DESCRIBED] = ""
    """HTML page with tables, and curves, final test, videos, settings and command of each run. Default: no page."""


class Reached(NamedTuple):
    """When a run reached a threshold."""

    env_steps: float = math.inf
    seconds: float = math.inf

    def __str__(self) -> str:
        return f"{self.env_steps / 1e6:.1f} M ({self.seconds:.0f} s)" if math.isfinite(self.env_steps) else "never"


def first_above(run: Run, threshold: float) -> Reached:
    """The end of the first outer iteration from which on the trained reward of every task is at the threshold."""
    returns: dict[tuple[int, str], list[float]] = defaultdict(list)  # (iteration, task) -> one per group
    ends = {}
    for row in run.metrics:
        iteration = int(row["iteration"])
        returns[iteration, row["task"]].append(float(row["trained_reward"]))
        ends[iteration] = Reached(int(row["env_steps"]), float(row["seconds"]))
    below = [iteration for (iteration, _), values in returns.items() if statistics.mean(values) < threshold]
    return ends.get(max(below, default=-1) + 1, Reached())


def common_best_return(env: str, runs: Sequence[Run]) -> float | None:
    """The best possible return, if it is known, positive, and the same for all tasks."""
    best = best_return(env)
    differs = any("best_return" in run.results["test"][0] for run in runs)
    return best if best and best > 0 and not differs else None


def tabulate_tasks(runs: Sequence[Run]) -> Table:
    """One row per run and task."""
    tests = [row for run in runs for row in run.results["test"]]
    finals = dict.fromkeys(name for row in tests for name in row if name.startswith("final_"))
    known = ["best_return"] if any("best_return" in row for row in tests) else []
    rows = []
    for run in runs:
        for row in run.results["test"]:
            cells = [f"{row['task']} ({row['label']})", f"{row['return']:.4f} ± {row['standard_error']:.4f}"]
            cells += [f"{row[name]:.4f}" if name in row else "" for name in known]
            cells += ["" if row.get(name) is None else f"{row[name]:.2f}" for name in finals]
            cells.append(" / ".join(f"{x:.2f}" for x in row["share"]))
            cells.append(" / ".join(f"{x:.3f}" for x in row["sub_policy_returns"]))
            used = [f"{run.results['env_steps'] / 1e6:.1f} M", f"{run.results['seconds'] / 3600:.1f}"]
            rows.append([run.results["seed"], *cells, *used])
    header = ["seed", "task", "return ± standard error", *("best possible return" for _ in known)]
    header += [name.replace("_", " ") for name in finals]
    return Table([*header, "shares", "return of each sub-policy alone", "env steps", "hours"], rows)


def tabulate_seeds(runs: Sequence[Run], best: float) -> Table:
    """One row per run, and then how many runs have learned all tasks, and how fast."""
    reached = [first_above(run, SOLVED * best) for run in runs]
    rows = []
    for run, at in zip(runs, reached, strict=True):
        test = run.results["test"]
        cells = [f"{row['return']:.2f} ± {row['standard_error']:.2f}" for row in test]
        cells.append(" ; ".join(" / ".join(f"{x:.2f}" for x in row["share"]) for row in test))
        used = f"{run.results['env_steps'] / 1e6:.1f} M ({run.results['seconds']:.0f} s)"
        rows.append([run.results["seed"], *cells, at, used])
    returns = [f"return on task {row['task']} ({row['label']})" for row in runs[0].results["test"]]
    to_solved = f"to {SOLVED:.0%} of the best ({SOLVED * best:.1f})"
    header = ["seed", *returns, "shares", f"env steps {to_solved}", "env steps in total"]
    lowest = [run.lowest_return for run in runs]
    passed = sum(x >= PASSED * best for x in lowest)
    median, worst = (Reached(*map(pick, zip(*reached, strict=True))) for pick in (statistics.median, max))
    ends = f"{passed} of {len(runs)} runs end at {PASSED:.0%} of the best ({PASSED * best:.1f}) or more on all tasks"
    speed = f"env steps {to_solved} on all tasks: median {median}, worst {worst}"
    return Table(header, rows, [ends, f"lowest return: {min(lowest):.2f}", speed])


def tabulate_variants(variants: Mapping[str, Sequence[Run]], best: float) -> Table:
    """One row per variant: how many of its runs have learned all tasks."""
    rows = []
    for name, runs in variants.items():
        lowest = [run.lowest_return for run in runs]
        env_steps = statistics.mean(run.results["env_steps"] for run in runs)
        counts = [sum(x >= PASSED * best for x in lowest), sum(x > SEPARATED * best for x in lowest)]
        rows.append([f"`{name}`", len(runs), *counts, f"{statistics.mean(lowest):.1f}", f"{env_steps / 1e6:.1f} M"])
    counts = [f"all tasks ≥ {PASSED * best:.1f}", f"all tasks > {SEPARATED * best:.0f}"]
    return Table(["variant", "runs", *counts, "mean return on the worst task", "env steps"], rows)


def tabulate(runs: Sequence[Run], best: float | None) -> list[Table]:
    """The tables of runs of one environment. `best` is what `common_best_return` returns."""
    if not best:
        return [tabulate_tasks(runs)]
    variants: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        variants[run.variant].append(run)
    seeds = [tabulate_seeds(variants["preset"], best)] if "preset" in variants else []
    return [*seeds, tabulate_variants(variants, best)]


def write_csv(path: Path, runs: Sequence[Run], best: float | None) -> None:
    """Write one row per run. Without a common best return the columns ending in _to_95 are empty."""
    rows = []
    for run in runs:
        at = first_above(run, SOLVED * best) if best else Reached()
        tests = {f"task_{row['task']}": row for row in run.results["test"]}
        row = {"seed": run.results["seed"]}
        row |= {f"{task}_return": test["return"] for task, test in tests.items()}
        row |= {f"{task}_standard_error": test["standard_error"] for task, test in tests.items()}
        row |= {f"{task}_share_{k}": x for task, test in tests.items() for k, x in enumerate(test["share"])}
        row |= {"env_steps_to_95": at.env_steps, "seconds_to_95": at.seconds}
        row |= {name: run.results[name] for name in ("env_steps", "seconds")}
        row |= {name: "" for name, x in row.items() if not math.isfinite(x)}
        rows.append({name: f"{x:.6g}" if isinstance(x, float) else x for name, x in row.items()})
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())


def draw_learning_curve(runs: Sequence[Run], env: str, task: str | None) -> Figure:
    """The trained reward over env steps, on one task or (None) averaged over tasks.

    More than MANY_RUNS runs are drawn as their median and interquartile band, fewer as thin lines and their median.
    """
    figure = Figure(figsize=(4.2, 3.2), layout="constrained")
    axes = figure.subplots()
    curves = [curve(run.metrics, task, "trained_reward") for run in runs]
    n = min(len(steps) for steps, _ in curves)
    steps = np.median([x[:n] for x, _ in curves], axis=0)
    low, middle, high = np.quantile([rewards[:n] for _, rewards in curves], (0.25, 0.5, 0.75), axis=0)
    if len(runs) > MANY_RUNS:
        axes.fill_between(steps, low, high, color="C0", alpha=0.3, lw=0, label="interquartile range")
    else:
        for x, rewards in curves:
            axes.plot(x, rewards, color="C0", lw=0.7, alpha=0.5)
    axes.plot(steps, middle, color="C0", lw=2, label=f"median of {len(runs)} runs" if len(runs) > 1 else "1 run")
    if best := best_return(env):
        axes.axhline(best, color="k", ls=":", label=f"best possible: {best:.3g}")
    if (earlier := EARLIER_PORT.get(env, {}).get(task)) is not None:
        axes.axhline(earlier, color="C1", ls="--", label=f"earlier port: {earlier:g}")
    labels = {str(row["task"]): row["label"] for row in runs[0].results["test"]}
    title = "all tasks" if task is None else f"task {task} ({labels[task]})" if task in labels else f"task {task}"
    axes.set(xlabel="million env steps", ylabel="trained reward")
    axes.set_title(title, parse_math=False)
    axes.set_ylim(RETURN_RANGE.get(env))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    return figure


def draw(runs: Sequence[Run], env: str) -> dict[str, Figure]:
    """The learning curves of all tasks, and if there are at most six tasks, of each: {begin of the name: figure}."""
    tasks = sorted({row["task"] for row in runs[0].metrics})
    figures = {"": draw_learning_curve(runs, env, None)}
    return figures | {f"{safe_name(task)}_": draw_learning_curve(runs, env, task) for task in tasks if len(tasks) <= 6}


def print_sub_policies(run: Run) -> None:
    """Print the report on the sub-policies of a run. Raises UserError if it has fewer than two."""
    if run.config["num_sub_policies"] < 2:
        raise UserError(f"{run.folder} has too few sub-policies to compare ({run.config['num_sub_policies']})")
    data = checkpoint.load(run.folder, [Config])
    rows = [row for table in final_test_tables(run.results).values() for row in table]
    report = report_sub_policies(data, rows)
    print(run.folder)
    for header, cells in tabulate_sub_policies(report, [f"{row['task']} ({row['label']})" for row in rows]):
        print_table(header, cells)
    at_most = most_information(report.share)
    print(f"The choice tells {report.information:.2f} bits about the task, of {at_most:.2f} at most.")


@command
def main() -> None:
    args = cli(Args, description=inspect.cleandoc(Args.__doc__ or ""))
    if not args.runs:
        raise UserError("name one or more run folders")
    by_env: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(filter(None, map(read_run, args.runs)), key=lambda run: run.results["seed"]):
        by_env[run.results["env"].split(":")[-1]].append(run)
    if not by_env:
        raise UserError("none of these runs has finished its final test; continue one with train.py -c")
    if (args.figures or args.csv or args.html) and len(by_env) > 1:
        raise UserError(f"these runs are of {', '.join(by_env)}; --figures, --csv and --html take one environment")
    if args.sub_policies and (args.figures or args.csv or args.html):
        raise UserError("--sub_policies prints tables only; leave out --figures, --csv and --html")
    if args.sub_policies:
        for run in (run for runs in by_env.values() for run in runs):
            print_sub_policies(run)
        return
    for env, runs in by_env.items():
        best = common_best_return(env, runs)
        tables = tabulate(runs, best)
        if args.csv:
            write_csv(Path(args.csv), runs, best)
        figures = draw(runs, env) if args.figures or args.html else {}
        if args.figures:
            make_folder(Path(args.figures))
            for prefix, figure in figures.items():
                save_figure(figure, Path(args.figures) / f"{prefix}trained_reward_{args.name or safe_name(env)}.png")
        if args.html:
            write_page(Path(args.html), env, runs, tables, list(figures.values()), best)
        for table in tables:
            print_table(table.header, table.rows)
            if table.notes:
                print("", *table.notes, sep="\n")


if __name__ == "__main__":
    main()
