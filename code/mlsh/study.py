"""A study as data: its runs side by side and none twice, settings chosen on other seeds, tables and figures."""

import csv
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from tabulate import tabulate

from mlsh.errors import UserError
from mlsh.files import make_folder, writing
from mlsh.jobs import CODE, Job, Jobs
from mlsh.metrics import read_metrics
from mlsh.plots import curve, draw_bands, draw_map, interval, last_tenth, steps_until

SOLVED, PASSED, LEARNED, SEPARATED = 0.95, 0.97, 0.9, 0.685  # parts of the best possible return
ALL, WORST_TASK, BEST_TASK = slice(None), slice(0, 1), slice(-1, None)  # of tasks, ranked by the end of a run


@dataclass
class Study:
    """What a page says.

    A method takes of `rates` the one with which its run on `choosing_seed` ends best; those in `sharing` the one that
    is best for all of them together.
    """

    name: str
    best_return: float  # the best possible, more than 0
    horizon: int  # env steps an episode
    methods: dict[str, str]  # name -> command, up to the value of the learning rate
    rates: Sequence[float]
    sharing: Sequence[str]
    seeds: Sequence[int]
    choosing_seed: int  # reported nowhere
    parts: Sequence[Callable]  # those below, or others, with all arguments but the study

    def __post_init__(self):
        self.folder = self.figures = CODE / "runs" / self.name
        self.chosen = {}  # method -> learning rate

    def make(self, figures: str = ""):
        """Make all figures and tables, and the runs behind them that are not finished.

        Args:
            figures: Folder for the figures; default: that of the runs.
        """
        self.figures = Path(figures or self.folder)
        make_folder(self.folder)
        make_folder(self.figures)
        rates = self.rates if len(self.rates) > 1 else ()  # to choose from
        trials = {(m, rate): self.training(m, [self.choosing_seed], rate) for m in self.methods for rate in rates}
        self.run(*trials.values())
        ends = {trial: last_tenth(training_curve(self, job)[1]).mean() for trial, (job,) in trials.items()}
        for method in self.methods:
            together = self.sharing if method in self.sharing else [method]
            self.chosen[method] = max(self.rates, key=lambda rate: sum(ends.get((m, rate), 0) for m in together))
        for part in self.parts:
            part(self)

    def training(self, method, seeds, rate=None):
        """The jobs that train the method, with `rate` or else the chosen one."""
        rate = rate or self.chosen[method]
        return Job.seeded(f"{method}-{rate:g}".replace(" ", "-"), f"{self.methods[method]} {rate}", seeds)

    def evaluation(self, job, name, flags):
        """The job of evaluate.py on what `job` has trained, in the folder `name` within that run's."""
        return Job(f"{job.name}/{name}", f"evaluate.py {os.path.relpath(self.folder / job.name, CODE)} {flags}")

    def run(self, *groups):
        """Run what is not finished of groups of jobs."""
        Jobs(self.folder).run(chain(*groups))


@dataclass
class Way:
    """A way to learn one task anew, from the runs of `method`; of `grid` the setting with the largest area is chosen.

    With `command`, `method` is but the name of the one run that this makes, and its learners count as runs.
    """

    method: str
    grid: Sequence[tuple[int, float]]  # episodes a rollout, learning rate
    env_steps: int
    learners: tuple[int, int]  # a task and run: reported, and for choosing
    choosing_seeds: Sequence[int] = ()
    command: str = ""
    flags: str = "-N {episodes} --hlr {rate:g} --bs 64 --updates {updates} --seeds {learners} --seed {seed} --look 50"

    def training(self, study, choosing=False):
        seeds = self.choosing_seeds if choosing else study.seeds
        return [Job(self.method, self.command)] if self.command else study.training(self.method, seeds)

    def evaluations(self, study, setting, choosing=False):
        """The jobs that learn with a setting, one from each run."""
        (episodes, rate), learners = setting, self.learners[choosing]
        updates = self.env_steps // (episodes * study.horizon)
        for i, job in enumerate(self.training(study, choosing)):
            seed = study.choosing_seed if choosing else i
            flags = self.flags.format(episodes=episodes, rate=rate, updates=updates, learners=learners, seed=seed)
            yield study.evaluation(job, f"adapt-{episodes}-{rate:g}-{seed}", flags)

    def read(self, study, setting, choosing=False):
        """Env steps [n] and returns [n, tasks, runs, learners], the task first that the run's training did worst."""
        runs, jobs = [], self.evaluations(study, setting, choosing)
        for training, job in zip(self.training(study, choosing), jobs, strict=True):
            env_steps, returns, labels = read_adaptation(study, job)
            if self.command:
                return env_steps, returns[..., None]
            _, trained, tasks = training_curve(study, training)
            ends = dict(zip(tasks, last_tenth(trained), strict=True))
            order = sorted(range(len(labels)), key=lambda i: ends.get(labels[i].split()[1], 0))  # "task 0 (orange)"
            runs.append(returns[:, order])
        return env_steps, np.stack(runs, 2)

    def area(self, study, setting):
        """The mean return over env steps, of the evaluations for choosing."""
        env_steps, returns = self.read(study, setting, choosing=True)
        return np.trapezoid(returns.mean((1, 2, 3)), env_steps) / env_steps[-1]


