"""A study as data: methods, seeds and analyses; and how to read what its runs have written."""

import contextlib
import csv
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, product
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from filelock import FileLock

from mlsh.errors import UserError
from mlsh.harness.jobs import CODE, Job, JobRunner
from mlsh.runs.files import make_folder, reading, writing
from mlsh.runs.metrics import read_metrics
from mlsh.runs.plots import curve, last_tenth


@dataclass
class Study:
    """The experiments of one page: training methods, seeds, and the analyses that make figures and tables.

    Each method trains with one of `learning_rates`: the one whose run on `selection_seed` ends best. The methods in
    `same_rate` share the rate that is best for all of them together.
    """

    name: str  # of its folder in runs/
    analyses: Sequence[Callable[["Study"], None]]  # see analyses.py
    methods: dict[str, str] = field(default_factory=dict)  # name -> command, up to the value of the learning rate
    learning_rates: Sequence[float] = ()
    same_rate: Sequence[str] = ()
    seeds: Sequence[int] = ()
    selection_seed: int = 0  # never reported
    horizon: int = 0  # env steps per episode
    best_return: float = math.nan  # best possible mean return, for tasks whose own best return is unknown
    return_scale: float = math.nan  # a return that misses the best one by this much counts as 0 %; default: the best

    def __post_init__(self) -> None:
        self.folder = self.figures = CODE / "runs" / self.name
        self.chosen_rate: dict[str, float] = {}  # method -> learning rate
        self.wandb = "disabled"

    def reproduce(
        self, figures: str = "", wandb: Literal["auto", "online", "offline", "disabled"] = "disabled"
    ) -> None:
        """Run the jobs that are not finished, then print all tables and draw all figures.

        Args:
            figures: Folder for the figures. Default: the folder of the runs.
            wandb: Log the jobs to wandb, as a group with the study's name.
        """
        begun = time.monotonic()
        self.figures, self.wandb = Path(figures or self.folder), wandb
        make_folder(self.folder)
        make_folder(self.figures)
        self._choose_learning_rates()
        for analysis in self.analyses:
            analysis(self)
        print(f"\n{self.name}: done in {(time.monotonic() - begun) / 60:.0f} minutes; finished runs were not repeated")

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        """Context in which to write figures. If several processes share the study, one of them writes at a time."""
        with FileLock(self.folder / "figures.lock"), writing(self.figures):
            yield

    def _choose_learning_rates(self) -> None:
        candidates = self.learning_rates if len(self.learning_rates) > 1 else ()
        trials = {
            (method, rate): self.training_jobs(method, [self.selection_seed], rate)
            for method, rate in product(self.methods, candidates)
        }
        self.run_jobs(*trials.values())
        ends = {trial: last_tenth(training_curve(self, job).returns).mean() for trial, (job,) in trials.items()}
        for method in self.methods:
            together = self.same_rate if method in self.same_rate else [method]
            self.chosen_rate[method] = max(
                self.learning_rates, key=lambda rate: sum(ends.get((m, rate), 0) for m in together)
            )

    @property
    def decimals(self) -> int:
        """Decimals of returns in tables: the best return gets three significant digits."""
        best = abs(self.best_return)
        return max(0, 2 - math.floor(math.log10(best))) if best > 0 else 1

    def fraction_of_best(self, returns: np.ndarray, best: np.ndarray | float = math.nan) -> np.ndarray:
        """Returns as fractions of the best possible ones; where `best` is NaN, `best_return` stands in for it.

        With `return_scale` it is 1 − (best − return) / return_scale, which also suits a best return near zero.
        """
        best = np.where(np.isnan(best), self.best_return, best)
        return 1 - (best - returns) / (best if math.isnan(self.return_scale) else self.return_scale)

    def training_jobs(self, method: str, seeds: Iterable[int], rate: float | None = None) -> list[Job]:
        """The jobs that train a method, with the learning rate `rate` or else the chosen one."""
        rate = rate or self.chosen_rate[method]
        return Job.for_seeds(f"{method}-{rate:g}".replace(" ", "-"), f"{self.methods[method]} {rate}", seeds)

    def evaluation_job(self, training: Job, name: str, flags: str) -> Job:
        """The job of evaluate.py on a training run; it writes to the folder `name` inside that run's folder."""
        run_folder = os.path.relpath(self.folder / training.name, CODE)
        return Job(f"{training.name}/{name}", f"evaluate.py {run_folder} {flags}")

    def run_jobs(self, *groups: Iterable[Job]) -> None:
        JobRunner(self.folder, self.wandb).run(chain(*groups))


class Setting(NamedTuple):
    """The two settings over which a way to adapt is tuned."""

    episodes: int  # per rollout
    learning_rate: float


def grid(episodes: Iterable[int], learning_rates: Iterable[float]) -> list[Setting]:
    return [Setting(*pair) for pair in product(episodes, learning_rates)]


class LearnerCurves(NamedTuple):
    """Learning curves of one way to adapt. The first task is the one on which the run's training ended worst."""

    env_steps: np.ndarray  # [n], on each task
    returns: np.ndarray  # [n, tasks, runs, learners]
    fractions: np.ndarray  # [n, tasks, runs, learners], of the best possible return


