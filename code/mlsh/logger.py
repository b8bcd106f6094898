"""What a run reports: metrics.csv, curves.png, results.json, the progress bar, and to wandb."""

import contextlib
import csv
import io
import json
import os
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from mlsh import parallel
from mlsh.errors import UserError
from mlsh.files import write_whole, writing
from mlsh.rollout import joined

MOMENTS = {"pretrain": "pretrain_reward", "warmup": "trained_reward", "afterjoint": "joint_reward"}  # only measured
LOSSES = ("policy_loss", "value_loss", "kl", "clip_fraction", "entropy")


def read_metrics(folder):
    """The rows of a run folder's metrics.csv as dicts of strings; a last line cut short by a kill is left out."""
    if not (Path(folder) / "metrics.csv").exists():
        return []
    with open(Path(folder) / "metrics.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


class Metrics:
    """A run folder's metrics.csv. Rows of outer iterations from `begun` on, which a killed run may have left, go."""

    def __init__(self, folder, columns, begun):
        self._folder = folder
        path = folder / "metrics.csv"
        try:
            kept = [row for row in read_metrics(folder) if int(row["iteration"]) < begun] if begun else []
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, columns)
            writer.writeheader()
            writer.writerows(kept)
        except (KeyError, ValueError) as error:
            raise UserError(f"{path} is not of this run ({error!r}); move it away") from None
        write_whole(path, text.getvalue())
        with writing(folder):
            self._file = open(path, "a", newline="")  # noqa: SIM115
        self._writer = csv.DictWriter(self._file, columns)

    def write(self, rows):
        with writing(self._folder):
            for row in rows:
                self._writer.writerow({k: f"{x:.6g}" if isinstance(x, float) else x for k, x in row.items()})
            self._file.flush()
            os.fsync(self._file.fileno())  # no checkpoint is ahead of it, even if the machine goes down

    def close(self):
        with writing(self._folder):
            self._file.close()


