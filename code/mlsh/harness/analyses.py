"""What a study may consist of: figures and tables of training, of learning a task anew, of final tests, of a sweep."""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tabulate import tabulate

from mlsh.envs import best_return
from mlsh.harness.jobs import Job
from mlsh.harness.study import read_adaptation, training_curve
from mlsh.runs.files import writing
from mlsh.runs.plots import draw_bands, draw_map, interval, last_tenth, steps_to_level

SOLVED, PASSED, LEARNED, SEPARATED = 0.95, 0.97, 0.9, 0.685  # parts of the best possible return
ALL, WORST_TASK, BEST_TASK = slice(None), slice(0, 1), slice(-1, None)  # of tasks, ranked by the end of a run


class Panel(NamedTuple):
    """What one of the panels of `adaptation` is of."""

    ranks: slice = ALL  # of tasks, the one first that the run's training did worst
    tasks: str = ""  # flags of evaluate.py that say which these are


def learning_curves(study, figure, panels, columns):
    """Figure and table: training over the distribution of tasks.

    `panels`, and `columns` of the table: title -> which tasks. The table counts who has learned those of the last one.
    """
    jobs = {method: study.training(method, study.seeds) for method in study.methods}
    study.run(*jobs.values())
    lines, rows = {title: {} for title in panels}, []
    for method, runs in jobs.items():
        curves = [training_curve(study, job) for job in runs]
        steps, returns = curves[0][0], np.stack([y[last_tenth(y).argsort()] for _, y, _ in curves])  # [runs, tasks, n]
        for title, ranks in panels.items():
            lines[title][method] = steps, returns[:, ranks].mean(1).T
        ends = [last_tenth(returns[:, ranks].mean(1)) for ranks in columns.values()]  # [runs] each
        learned = study.part(ends[-1], np.nan) >= LEARNED
        shown = [with_interval(x, study.decimals) for x in ends]
        counted = f"{learned.sum()} of {len(runs)}"
        rows.append([method, f"{study.chosen[method]:g}", *shown, counted, f"{steps[-1]:.1f} M"])
    with writing(study.figures):
        draw_bands(study.figures / figure, lines, "million env steps")
    last = f"{[*columns][-1]} ≥ {LEARNED:.0%}"  # "worse task ≥ 90%"
    print_table(["method", "learning rate", *columns, last, "env steps"], rows)


def adaptation(study, figure, panels, ways, compared, chosen_only=False):
    """Figure and table: learning one task anew. `panels`: title -> Panel; `ways`: label -> Way.

    The figure has each way's chosen setting, and so has the table if `chosen_only`, else all learning rates with its
    rollout size. What is chosen is best on all tasks of training. Curves and intervals are of runs, a run the mean of
    its learners; counted are learners, each by the best of its own task. `compared`: a way, and another one's env steps
    in multiples of its.
    """
    study.run(*(way.training(study, choosing) for way in ways.values() for choosing in (True, False)))
    study.run(*(way.evaluations(study, x, choosing=True) for way in ways.values() for x in way.grid))
    best = {label: max(way.grid, key=lambda x: way.area(study, x)) for label, way in ways.items()}
    shown = [
        (label, x)
        for label, way in ways.items()
        for x in way.grid
        if (x == best[label] if chosen_only else x[0] == best[label][0])
    ]
    kinds = dict.fromkeys(panel.tasks for panel in panels.values())
    study.run(*(ways[label].evaluations(study, x, tasks) for label, x in shown for tasks in kinds))
    lines, rows, needed = {title: {} for title in panels}, [], {}
    for label, setting in shown:
        read = {tasks: ways[label].read(study, setting, tasks) for tasks in kinds}
        name = "{} episodes, {:g}".format(*setting) + " (chosen)" * (setting == best[label])
        for title, (ranks, tasks) in panels.items():
            env_steps, *both = read[tasks]
            returns, parts = (x[:, ranks] for x in both)
            of_runs = returns.mean((1, 3))  # [n, runs]
            of_learners = parts.reshape(len(parts), -1).T  # [all learners, n]
            if setting == best[label]:
                lines[title][label] = env_steps, of_runs
            steps = np.array([steps_to_level(SOLVED, env_steps, y) for y in of_learners])
            counts = [f"{x.sum()} of {len(x)}" for x in (steps < np.inf, last_tenth(of_learners) >= LEARNED)]
            ends = [with_interval(x, study.decimals) for x in (of_runs[0], last_tenth(of_runs.T))]
            in_the_end = f"{last_tenth(of_learners).mean():.0%}"
            rows.append([label, name, title, spread(steps), *counts, *ends, in_the_end])
            needed[label, setting, title] = np.median(steps)
    with writing(study.figures):
        draw_bands(study.figures / figure, lines, "env steps on the task", symlog=2 * study.horizon)
    header = [f"env steps to {SOLVED:.0%} of the best", "reached by", f"≥ {LEARNED:.0%} in the end", "before"]
    print_table(["method", "setting", "", *header, "in the end", "of the best"], rows)
    for (label, setting, title), few in needed.items():
        if label == compared[0] and 0 < few < np.inf:
            many = needed[compared[1], best[compared[1]], title]
            print(
                f"{title}, median: {label}, {setting[1]:g}, {few:,.0f} env steps; {compared[1]} {many / few:.1f} times"
            )


