"""A study as data: its runs side by side and none twice, settings chosen on other seeds, and what they have written."""

import csv
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from mlsh.errors import UserError
from mlsh.harness.jobs import CODE, Job, Jobs
from mlsh.runs.files import make_folder
from mlsh.runs.metrics import read_metrics
from mlsh.runs.plots import curve, last_tenth


@dataclass
class Study:
    """What a page says.

    A method takes of `rates` the one with which its run on `choosing_seed` ends best; those in `sharing` the one that
    is best for all of them together.
    """

    name: str
    parts: Sequence[Callable]  # of `study_parts`, or others, with all arguments but the study
    best_return: float = math.nan  # the best possible of all tasks, where that of each is not known
    unit: float = math.nan  # by which what is missing to the best is measured; the best itself, if there is none
    horizon: int = 0  # env steps an episode
    methods: dict[str, str] = field(default_factory=dict)  # name -> command, up to the value of the learning rate
    rates: Sequence[float] = ()
    sharing: Sequence[str] = ()
    seeds: Sequence[int] = ()
    choosing_seed: int = 0  # reported nowhere

    def __post_init__(self):
        self.folder = self.figures = CODE / "runs" / self.name
        self.chosen = {}  # method -> learning rate

    def make(self, figures: str = ""):
        """Make all figures and tables, and the runs behind them that are not finished.

        Args:
            figures: Folder for the figures; default: that of the runs.
        """
        begun = time.monotonic()
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
        print(f"\n{self.name}: {(time.monotonic() - begun) / 60:.0f} minutes, without what was there already")

    @property
    def decimals(self):
        """Of returns, in tables: three figures of what is possible."""
        best = abs(self.best_return)
        return max(0, 2 - math.floor(math.log10(best))) if best > 0 else 1

    def part(self, returns, best):
        """What part of the best possible return these are: 1 − what is missing ÷ unit. NaN in `best`: the study's."""
        best = np.where(np.isnan(best), self.best_return, best)
        return 1 - (best - returns) / (best if math.isnan(self.unit) else self.unit)

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
    flags: str = "-N {episodes} --master_lr {rate:g} --master_minibatch 64 --updates {updates} --seeds {learners} --seed {seed} --eval_episodes 50"

    def training(self, study, choosing=False):
        seeds = self.choosing_seeds if choosing else study.seeds
        return [Job(self.method, self.command)] if self.command else study.training(self.method, seeds)

    def evaluations(self, study, setting, tasks="", choosing=False):
        """The jobs that learn with a setting, one from each run; `tasks`: more flags, that say which are learned."""
        (episodes, rate), learners = setting, self.learners[choosing]
        updates = self.env_steps // (episodes * study.horizon)
        for i, job in enumerate(self.training(study, choosing)):
            seed = study.choosing_seed if choosing else i
            flags = self.flags.format(episodes=episodes, rate=rate, updates=updates, learners=learners, seed=seed)
            name = "-".join(["adapt", *tasks.replace("-", "").split(), str(episodes), f"{rate:g}", str(seed)])
            yield study.evaluation(job, name, f"{flags} {tasks}".strip())

    def read(self, study, setting, tasks="", choosing=False):
        """Env steps [n], returns [n, tasks, runs, learners], and what part they are of the best possible.

        The first task is that which the run's training did worst.
        """
        runs, jobs = [], self.evaluations(study, setting, tasks, choosing)
        for training, job in zip(self.training(study, choosing), jobs, strict=True):
            env_steps, measured, labels, best = read_adaptation(study, job)
            returns = measured["return"]
            if self.command:
                return env_steps, returns[..., None], study.part(returns, best[:, None])[..., None]
            _, trained, of_training = training_curve(study, training)
            ends = dict(zip(of_training, last_tenth(trained), strict=True))
            order = sorted(range(len(labels)), key=lambda i: ends.get(labels[i].split()[1], 0))  # "task 0 (orange)"
            runs.append((returns[:, order], study.part(returns, best[:, None])[:, order]))
        return env_steps, *(np.stack(x, 2) for x in zip(*runs, strict=True))

    def area(self, study, setting):
        """The mean return over env steps, of the evaluations for choosing."""
        env_steps, returns, _ = self.read(study, setting, choosing=True)
        return np.trapezoid(returns.mean((1, 2, 3)), env_steps) / env_steps[-1]


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
    """Of an evaluation: env steps [n], measures [n, tasks, seeds] by name, labels of the tasks, their best or NaN."""
    rows = [*csv.DictReader((study.folder / job.name / "adaptation.csv").read_text().splitlines())]
    labels, seeds, updates = ([*dict.fromkeys(row[key] for row in rows)] for key in ("task", "seed", "update"))
    names = [name for name in rows[0] if name == "return" or name.startswith("final_")]
    measured = np.array([[float(row[name] or "nan") for row in rows] for name in names])
    measured = measured.reshape(len(names), len(labels), len(updates), len(seeds)).swapaxes(1, 2)
    best = {row["task"]: float(row["best_return"] or "nan") for row in rows}
    env_steps = np.unique([float(row["env_steps"]) for row in rows])
    return env_steps, dict(zip(names, measured, strict=True)), labels, np.array([*best.values()])