def learning_curves(study, figure, panels, columns):
    """Figure and table: training over the distribution of tasks.

    `panels`, and `columns` of the table: title -> which tasks. The table counts who has learned those of the last one.
    """
    jobs = {method: study.training(method, study.seeds) for method in study.methods}
    study.run(*jobs.values())
    lines, rows, learned = {title: {} for title in panels}, [], LEARNED * study.best_return
    for method, runs in jobs.items():
        curves = [training_curve(study, job) for job in runs]
        steps, returns = curves[0][0], np.stack([y[last_tenth(y).argsort()] for _, y, _ in curves])  # [runs, tasks, n]
        for title, ranks in panels.items():
            lines[title][method] = steps, returns[:, ranks].mean(1).T
        ends = [last_tenth(returns[:, ranks].mean(1)) for ranks in columns.values()]  # [runs] each
        count = f"{(ends[-1] >= learned).sum()} of {len(runs)}"
        rows.append([method, f"{study.chosen[method]:g}", *map(with_interval, ends), count, f"{steps[-1]:.1f} M"])
    with writing(study.figures):
        draw_bands(study.figures / figure, lines, "million env steps")
    counted = f"{[*columns][-1].split()[0]} ≥ {learned:.1f}"  # "worse ≥ 39.4"
    print_table(["method", "learning rate", *columns, counted, "env steps"], rows)


def adaptation(study, figure, panels, ways, compared):
    """Figure and table: learning one task anew. `panels`: title -> which tasks; `ways`: label -> Way.

    The figure has each way's chosen setting, the table all learning rates with its rollout size. Curves and intervals
    are of runs, a run the mean of its learners. `compared`: a way, and another one's env steps in multiples of its.
    """
    study.run(*(way.training(study, choosing) for way in ways.values() for choosing in (True, False)))
    study.run(*(way.evaluations(study, x, choosing=True) for way in ways.values() for x in way.grid))
    best = {label: max(way.grid, key=lambda x: way.area(study, x)) for label, way in ways.items()}
    shown = [(label, x) for label, way in ways.items() for x in way.grid if x[0] == best[label][0]]
    study.run(*(ways[label].evaluations(study, x) for label, x in shown))
    lines, rows, needed = {title: {} for title in panels}, [], {}
    solved, learned = SOLVED * study.best_return, LEARNED * study.best_return
    for label, setting in shown:
        env_steps, returns = ways[label].read(study, setting)
        name = "{} episodes, {:g}".format(*setting) + " (chosen)" * (setting == best[label])
        for title, ranks in panels.items():
            of_runs = returns[:, ranks].mean((1, 3))  # [n, runs]
            of_learners = returns[:, ranks].reshape(len(returns), -1).T  # [all learners, n]
            if setting == best[label]:
                lines[title][label] = env_steps, of_runs
            steps = np.array([steps_until(solved, env_steps, y) for y in of_learners])
            counts = [f"{x.sum()} of {len(x)}" for x in (steps < np.inf, last_tenth(of_learners) >= learned)]
            ends = map(with_interval, (of_runs[0], last_tenth(of_runs.T)))
            rows.append([label, name, title, spread(steps), *counts, *ends])
            needed[label, setting, title] = np.median(steps)
    with writing(study.figures):
        draw_bands(study.figures / figure, lines, "env steps on the task", symlog=2 * study.horizon)
    header = ["method", "setting", "", f"env steps to {solved:.1f}", "reached by", f"≥ {learned:.1f} in the end"]
    print_table([*header, "before", "in the end"], rows)
    for (label, setting, title), few in needed.items():
        if label == compared[0] and 0 < few < np.inf:
            many = needed[compared[1], best[compared[1]], title]
            print(f"{label}, {setting[1]:g}, {title}: {many / few:.1f} times fewer env steps than {compared[1]}")