class Learner(NamedTuple):
    """Who learns in `learned_anew`."""

    command: str  # of a run
    seeds: Sequence[int]  # of the runs, and of the evaluation of each
    flags: Sequence[str]  # of evaluate.py, which may be more than one


def learned_anew(study, learners, figure=""):
    """Table, and maybe figure: learning each task anew where there is nothing to choose. `learners`: label -> Learner.

    In the table a row a task: the mean over all learners of each measure, in the end, and the least and most.
    """
    jobs = {label: Job.seeded(label.replace(" ", "-"), x.command, x.seeds) for label, x in learners.items()}
    study.run(*jobs.values())
    of = {
        (label, i): [
            study.evaluation(job, f"anew-{i}", f"{flags} --seed {seed}")
            for seed, job in zip(x.seeds, jobs[label], strict=True)
        ]
        for label, x in learners.items()
        for i, flags in enumerate(x.flags)
    }
    study.run(*of.values())
    lines, rows = defaultdict(dict), []
    for (label, _), evaluations in of.items():
        steps, measures, labels, _ = zip(*(read_adaptation(study, job) for job in evaluations), strict=True)
        for j, task in enumerate(labels[0]):
            each = {name: np.concatenate([x[name][:, j] for x in measures], 1) for name in measures[0]}
            lines[task][label] = steps[0], each["return"]
            lasts = {name.removeprefix("final_"): x[-1] for name, x in each.items()}
            ends = [f"{name} {x.mean():.4g} ({x.min():.4g} to {x.max():.4g})" for name, x in lasts.items()]
            rows.append([label, task, len(lasts["return"]), f"{steps[0][-1]:,.0f}", "; ".join(ends)])
    if figure:
        with writing(study.figures):
            draw_bands(study.figures / figure, lines, "env steps on the task", symlog=2 * study.horizon)
    print_table(["", "task", "learners", "env steps", "in the end"], rows)


def final_tests(study, commands, seeds):
    """Table: returns in the final tests of runs, those of `commands` (name -> command of a run) with each of `seeds`.

    Beside them the mean of the best that is possible, where it is known, and the least part of it that a task has,
    where it is more than 0.
    """
    runs, rows = [(name, seed) for name in commands for seed in seeds], []
    study.run(job for name, command in commands.items() for job in Job.seeded(name, command, seeds))
    for name, seed in runs:
        results = json.loads((study.folder / f"{name}-{seed}" / "results.json").read_text())
        known = best_return(results["env"]) or np.nan
        returns = [row["return"] for row in results["test"]]
        best = [row.get("best_return", known) for row in results["test"]]
        shown = [min(returns), np.mean(returns), np.mean(best)]
        part = f"{100 * min(np.divide(returns, best)):.1f} %" if min(best) > 0 else ""
        counted = f"{results['env_steps'] / 1e6:.1f} M", f"{results['seconds']:.0f}"
        rows.append([name, seed, *("" if np.isnan(x) else f"{x:.4g}" for x in shown), part, *counted])
    columns = ("worst task", "mean", "best possible", "least part of it", "env steps", "seconds")
    print_table(["runs", "seed", *columns], rows)


def sweep(study, figure, name, method, cells, seeds, title, labels, of=np.min):
    """Figure and table: percent of the best return on the worst task, the mean of its learners, over two settings.

    `cells`: (row, column) -> command of a run, up to the learning rate, which is that of `method`, or the name of a
    method, whose own runs these are; and flags of evaluate.py. `labels`: of the rows, of the columns, and of a
    column in the table. `of`: np.mean for that of all tasks.
    """

    def runs_of(cell, what):
        if what in study.methods:
            return study.training(what, seeds)
        return Job.seeded(f"{name}-{cell[0]}-{cell[1]}".replace(" ", "-"), f"{what} {study.chosen[method]}", seeds)

    runs = {x: runs_of(x, what) for x, (what, _) in cells.items()}
    study.run(*runs.values())
    jobs = {x: [study.evaluation(job, name, flags) for job in runs[x]] for x, (_, flags) in cells.items()}
    study.run(*jobs.values())
    percent = {x: [100 * of(last_part(study, job)) for job in jobs[x]] for x in cells}
    rows, columns = ([*dict.fromkeys(x[axis] for x in cells)] for axis in (0, 1))
    mean = np.array([[np.mean(percent[row, column]) for column in columns] for row in rows])
    with writing(study.figures):
        draw_map(study.figures / figure, mean, rows, columns, labels[1], labels[0], title)
    shown = [[row, *(" / ".join(f"{x:.0f}" for x in percent[row, column]) for column in columns)] for row in rows]
    print_table([labels[0], *(f"{labels[2]} {column}" for column in columns)], shown)


def last_part(study, job):
    """What part of the best possible return an evaluation ends with [tasks]."""
    _, measured, _, best = read_adaptation(study, job)
    return study.part(measured["return"][-1].mean(1), best)


def with_interval(values, decimals):
    """Mean of values [runs], and the ends of its interval."""
    return "{} ({} to {})".format(*(f"{float(x):,.{decimals}f}" for x in interval(np.asarray(values))))


def spread(values):
    """Median, lowest and highest; what never happened is more than anything."""
    shown = [f"{x:,.0f}" if np.isfinite(x) else "never" for x in (np.median(values), min(values), max(values))]
    return "{} ({} to {})".format(*shown)


def print_table(header, rows):
    print("\n" + tabulate(rows, header, "github", disable_numparse=True))
