"""What a run reports: metrics.csv, curves.png, results.json, the progress bar, and to wandb and TensorBoard."""

import contextlib
import json
import sys
import time

import torch
from tqdm import tqdm

from mlsh import compiled, parallel
from mlsh.errors import UserError
from mlsh.runs.files import write_whole, writing
from mlsh.runs.metrics import Metrics, means_of, read_metrics
from mlsh.rollout import joined

MOMENTS = {"pretrain": "pretrain_reward", "warmup": "trained_reward", "afterjoint": "joint_reward"}  # only measured
LOSSES = ("policy_loss", "value_loss", "kl", "clip_fraction", "entropy", "explained_variance")


def has_curves(task):
    """Whether a task has names of its own on wandb: of a family without end, or of hundreds, each would be a point."""
    return type(task) is int and task < 10  # the tasks of a finite family are 0 … n-1


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
        self._metrics = self._bar = Silence()
        self._rate_from, self._last = None, ""
        if parallel.FIRST:
            self._metrics = Metrics(run.folder, columns, begun)
            doing = "compiling" * (self.cfg.compile == "on")
            bar = {"total": self._length * inner, "initial": begun * inner, "desc": doing}
            self._bar = tqdm(**bar, unit="it", dynamic_ncols=True)
        self._start = time.monotonic() - run.progress["seconds"]

    @property
    def seconds(self):
        """Wall-clock seconds of training, earlier parts of a continued run included."""
        return time.monotonic() - self._start

    def say(self, text):
        """A line above the progress bar."""
        if parallel.FIRST:
            tqdm.write(text, file=sys.stderr)

    def video(self, name, path):
        """Show the film that was written to `path` under `name`, MOMENT-video-TASK."""
        moment, _, task = name.partition("-video-")
        names = (name, f"videos/{name}") if task.isdecimal() and has_curves(int(task)) else (f"videos/{moment}",)
        for tracker in self.run.trackers:
            tracker.videos(names, path, self.env_steps)

    def close(self, results=None):
        """Draw the curves, write `results` (a dict) to results.json and say them, end what wandb has, close all."""
        if not parallel.FIRST:
            return
        from mlsh.runs.plots import draw_curves  # Matplotlib and SciPy take a second to import

        self._bar.close()
        self._metrics.close()
        with writing(self.folder):
            draw_curves(self.folder / "curves.png", read_metrics(self.folder), self._rewards)
        if results:
            write_whole(self.folder / "results.json", json.dumps(results, indent=2) + "\n")
            say_results(results, self.folder)
        for tracker in self.run.trackers:
            tracker.finish(results or {}, summary_of(results or {}), self.env_steps)

    def abandon(self):
        """Close what is open, when the disk takes no more; nothing is raised."""
        self._bar.close()
        with contextlib.suppress(UserError):
            self._metrics.close()
            for tracker in self.run.trackers:
                tracker.abandon()

    def _advance(self, doing):
        """The progress bar after an inner iteration."""
        now = time.monotonic()
        steps, then = self._rate_from = self._rate_from or (self.env_steps, now)
        rate = f"{(self.env_steps - steps) / (now - then):,.0f} steps/s" if now > then else ""
        self._bar.set_description_str(doing, refresh=False)
        how = "compiled" * (self.cfg.compile == "on" and not compiled.FAILED)
        self._bar.set_postfix_str(", ".join(filter(None, (self._last, rate, how))), refresh=False)
        self._bar.update()

    def _log(self, plain, **sections):
        """Values by name for wandb and TensorBoard: some as they are, and some in sections, by `section/name`."""
        named = {f"{section}/{name}": x for section, values in sections.items() for name, x in values.items()}
        for tracker in self.run.trackers:
            tracker.log(plain | named, self.env_steps)

    def _played(self, episodic_return, episodic_length):
        """Means over what was just learned from, as CleanRL names them; `reward` is the earlier port's name."""
        charts = {"episodic_return": episodic_return, "episodic_length": episodic_length}
        self._log({"reward": episodic_return}, charts=charts | {"SPS": self.env_steps / self.seconds})

    def _iteration_done(self, i, rows, last, plain, **sections):
        """After outer iteration `i`: its rows for metrics.csv, a word for the progress bar, and what `_log` gets."""
        counted = {"env_steps": self.env_steps, "train_env_steps": self.train_env_steps, "seconds": self.seconds}
        self._metrics.write([{"iteration": i, **row, **counted} for row in rows])
        self._log(plain, **sections)
        self._last = last
        self.run.keep(iteration=i + 1, **counted)