@dataclass
class AdaptationMethod:
    """A way to adapt to a task: the runs it starts from, and the settings to choose from.

    The chosen setting has the highest mean return over env steps, on runs and seeds that are not reported. With a
    `command` there is only one run, made for its settings (to learn from scratch), and each learner counts as a run.
    """

    source: str  # a method of the study, or with `command` the name of the run
    settings: Sequence[Setting]
    env_steps: int  # per task
    learners: int  # per task and run
    selection_learners: int  # per task and run, to choose the setting
    selection_seeds: Sequence[int] = ()  # of the runs to choose it on; default: the study's selection seed
    command: str = ""
    eval_episodes: int = 50

    def training_jobs(self, study: Study, selecting: bool = False) -> list[Job]:
        """The runs that learners start from: those for choosing the setting, or those that are reported."""
        if self.command:
            return [Job(self.source, self.command)]
        seeds = (self.selection_seeds or [study.selection_seed]) if selecting else study.seeds
        return study.training_jobs(self.source, seeds)

    def evaluation_jobs(
        self, study: Study, setting: Setting, tasks: str = "", selecting: bool = False
    ) -> Iterator[Job]:
        """The jobs that adapt with a setting, one per run; `tasks` are flags of evaluate.py that select tasks."""
        updates = self.env_steps // (setting.episodes * study.horizon)
        learners = self.selection_learners if selecting else self.learners
        for i, training in enumerate(self.training_jobs(study, selecting)):
            seed = study.selection_seed if selecting else i
            rate = f"{setting.learning_rate:g}"
            name = "-".join(["adapt", *tasks.replace("-", "").split(), str(setting.episodes), rate, str(seed)])
            flags = (
                f"-N {setting.episodes} --master_lr {rate} --master_minibatch 64 --updates {updates} "
                f"--seeds {learners} --seed {seed} --eval_episodes {self.eval_episodes} {tasks}"
            )
            yield study.evaluation_job(training, name, flags.strip())

    def read(self, study: Study, setting: Setting, tasks: str = "", selecting: bool = False) -> LearnerCurves:
        """What the jobs of `evaluation_jobs` have written."""
        returns, fractions = [], []
        results = [read_adaptation(study, job) for job in self.evaluation_jobs(study, setting, tasks, selecting)]
        for training, result in zip(self.training_jobs(study, selecting), results, strict=True):
            of_run = result.measures["return"]
            order = list(range(len(result.labels))) if self.command else worst_first(study, training, result.labels)
            returns.append(of_run[:, order])
            fractions.append(study.fraction_of_best(of_run, result.best[:, None])[:, order])
        if self.command:
            return LearnerCurves(results[0].env_steps, returns[0][..., None], fractions[0][..., None])
        return LearnerCurves(results[0].env_steps, np.stack(returns, 2), np.stack(fractions, 2))

    def best_setting(self, study: Study) -> Setting:
        """The setting with the highest mean return over env steps, on the runs for choosing it."""

        def area(setting: Setting) -> float:
            curves = self.read(study, setting, selecting=True)
            return np.trapezoid(curves.returns.mean((1, 2, 3)), curves.env_steps) / curves.env_steps[-1]

        return max(self.settings, key=area)


def worst_first(study: Study, training: Job, labels: Sequence[str]) -> list[int]:
    """The indices of tasks labelled "task 0 (orange)", those first on which the run's training ended worst."""
    trained = training_curve(study, training)
    ends = dict(zip(trained.tasks, last_tenth(trained.returns), strict=True))
    return sorted(range(len(labels)), key=lambda i: ends.get(labels[i].split()[1], 0))


class TrainingCurve(NamedTuple):
    """Returns over training."""

    env_steps: np.ndarray  # [n], millions, those learned from
    returns: np.ndarray  # [tasks, n]
    tasks: list[str | None]


def training_curve(study: Study, job: Job) -> TrainingCurve:
    """The returns of a run at the end of each outer iteration; for RL², in the last episode of a trial.

    If some outer iteration lacks a task, there is one row: the mean over tasks, under None. Raises a UserError if the
    run is of a version that did not count the env steps learned from.
    """
    rows = read_metrics(study.folder / job.name)
    if not all(row.get("train_env_steps") for row in rows):
        folder = study.folder / job.name
        raise UserError(f"{folder} was written by an older version, without train_env_steps; remove it")
    with reading(study.folder / job.name / "metrics.csv"):
        reward = ["joint_reward", *(name for name in rows[0] if name.startswith("episode_"))][-1]
        tasks = sorted({row["task"] for row in rows})
        (steps, mean), *curves = (curve(rows, task, reward, "train_env_steps") for task in (None, *tasks))
    if any(len(x) < len(steps) for x, _ in curves):
        return TrainingCurve(np.array(steps), np.array([mean]), [None])
    return TrainingCurve(np.array(steps), np.array([y for _, y in curves]), [*tasks])


class Adaptation(NamedTuple):
    """What an evaluation has measured."""

    env_steps: np.ndarray  # [n], on each task
    measures: dict[str, np.ndarray]  # "return" and "final_…" -> [n, tasks, learners]
    labels: list[str]  # [tasks]
    best: np.ndarray  # [tasks], the best possible return; NaN where it is unknown


def read_adaptation(study: Study, job: Job) -> Adaptation:
    """Read the adaptation.csv of an evaluation."""
    path = study.folder / job.name / "adaptation.csv"
    with reading(path):
        rows = [*csv.DictReader(path.read_text(encoding="utf-8").splitlines())]
        labels, seeds, updates = ([*dict.fromkeys(row[key] for row in rows)] for key in ("task", "seed", "update"))
        names = [name for name in rows[0] if name == "return" or name.startswith("final_")]
        values = np.array([[float(row[name] or "nan") for row in rows] for name in names])
        values = values.reshape(len(names), len(labels), len(updates), len(seeds)).swapaxes(1, 2)
        best = {row["task"]: float(row["best_return"] or "nan") for row in rows}
        env_steps = np.unique([float(row["env_steps"]) for row in rows])
    return Adaptation(env_steps, dict(zip(names, values, strict=True)), labels, np.array([*best.values()]))