def final_tests(study, name, command, seeds, task="task"):
    """Table: the returns of the runs `name`-seed in their final tests, where a task is called `task`."""
    jobs, rows = Job.seeded(name, command, seeds), []
    study.run(jobs)
    for seed, job in zip(seeds, jobs, strict=True):
        results = json.loads((study.folder / job.name / "results.json").read_text())
        returns = [row["return"] for row in results["test"]]
        rows.append([seed, *(f"{x:.1f}" for x in (*returns, min(returns))), f"{results['env_steps'] / 1e6:.1f} M"])
    print_table(["seed", *(f"{task} {i}" for i in range(len(returns))), "worst", "env steps"], rows)


def sweep(study, figure, name, method, cells, seeds, title, labels):
    """Figure and table: the return on the worst task, the mean of its learners, over a grid of two settings.

    `cells`: (row, column) -> command of a run, up to the learning rate, which is that of `method`, and flags of
    evaluate.py. `labels`: of the rows, of the columns, and of a column in the table.
    """
    runs = {x: Job.seeded(f"{name}-{x[0]}-{x[1]}", f"{c} {study.chosen[method]}", seeds) for x, (c, _) in cells.items()}
    study.run(*runs.values())
    jobs = {x: [study.evaluation(job, "adapt", flags) for job in runs[x]] for x, (_, flags) in cells.items()}
    study.run(*jobs.values())
    worst = {x: [read_adaptation(study, job)[1][-1].mean(1).min() for job in jobs[x]] for x in cells}
    rows, columns = ([*dict.fromkeys(x[axis] for x in cells)] for axis in (0, 1))
    mean = np.array([[np.mean(worst[row, column]) for column in columns] for row in rows])
    with writing(study.figures):
        draw_map(study.figures / figure, mean, rows, columns, study.best_return, labels[1], labels[0], title)
    shown = [[row, *(" / ".join(f"{x:.1f}" for x in worst[row, column]) for column in columns)] for row in rows]
    print_table([labels[0], *(f"{labels[2]} {column}" for column in columns)], shown)


def training_curve(study, job):
    """Env steps learned from (millions) [n], returns [tasks, n] at the end of each outer iteration, and the tasks.

    Of RL², in the last episode of a trial. Where an outer iteration has not every task, the mean is the only row.
    """
    rows = read_metrics(study.folder / job.name)
    if not all(row.get("train_env_steps") for row in rows):
        raise UserError(f"{study.folder / job.name} is of an older version, without train_env_steps; remove it")
    reward = ["joint_reward", *(name for name in rows[0] if name.startswith("episode_"))][-1]
    tasks = sorted({row["task"] for row in rows})
    (steps, mean), *curves = (curve(rows, task, reward, "train_env_steps") for task in (None, *tasks))
    if any(len(x) < len(steps) for x, _ in curves):
        return np.array(steps), np.array([mean]), [None]
    return np.array(steps), np.array([y for _, y in curves]), tasks


def read_adaptation(study, job):
    """Env steps [n], returns [n, tasks, seeds] and the tasks' labels of an evaluation."""
    rows = [*csv.DictReader((study.folder / job.name / "adaptation.csv").read_text().splitlines())]
    labels, seeds, updates = ([*dict.fromkeys(row[key] for row in rows)] for key in ("task", "seed", "update"))
    returns = np.array([float(row["return"]) for row in rows]).reshape(len(labels), len(updates), len(seeds))
    return np.unique([float(row["env_steps"]) for row in rows]), returns.swapaxes(0, 1), labels


def with_interval(values):
    """Mean of values [runs], and the ends of its interval."""
    return "{:,.1f} ({:,.1f} to {:,.1f})".format(*(float(x) for x in interval(np.asarray(values))))


def spread(values):
    """Median, lowest and highest; what never happened is more than anything."""
    shown = [f"{x:,.0f}" if np.isfinite(x) else "never" for x in (np.median(values), min(values), max(values))]
    return "{} ({} to {})".format(*shown)


def print_table(header, rows):
    print("\n" + tabulate(rows, header, "github", disable_numparse=True))