class Logger(Log):
    """What a run of MLSH reports. What several processes have is gathered here."""

    def __init__(self, run):
        cfg = run.cfg
        self._subs = [f"sub{k}" for k in range(cfg.num_sub_policies)]
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
        columns += [f"share_{k}" for k in range(cfg.num_sub_policies)]
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
        self._played(outcome.episode_return.mean().item(), outcome.episode_length.mean().item())

    def task_done(self, i, tasks):
        """After an outer iteration: a row a group. `tasks`: of this process's groups."""
        tasks = [task for some in parallel.gather(tasks) for task in some]
        everyones = parallel.gather(self._stats["master"])
        masters = {f"master_{k}": torch.cat([stats[k] for stats in everyones]).tolist() for k in LOSSES}
        low = self._stats.get("low", {})  # of all processes alike
        subs = {f"{who}_{k}": v for k, x in low.items() for who, v in zip(self._subs, x.tolist(), strict=True)}
        rewards = {name: outcome.episode_return.mean(1).tolist() for name, outcome in self._looks.items()}
        trained = self._looks[MOMENTS["warmup"]]
        share, final = trained.share.tolist(), trained.final_means()
        of_group = [
            {"group": g, "task": task, "diverged": int(self._diverged[g]), **subs}
            | {name: x[g] for name, x in (rewards | masters | final).items()}
            | {f"share_{k}": x for k, x in enumerate(share[g])}
            for g, task in enumerate(tasks)
        ]
        means = {name: sum(x) / len(x) for name, x in masters.items()}
        charts = means_of(of_group, (*rewards, *final))
        of_task = {}
        for task in dict.fromkeys(filter(has_curves, tasks)):
            mine = [row for row in of_group if row["task"] == task]
            shown = means_of(mine, (*rewards, *final, *(f"share_{k}" for k in range(len(self._subs)))))
            of_task |= {f"{task}_{name}": x for name, x in shown.items()}
        port = {name: charts[name] for name in rewards}  # the earlier port's names
        port |= {name: x for name, x in of_task.items() if name.endswith("_reward")}
        fading = {"explore": self.cfg.training_rollout(i)["explore"], "sub_entropy": self.cfg.low_ppo(i)["c2"]}
        fading["sub_lr"] = self.cfg.low_rate(i)
        more = {"diverged": int(self._diverged.sum()), **fading}
        last = f"trained reward {charts['trained_reward']:.2f}"
        self._iteration_done(i, of_group, last, port, charts=charts | more, losses=subs | means, tasks=of_task)
        self._forget()


class RL2Logger(Log):
    """What a run of RL² reports: a row a task of an iteration, the returns of each episode of its trials."""

    def __init__(self, run):
        self._episodes = [f"episode_{e}" for e in range(run.cfg.episodes)]
        columns = ["iteration", "task", "env_steps", "train_env_steps", "seconds", *self._episodes, *LOSSES]
        super().__init__(run, columns, {name: name.replace("_", " ") for name in self._episodes})

    def iteration_done(self, i, tasks, trials, stats):
        """After iteration `i`, whose trials were of `tasks`; `stats` is what `learn` returned."""
        losses = {name: x.item() for name, x in stats.items()}
        self.env_steps += trials.steps
        self.train_env_steps += trials.steps
        rows = []
        for task in {str(t): t for t in tasks}.values():
            returns = trials.episode_return[:, [t == task for t in tasks]].mean(1).tolist()
            rows.append({"task": task, **dict(zip(self._episodes, returns, strict=True)), **losses})
        of_task = {f"{r['task']}_{name}": r[name] for r in rows if has_curves(r["task"]) for name in self._episodes}
        last = trials.episode_return[-1].mean().item()
        self._played(last, trials.steps / trials.episode_return.numel())
        self._advance(f"iteration {i + 1}/{self._length}")
        self._iteration_done(i, rows, f"last episode {last:.2f}", of_task, losses=losses, tasks=of_task)


def say_results(results, folder):
    """Print what the run has come to."""
    for kind, rows in tests_in(results).items():
        told = "held-out " * (kind == "held_out") + "task {task} ({label}): return {return:.4g} ± {standard_error:.2g}"
        told += " of at best {best_return:.4g}" * ("best_return" in rows[0]) + ", shares {share}"
        print(*(told.format(**row) for row in rows), sep="\n")
    print(f"{results['env_steps']:,} env steps in {results['seconds']:.0f} s; see {folder}")


def tests_in(results):
    """The tables of the final test, by name."""
    return {kind: results[kind] for kind in ("test", "held_out") if results.get(kind)}


def summary_of(results):
    """Means over the tasks of the final test, and of each that has curves its return, with standard errors, by name."""
    summary = {}
    for kind, rows in tests_in(results).items():
        final = dict.fromkeys(name for row in rows for name in row if name.startswith("final_"))
        summary |= {f"{kind}_{name}": x for name, x in means_of(rows, ("return", *final)).items()}
        summary[f"{kind}_standard_error"] = sum(row["standard_error"] ** 2 for row in rows) ** 0.5 / len(rows)
        for row in rows:
            if has_curves(row["task"]):
                summary |= {f"{row['task']}_{kind}_{name}": row[name] for name in ("return", "standard_error")}
    return summary
