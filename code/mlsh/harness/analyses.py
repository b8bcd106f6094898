"""The analyses of a study: figures and tables of training, adaptation, final tests, and sweeps of two settings.

A learner is what adapts to a task in evaluate.py: a new master, or a policy that is fine-tuned or starts from scratch.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tabulate import tabulate

from mlsh.envs import best_return
from mlsh.harness.finished import read_results
from mlsh.harness.jobs import Job
from mlsh.harness.study import AdaptationMethod, Setting, Study, read_adaptation, training_curve
from mlsh.runs.plots import draw_bands, draw_map, interval, last_tenth, steps_to_level

SOLVED, PASSED, LEARNED, SEPARATED = 0.95, 0.97, 0.9, 0.685  # fractions of the best possible return
ALL, WORST_TASK, BEST_TASK = slice(None), slice(0, 1), slice(-1, None)  # of tasks, sorted by return after training

Lines = dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]  # panel -> label -> x [n], y [n, runs]


class TaskSelection(NamedTuple):
    """The tasks that a panel of `compare_adaptation` is about."""

    ranks: slice = ALL  # among the selected tasks, sorted by return after training
    flags: str = ""  # of evaluate.py, to select tasks


class FixedAdaptation(NamedTuple):
    """Runs, and evaluations of each of them with settings that are not tuned."""

    command: str  # of the runs
    seeds: Sequence[int]  # of the runs; the evaluations of a run have its seed
    evaluations: Sequence[str]  # flags of evaluate.py


class SweepCell(NamedTuple):
    """One cell of `sweep_two_settings`: which runs, and how they are evaluated."""

    evaluation: str  # flags of evaluate.py
    method: str = ""  # of the study, whose own runs these are; or else
    command: str = ""  # of the runs, up to the value of the learning rate


def compare_training(study: Study, figure: str, panels: Mapping[str, slice], columns: Mapping[str, slice]) -> None:
    """Figure and table of training with all methods of the study.

    `panels` of the figure and `columns` of the table map a title to the tasks over which returns are averaged. The
    table also counts the runs that have learned the tasks of its last column.
    """
    jobs = {method: study.training_jobs(method, study.seeds) for method in study.methods}
    study.run_jobs(*jobs.values())
    lines: Lines = {title: {} for title in panels}
    rows = []
    for method, runs in jobs.items():
        curves = [training_curve(study, job) for job in runs]
        steps = curves[0].env_steps
        returns = np.stack([x.returns[last_tenth(x.returns).argsort()] for x in curves])  # [runs, tasks, n]
        for title, ranks in panels.items():
            lines[title][method] = steps, returns[:, ranks].mean(1).T
        ends = [last_tenth(returns[:, ranks].mean(1)) for ranks in columns.values()]  # [runs] each
        learned = study.fraction_of_best(ends[-1]) >= LEARNED
        cells = [mean_with_interval(x, study.decimals) for x in ends]
        counted = f"{learned.sum()} of {len(runs)}"
        rows.append([method, f"{study.chosen_rate[method]:g}", *cells, counted, f"{steps[-1]:.1f} M"])
    with study.drawing():
        draw_bands(study.figures / figure, lines, "million env steps")
    learned_title = f"runs with {[*columns][-1]} ≥ {LEARNED:.0%} of the best"
    print_table(["method", "learning rate", *columns, learned_title, "env steps"], rows)


def compare_adaptation(
    study: Study,
    figure: str,
    panels: Mapping[str, TaskSelection],
    methods: Mapping[str, AdaptationMethod],
    compared: tuple[str, str],
    chosen_only: bool = False,
) -> None:
    """Figure and table of how fast learners adapt to a single task.

    Settings are chosen on the tasks of training. The figure shows each method with its chosen setting; the table adds
    the other learning rates for the same rollout size, unless `chosen_only`. Curves and intervals are over runs, where
    a run is the mean of its learners; counts are over learners, each relative to the best return of its own task.
    Below the table stand the env steps of the first of the two `compared` methods, and how many times as many the
    second one needs.
    """
    study.run_jobs(*(m.training_jobs(study, selecting) for m in methods.values() for selecting in (True, False)))
    study.run_jobs(*(m.evaluation_jobs(study, x, selecting=True) for m in methods.values() for x in m.settings))
    best = {label: method.best_setting(study) for label, method in methods.items()}
    shown = [
        (label, x)
        for label, method in methods.items()
        for x in method.settings
        if (x == best[label] if chosen_only else x.episodes == best[label].episodes)
    ]
    task_flags = dict.fromkeys(panel.flags for panel in panels.values())
    study.run_jobs(*(methods[label].evaluation_jobs(study, x, flags) for label, x in shown for flags in task_flags))
    lines: Lines = {title: {} for title in panels}
    rows: list[list[str]] = []
    median_steps: dict[tuple[str, Setting, str], float] = {}
    for label, setting in shown:
        curves = {flags: methods[label].read(study, setting, flags) for flags in task_flags}
        chosen = setting == best[label]
        name = f"{setting.episodes}, {setting.learning_rate:g}{' (chosen)' if chosen else ''}"
        for title, (ranks, flags) in panels.items():
            env_steps, fractions = curves[flags].env_steps, curves[flags].fractions[:, ranks]
            of_runs = curves[flags].returns[:, ranks].mean((1, 3))  # [n, runs]
            of_learners = fractions.reshape(len(fractions), -1).T  # [all learners, n]
            if chosen:
                lines[title][label] = env_steps, of_runs
            steps = np.array([steps_to_level(SOLVED, env_steps, y) for y in of_learners])
            counts = [f"{x.sum()} of {len(x)}" for x in (steps < np.inf, last_tenth(of_learners) >= LEARNED)]
            ends = [mean_with_interval(x, study.decimals) for x in (of_runs[0], last_tenth(of_runs.T))]
            fraction = f"{last_tenth(of_learners).mean():.0%}"
            rows.append([label, name, title, median_and_range(steps), *counts, *ends, fraction])
            median_steps[label, setting, title] = float(np.median(steps))
    with study.drawing():
        draw_bands(study.figures / figure, lines, "env steps on the task", symlog=2 * study.horizon)
    steps_title = f"env steps to {SOLVED:.0%} of the best: median (lowest to highest)"
    counts_titles = [f"learners that reach {SOLVED:.0%}", f"learners that end at ≥ {LEARNED:.0%}"]
    ends_titles = ["return before", "return at the end", "fraction of the best"]
    setting_title = "episodes per rollout, learning rate"
    print_table(["method", setting_title, "tasks", steps_title, *counts_titles, *ends_titles], rows)
    first, second = compared
    for (label, setting, title), few in median_steps.items():
        if label == first and 0 < few < np.inf:
            many = median_steps[second, best[second], title]
            times = f"needs {many / few:.1f} times as many" if many < np.inf else "never gets there"
            rate = f"learning rate {setting.learning_rate:g}"
            print(f"{title}: {label}, {rate}, needs {few:,.0f} env steps at the median; {second} {times}")


def tabulate_adaptation(study: Study, runs: Mapping[str, FixedAdaptation], figure: str = "") -> None:
    """Table, and with `figure` a figure, of adaptation with fixed settings.

    The table has one row per task: the mean, lowest and highest value over all learners of each measure at the end.
    """
    jobs = {label: Job.for_seeds(label.replace(" ", "-"), x.command, x.seeds) for label, x in runs.items()}
    study.run_jobs(*jobs.values())
    evaluations = {
        (label, i): [
            study.evaluation_job(job, f"adapt-{i}", f"{flags} --seed {seed}")
            for seed, job in zip(x.seeds, jobs[label], strict=True)
        ]
        for label, x in runs.items()
        for i, flags in enumerate(x.evaluations)
    }
    study.run_jobs(*evaluations.values())
    lines: Lines = defaultdict(dict)
    rows = []
    for (label, _), of_seeds in evaluations.items():
        results = [read_adaptation(study, job) for job in of_seeds]
        env_steps = results[0].env_steps
        for j, task in enumerate(results[0].labels):
            learners = {
                name: np.concatenate([x.measures[name][:, j] for x in results], 1) for name in results[0].measures
            }
            lines[task][label] = env_steps, learners["return"]
            ends = {name.removeprefix("final_"): x[-1] for name, x in learners.items()}
            cells = [f"{name} {x.mean():.4g} ({x.min():.4g} to {x.max():.4g})" for name, x in ends.items()]
            rows.append([label, task, len(ends["return"]), f"{env_steps[-1]:,.0f}", "; ".join(cells)])
    if figure:
        with study.drawing():
            draw_bands(study.figures / figure, lines, "env steps on the task", symlog=2 * study.horizon)
    print_table(["runs", "task", "learners", "env steps", "at the end: mean (lowest to highest)"], rows)


def tabulate_final_tests(study: Study, commands: Mapping[str, str], seeds: Sequence[int]) -> None:
    """Table of the returns in the final tests of runs: those of `commands` (name -> command) with each of `seeds`.

    Where the best possible returns are known, their mean stands beside; where they are positive, also the lowest
    fraction of it that a task reaches.
    """
    study.run_jobs(job for name, command in commands.items() for job in Job.for_seeds(name, command, seeds))
    rows = []
    for name, seed in ((name, seed) for name in commands for seed in seeds):
        results = read_results(study.folder / f"{name}-{seed}")
        best_of_env = best_return(results["env"]) or np.nan
        returns = [row["return"] for row in results["test"]]
        best = [row.get("best_return", best_of_env) for row in results["test"]]
        values = [min(returns), np.mean(returns), np.mean(best)]
        cells = ["" if np.isnan(x) else f"{x:.4g}" for x in values]
        fraction = f"{100 * min(np.divide(returns, best)):.1f} %" if min(best) > 0 else ""
        rows.append([name, seed, *cells, fraction, f"{results['env_steps'] / 1e6:.1f} M", f"{results['seconds']:.0f}"])
    returns_of = ["return on the worst task", "mean return", "best possible return", "lowest fraction of the best"]
    print_table(["runs", "seed", *returns_of, "env steps", "seconds"], rows)


def sweep_two_settings(
    study: Study,
    figure: str,
    name: str,
    title: str,
    cells: Mapping[tuple[Any, Any], SweepCell],
    rate_of: str,
    seeds: Sequence[int],
    row_label: str,
    column_label: str,
    column_prefix: str,
    over_tasks: Callable[[np.ndarray], float] = np.min,
) -> None:
    """Figure and table over two settings: percent of the best return at the end of adaptation.

    `cells` maps (row, column) to the runs of that cell. Their learning rate is the one chosen for the method `rate_of`.
    `name` begins the names of their folders. A cell shows the mean over runs; a run counts with the mean over its
    learners on its worst task, or with what `over_tasks` makes of the fractions [tasks].
    """

    def runs_of(position: tuple[Any, Any], cell: SweepCell) -> list[Job]:
        if cell.method:
            return study.training_jobs(cell.method, seeds)
        folder = f"{name}-{position[0]}-{position[1]}".replace(" ", "-")
        return Job.for_seeds(folder, f"{cell.command} {study.chosen_rate[rate_of]}", seeds)

    runs = {position: runs_of(position, cell) for position, cell in cells.items()}
    study.run_jobs(*runs.values())
    jobs = {x: [study.evaluation_job(job, name, cell.evaluation) for job in runs[x]] for x, cell in cells.items()}
    study.run_jobs(*jobs.values())
    percent = {x: [100 * over_tasks(final_fractions(study, job)) for job in jobs[x]] for x in cells}
    rows, columns = ([*dict.fromkeys(x[axis] for x in cells)] for axis in (0, 1))
    mean = np.array([[np.mean(percent[row, column]) for column in columns] for row in rows])
    with study.drawing():
        draw_map(study.figures / figure, mean, rows, columns, column_label, row_label, title)
    table = [[row, *(" / ".join(f"{x:.0f}" for x in percent[row, column]) for column in columns)] for row in rows]
    print_table([row_label, *(f"{column_prefix} {column}" for column in columns)], table)


def final_fractions(study: Study, job: Job) -> np.ndarray:
    """The fraction of the best possible return with which an evaluation ends on each task, [tasks]."""
    result = read_adaptation(study, job)
    return study.fraction_of_best(result.measures["return"][-1].mean(1), result.best)


def mean_with_interval(values: np.ndarray, decimals: int) -> str:
    """The mean of values [runs], and the ends of its 95 % interval."""
    mean, low, high = (f"{float(x):,.{decimals}f}" for x in interval(np.asarray(values)))
    return f"{mean} ({low} to {high})"


def median_and_range(values: np.ndarray) -> str:
    """Median, lowest and highest value; infinity is "never"."""
    median, low, high = (
        f"{x:,.0f}" if np.isfinite(x) else "never" for x in (np.median(values), min(values), max(values))
    )
    return f"{median} ({low} to {high})"


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    print("\n" + tabulate(rows, header, "github", disable_numparse=True))
