"""What a run reports: metrics.csv, curves.png, results.json, the progress bar, and values for wandb and TensorBoard."""

import contextlib
import json
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from mlsh import compiled, parallel
from mlsh.config import Config
from mlsh.errors import UserError
from mlsh.outcome import USED, Outcome, concatenate_groups, information, most_information
from mlsh.progress import progress_bar
from mlsh.runs.files import write_whole, writing
from mlsh.runs.metrics import MetricsFile, Row, highest_mean, means_of, read_metrics
from mlsh.runs.run import Run, SettingsType


class Moment(NamedTuple):
    """A moment of an outer iteration at which evaluation episodes are played."""

    key: str  # in the names of films, as in the earlier port
    column: str  # of metrics.csv, with the mean return


MOMENTS = {
    "untrained": Moment("pretrain", "pretrain_reward"),  # before the warm-up period
    "trained": Moment("warmup", "trained_reward"),  # after it
    "joint": Moment("afterjoint", "joint_reward"),  # after the joint period
}
LOSSES = ("policy_loss", "value_loss", "kl", "clip_fraction", "entropy", "explained_variance")


def has_curves(task: object) -> bool:
    """Return whether a task has curves of its own on wandb: tasks 0 to 9 of a finite family.

    In a continuous or very large family a task is rarely drawn twice, so its curve would be a single point.
    """
    return type(task) is int and task < 10


def means_by_task(rows: Sequence[Row], names: Iterable[str]) -> dict[str, float]:
    """Return TASK_NAME -> mean over the rows of a task, for each task that `has_curves` and each named column."""
    means = {}
    for task in dict.fromkeys(row["task"] for row in rows if has_curves(row["task"])):
        of_task = means_of([row for row in rows if row["task"] == task], names)
        means |= {f"{task}_{name}": x for name, x in of_task.items()}
    return means


class Log(Generic[SettingsType]):
    """Base class of the log of a run. Each method of training has a subclass, which knows what it reports.

    A subclass has to

    - give the columns of metrics.csv to `__init__`: "iteration", "task", "env_steps", "train_env_steps", "seconds", and
      more of its own;
    - add env steps to `env_steps` as they are played, and to `train_env_steps` if the policies learn from them;
    - call `_log_training_episodes` and `_advance_bar` after each training iteration;
    - call `_end_outer_iteration` after each outer iteration, which also lets the run save a checkpoint.

    All counts start where the run's progress stands. In processes other than the first one, a log only counts.
    """

    def __init__(
        self, run: Run[SettingsType], columns: Sequence[str], rewards: Mapping[str, str], iterations: int = 1
    ) -> None:
        """Open metrics.csv and start the progress bar.

        `rewards` maps the columns drawn in curves.png to their labels. `iterations` is the number of training
        iterations in an outer iteration, which are the steps of the progress bar.
        """
        self.run, self.cfg, self.folder, self._rewards = run, run.cfg, run.folder, rewards
        self.env_steps: int = run.progress["env_steps"]
        self.train_env_steps: int = run.progress["train_env_steps"]
        self._metrics = self._bar = None
        self._summary = ""  # of the last outer iteration, shown in the progress bar
        self._first_advance: tuple[int, float] | None = None  # env steps and time
        if parallel.FIRST:
            done = run.progress["iteration"]
            self._metrics = MetricsFile(run.folder, columns, done)
            trained_reward = "trained_reward" if "trained_reward" in rewards else [*rewards][-1]
            run.highest_reward = highest_mean(read_metrics(run.folder), trained_reward)
            description = "compiling" if done >= self.cfg.compiled_from else ""
            self._bar = progress_bar(run.length * iterations, done * iterations, description, leave=True)
        self._start = time.monotonic() - run.progress["seconds"]

    @property
    def seconds(self) -> float:
        """Seconds of training by the clock, including earlier parts of a continued run."""
        return time.monotonic() - self._start

    def message(self, text: str) -> None:
        """Print a line to stderr, above the progress bar."""
        if parallel.FIRST:
            tqdm.write(text, file=sys.stderr)

    def add_video(self, name: str, path: Path) -> None:
        """Send the film at `path` to the trackers. `name` is MOMENT-video-TASK.

        A task without curves of its own shares the name videos/MOMENT with the others.
        """
        moment, _, task = name.partition("-video-")
        shown = name if task.isdecimal() and has_curves(int(task)) else moment
        for tracker in self.run.trackers:
            tracker.log_image(f"videos/{shown}", path, self.env_steps)

    def close(self, results: Mapping[str, Any] | None = None) -> None:
        """Draw curves.png, write and print `results` if there are any, and close everything.

        Raises a UserError if a file cannot be written.
        """
        if self._bar is None or self._metrics is None:
            return
        from mlsh.runs.plots import draw_curves  # Matplotlib and SciPy take a second to import

        self._bar.close()
        if results:
            write_whole(self.folder / "results.json", json.dumps(results, indent=2) + "\n")
            print_results(results, self.run)
        self._metrics.close()
        with writing(self.folder):
            draw_curves(self.folder / "curves.png", read_metrics(self.folder), self._rewards)
        summary = summarise_final_test(results or {})
        if summary:
            self._track({}, test={re.sub("^([0-9]+_)?test_", r"\1", name): x for name, x in summary.items()})
        for tracker in self.run.trackers:
            tracker.finish(results or {}, summary, self.env_steps)

    def close_after_failed_write(self) -> None:
        """Close what is open without raising, when the disk takes no more."""
        if self._bar is None or self._metrics is None:
            return
        self._bar.close()
        with contextlib.suppress(UserError):
            self._metrics.close()
            for tracker in self.run.trackers:
                tracker.close()

    def _advance_bar(self, description: str) -> None:
        """Move the progress bar by one training iteration."""
        if self._bar is None:
            return
        now = time.monotonic()
        if self._first_advance is None:
            self._first_advance = self.env_steps, now
        steps, then = self._first_advance
        notes = [self._summary]
        if now > then:
            notes.append(f"{(self.env_steps - steps) / (now - then):,.0f} env steps/s")
        if self.run.progress["iteration"] >= self.cfg.compiled_from and not compiled.FAILED:
            notes.append("compiled")
        self._bar.set_description_str(description, refresh=False)
        self._bar.set_postfix_str(", ".join(filter(None, notes)), refresh=False)
        self._bar.update()

    def _track(self, values: Mapping[str, Any], **sections: Mapping[str, Any]) -> None:
        """Send values to the trackers: `values` under their names, and those in sections as `section/name`."""
        named = {f"{section}/{name}": x for section, values in sections.items() for name, x in values.items()}
        for tracker in self.run.trackers:
            tracker.log({**values, **named}, self.env_steps)

    def _log_training_episodes(self, episodic_return: float, episodic_length: float) -> None:
        """Track means over the episodes just learned from, named as in CleanRL; "reward" is the earlier port's name."""
        training = {"episodic_return": episodic_return, "episodic_length": episodic_length}
        self._track({"reward": episodic_return}, training=training | {"SPS": self.env_steps / self.seconds})

    def _end_outer_iteration(
        self, i: int, rows: Sequence[Row], summary: str, values: Mapping[str, Any], **sections: Mapping[str, Any]
    ) -> None:
        """After outer iteration `i`: write `rows` to metrics.csv, track values as `_track` does, and save if due.

        `rows` lack the iteration and the counts, which are added here. `summary` is shown in the progress bar. The
        section `charts` has `trained_reward`, by which the best checkpoint is found.
        """
        counts = {"env_steps": self.env_steps, "train_env_steps": self.train_env_steps, "seconds": self.seconds}
        if self._metrics is not None:
            self._metrics.write([{"iteration": i, **row, **counts} for row in rows])
        self._track(values, **sections)
        self._summary = summary
        self.run.end_iteration(sections["charts"]["trained_reward"], iteration=i + 1, **counts)
        if self._bar is not None and i + 1 == self.cfg.compiled_from:
            self._bar.set_description_str("compiling")