class Silence:
    """In place of what only the first process has."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


class Log:
    """What every kind of run reports. A subclass knows what an outer iteration of its own has to say.

    It counts seconds and env steps from the run's progress on: `env_steps` are all, `train_env_steps` those learned
    from. `columns`: of metrics.csv; `rewards`: those that are drawn, and their labels; `inner`: steps of the
    progress bar an outer iteration. In a process that is not the first it only counts.
    """

    def __init__(self, run, columns, rewards, inner=1):
        self.run, self.cfg, self.folder, self._rewards = run, run.cfg, run.folder, rewards
        self.env_steps, self.train_env_steps = (run.progress[name] for name in ("env_steps", "train_env_steps"))
        begun, self._length = run.progress["iteration"], getattr(self.cfg, self.cfg.length)
        self._metrics = self._tracker = self._bar = Silence()
        if parallel.FIRST:
            self._metrics = Metrics(run.folder, columns, begun)
            if self.cfg.wandb != "disabled":
                from mlsh.tracking import Tracker  # wandb takes half a second to import

                self._tracker = Tracker(self.cfg, run.folder, run.progress["run_id"], self.say)
            bar = {"total": self._length * inner, "initial": begun * inner}
            self._bar = tqdm(**bar, unit="it", dynamic_ncols=True)
        self._start = time.monotonic() - run.progress["seconds"]
        self._rate_from, self._last = None, ""

    @property
    def seconds(self):
        """Wall-clock seconds of training, earlier parts of a continued run included."""
        return time.monotonic() - self._start

    def say(self, text):
        """A line above the progress bar."""
        if parallel.FIRST:
            tqdm.write(text, file=sys.stderr)

    def video(self, name, path):
        """Show the film that was written to `path` under `name`."""
        self._tracker.video(name, path, self.env_steps)

    def close(self, results=None):
        """Draw the curves, write `results` (a dict) to results.json, log the checkpoint as an artifact, close all."""
        if not parallel.FIRST:
            return
        from mlsh.plots import draw_curves  # Matplotlib and SciPy take a second to import

        self._bar.close()
        self._metrics.close()
        with writing(self.folder):
            draw_curves(self.folder / "curves.png", read_metrics(self.folder), self._rewards)
        if results:
            write_whole(self.folder / "results.json", json.dumps(results, indent=2) + "\n")
        self._tracker.finish(results or {})

    def abandon(self):
        """Close what is open, when the disk takes no more; nothing is raised."""
        self._bar.close()
        with contextlib.suppress(UserError):
            self._metrics.close()
        self._tracker.abandon()

    def _advance(self, doing):
        """The progress bar after an inner iteration."""
        now = time.monotonic()
        if self._rate_from is None:
            self._rate_from = self.env_steps, now
        steps, then = self._rate_from
        rate = f"{(self.env_steps - steps) / (now - then):,.0f} steps/s" if now > then else ""
        self._bar.set_description_str(doing, refresh=False)
        self._bar.set_postfix_str(", ".join(filter(None, (self._last, rate))), refresh=False)
        self._bar.update()

    def _iteration_done(self, i, rows, logged, last):
        """After outer iteration `i`: its rows for metrics.csv, what wandb gets, and a word for the progress bar."""
        counted = {"env_steps": self.env_steps, "train_env_steps": self.train_env_steps, "seconds": self.seconds}
        self._metrics.write([{"iteration": i, **row, **counted} for row in rows])
        self._tracker.log(logged, self.env_steps)
        self._last = last
        self.run.keep(iteration=i + 1, **counted)


class Logger(Log):
    """What a run of MLSH reports. What several processes have is gathered here."""

    def __init__(self, run):
        cfg = run.cfg
        self._subs = [f"sub{k}" for k in range(cfg.num_low)]
        columns = [
            "iteration",
            "group",
            "task",
            *MOMENTS.values(),
            "env_steps",
            "train_env_steps",
            "seconds",
            "diverged",
        ]
        columns += [f"share_{k}" for k in range(cfg.num_low)]
        columns += [f"{who}_{name}" for who in ("master", *self._subs) for name in LOSSES]
        rewards = {name: name.removesuffix("_reward") for name in MOMENTS.values()}
        super().__init__(run, columns, rewards, cfg.W + cfg.U)
        self._forget()

    def _forget(self):
        self._looks, self._stats, self._diverged = {}, {}, 0

    def observed(self, env_steps):
        """Before the first outer iteration: env steps from which only the normaliser learns."""
        self.env_steps += sum(parallel.gather(env_steps))

    def look(self, moment, outcome):
        """At one of `MOMENTS`: the outcome of episodes from which nobody learns."""
        self._looks[MOMENTS[moment]] = outcome = joined(parallel.gather(outcome))
        self.env_steps += outcome.steps

    def step(self, i, phase, rollout, **stats):
        """After an inner iteration: what was played, and what `update` returned of master and low."""
        outcome = joined(parallel.gather(rollout.outcome))
        self.env_steps += outcome.steps
        self.train_env_steps += outcome.steps
        self._stats |= stats
        self._diverged = self._diverged + outcome.diverged
        self._advance(f"task {i + 1}/{self._length} {phase}")
        self._tracker.log({"reward": outcome.episode_return.mean().item()}, self.env_steps)

    def task_done(self, i, tasks):
        """After an outer iteration: a row a group. `tasks`: of this process's groups."""
        tasks = [task for some in parallel.gather(tasks) for task in some]
        everyones = parallel.gather(self._stats["master"])
        masters = {f"master_{k}": torch.cat([stats[k] for stats in everyones]).tolist() for k in LOSSES}
        low = self._stats.get("low", {})  # of all processes alike
        subs = {f"{who}_{k}": v for k, x in low.items() for who, v in zip(self._subs, x.tolist(), strict=True)}
        rewards = {name: outcome.episode_return.mean(1).tolist() for name, outcome in self._looks.items()}
        share = self._looks["trained_reward"].share.tolist()
        of_group = [
            {"group": g, "task": task, "diverged": int(self._diverged[g]), **subs}
            | {name: x[g] for name, x in (rewards | masters).items()}
            | {f"share_{k}": x for k, x in enumerate(share[g])}
            for g, task in enumerate(tasks)
        ]
        logged = subs | {name: sum(x) / len(x) for name, x in (rewards | masters).items()}
        for task in {str(t): t for t in tasks}.values():
            mine = [row for row in of_group if row["task"] == task]
            for name in (*rewards, *(f"share_{k}" for k in range(len(self._subs)))):
                logged[f"{task}_{name}"] = sum(row[name] for row in mine) / len(mine)
        logged["diverged"] = int(self._diverged.sum())
        self._iteration_done(i, of_group, logged, f"trained reward {logged['trained_reward']:.2f}")
        self._forget()