class MLSHLog(Log[Config]):
    """The log of train.py. metrics.csv has one row per task group and outer iteration.

    It gathers what the processes of torchrun have, so every process has to call the same methods.
    """

    def __init__(self, run: Run[Config]) -> None:
        cfg = run.cfg
        self._sub_policies = [f"sub{k}" for k in range(cfg.num_sub_policies)]
        self._shares = [f"share_{k}" for k in range(cfg.num_sub_policies)]
        rewards = {moment.column: name for name, moment in MOMENTS.items()}
        columns = ["iteration", "group", "task", *rewards, "env_steps", "train_env_steps", "seconds", "diverged"]
        columns += self._shares
        columns += [f"{policy}_{name}" for policy in ("master", *self._sub_policies) for name in LOSSES]
        super().__init__(run, columns, rewards, cfg.W + cfg.U)
        self._forget()

    def _forget(self) -> None:
        """Forget the last outer iteration."""
        self._evaluations: dict[str, Outcome] = {}  # moment -> outcome of all groups
        self._figures: Mapping[str, torch.Tensor] = {}  # [groups of this process] each
        self._sub_figures: Mapping[str, torch.Tensor] = {}  # [K] each, the same in all processes
        self._diverged: list[torch.Tensor] = []  # [groups] of each training iteration

    def count_env_steps(self, env_steps: int) -> None:
        """Count env steps of this process from which only the normaliser learns."""
        self.env_steps += sum(parallel.gather(env_steps))

    def evaluated(self, moment: str, outcome: Outcome) -> None:
        """Take the outcome of the evaluation episodes at one of `MOMENTS`, for the groups of this process."""
        outcome = self._evaluations[moment] = concatenate_groups(parallel.gather(outcome))
        self.env_steps += outcome.steps

    def training_iteration_done(
        self,
        i: int,
        phase: str,
        outcome: Outcome,
        figures: Mapping[str, torch.Tensor],
        sub_figures: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Take the outcome of the rollout of a training iteration, and what `update` returned.

        `phase` is "warm-up" or "joint". `figures` are those of the masters of this process; only a joint iteration has
        those of the sub-policies.
        """
        outcome = concatenate_groups(parallel.gather(outcome))
        self.env_steps += outcome.steps
        self.train_env_steps += outcome.steps
        self._figures, self._sub_figures = figures, sub_figures or self._sub_figures
        self._diverged.append(outcome.diverged)
        self._advance_bar(f"outer iteration {i + 1}/{self.run.length} {phase}")
        self._log_training_episodes(outcome.episode_return.mean().item(), outcome.episode_length.mean().item())

    def outer_iteration_done(self, i: int, tasks: Sequence[Any]) -> None:
        """After outer iteration `i`, write one row per group. `tasks` are those of this process's groups."""
        tasks = [task for of_process in parallel.gather(tasks) for task in of_process]
        of_processes = parallel.gather(self._figures)
        masters = {f"master_{name}": torch.cat([x[name] for x in of_processes]).tolist() for name in LOSSES}
        sub_policies = {
            f"{policy}_{name}": value
            for name, values in self._sub_figures.items()
            for policy, value in zip(self._sub_policies, values.tolist(), strict=True)
        }
        rewards = {MOMENTS[name].column: x.episode_return.mean(1).tolist() for name, x in self._evaluations.items()}
        trained = self._evaluations["trained"]
        final = trained.final_means()
        of_group = rewards | masters | final | dict(zip(self._shares, trained.share.T.tolist(), strict=True))
        diverged = torch.stack(self._diverged).sum(0).tolist()
        rows = [
            {"group": g, "task": task, "diverged": diverged[g], **sub_policies}
            | {name: values[g] for name, values in of_group.items()}
            for g, task in enumerate(tasks)
        ]
        means = means_of(rows, (*rewards, *final))
        of_tasks = means_by_task(rows, (*rewards, *final, *self._shares))
        port = {name: means[name] for name in rewards}  # names of the earlier port
        port |= {name: x for name, x in of_tasks.items() if name.endswith("_reward")}
        charts = {"trained_reward": means.pop("trained_reward"), "untrained_reward": means.pop("pretrain_reward")}
        losses = sub_policies | {name: sum(values) / len(values) for name, values in masters.items()}
        summary = f"trained reward {charts['trained_reward']:.2f}"
        training = {**means, "diverged": sum(diverged), **self._faded(i)}
        sections = {"charts": charts, "training": training, "losses": losses, "tasks": of_tasks}
        self._end_outer_iteration(i, rows, summary, port, **sections)
        self._forget()

    def _faded(self, i: int) -> dict[str, float]:
        """Return the settings that fall over time, as they are at outer iteration `i`."""
        explore, sub_entropy = self.cfg.training_rollout(i).explore, self.cfg.sub_ppo(i).entropy_coef
        return {"explore": explore, "sub_entropy": sub_entropy, "sub_lr": self.cfg.sub_lr_at(i)}


def print_results(results: Mapping[str, Any], run: Run[Any]) -> None:
    """Print the rows of the final test, what the run took, and which files there are."""
    for table, rows in final_test_tables(results).items():
        for row in rows:
            task = f"{'held-out ' if table == 'held_out' else ''}task {row['task']} ({row['label']})"
            known = {"best_return": "best possible", "best_master": "by the best master over these sub-policies"}
            best = ", ".join(f"{text}: {row[name]:.4g}" for name, text in known.items() if name in row)
            mean = f"return {row['return']:.4g} ± {row['standard_error']:.2g}{f' ({best})' if best else ''}"
            print(f"{task}: {mean}, shares {row['share']}")
    shares = np.array([row["share"] for row in results.get("test", ())])
    if shares.size and min(shares.shape) > 1:
        unused = ", ".join(map(str, np.flatnonzero(shares.max(0) < USED))) or "none"
        print(
            f"sub-policies: the choice tells {information(shares):.2f} bits about the task, "
            f"of {most_information(shares):.2f} at most; never chosen: {unused}"
        )
    has_videos = any((run.folder / "videos").glob("*"))
    files = "results.json, curves.png and videos/" if has_videos else "results.json and curves.png"
    print(f"{results['env_steps']:,} env steps in {results['seconds']:.0f} s; see {files} in {run.shown}")


def final_test_tables(results: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Return the tables of the final test: "test", and "held_out" if there are held-out tasks."""
    return {name: results[name] for name in ("test", "held_out") if results.get(name)}


def summarise_final_test(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of the final test for wandb's summary, by name.

    These are each measure's mean over the tasks, the standard error of the mean return, and the return on each task for
    which `has_curves` is true.
    """
    summary: dict[str, float] = {}
    for table, rows in final_test_tables(results).items():
        final = dict.fromkeys(name for row in rows for name in row if name.startswith("final_"))
        summary |= {f"{table}_{name}": x for name, x in means_of(rows, ("return", *final)).items()}
        summary[f"{table}_standard_error"] = sum(row["standard_error"] ** 2 for row in rows) ** 0.5 / len(rows)
        for row in rows:
            if has_curves(row["task"]):
                summary |= {f"{row['task']}_{table}_{name}": row[name] for name in ("return", "standard_error")}
    return summary
