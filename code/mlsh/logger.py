"""Where a run's figures go: metrics.csv, curves, videos, the progress bar and wandb."""

import contextlib
import csv
import dataclasses
import datetime
import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

import imageio
import numpy as np
import torch
import wandb
from filelock import FileLock, Timeout
from PIL import Image
from tqdm import tqdm

from mlsh.errors import UserError

PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "pygame-ce", "wandb", "imageio", "matplotlib")
REWARDS = ("pretrain_reward", "trained_reward", "joint_reward")
LOCKS = []  # on the run folders of this process
LOSSES = ("policy_loss", "value_loss", "kl", "clip_fraction", "entropy")


def make_run_folder(cfg, prefix="", resume=False):
    """Create --out, or runs/<prefix><env>-<time>; refuse one with something in it unless it is to be continued.

    It is locked until this process ends: no other run writes there in the meantime.
    """
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = Path(cfg.out or f"runs/{prefix}{cfg.env.split(':')[-1]}-{stamp}")
    ours = {".lock", "videos", "checkpoint.pt.tmp"}  # what a run leaves that got no further
    try:
        if not resume and folder.exists() and (not folder.is_dir() or {p.name for p in folder.iterdir()} - ours):
            go_on = "continue it with -c or " if hasattr(cfg, "resume") else ""
            raise UserError(f"--out {folder} is not empty; {go_on}name another folder")
        (folder / "videos").mkdir(parents=True, exist_ok=True)
        LOCKS.append(FileLock(folder / ".lock"))
        LOCKS[-1].acquire(timeout=0)
    except Timeout:
        raise UserError(f"another run is writing to {folder}; wait for it or name another with --out") from None
    except OSError as error:
        raise UserError(f"cannot make the run folder {folder} ({error.strerror}); name another with --out") from None
    return folder


def commit():
    """This file's git commit, or None where it is in no repository."""
    here = Path(__file__)

    def git(*args):
        return subprocess.run(
            ["git", *args], cwd=here.parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        return git("describe", "--always", "--dirty")
    except (OSError, subprocess.CalledProcessError):
        return None


def describe_machine():
    """Commit, versions and hardware, for config.json."""
    cpuinfo = Path("/proc/cpuinfo")  # Linux
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def read_metrics(folder):
    """The rows of a run folder's metrics.csv as dicts of strings; a last line cut short by a kill is left out."""
    if not (Path(folder) / "metrics.csv").exists():
        return []
    with open(Path(folder) / "metrics.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


def make_folder(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder} ({error.strerror}); name another with --out") from None


@contextlib.contextmanager
def writing(folder):
    """A disk that takes no more is the user's error."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error}); free disk space or check permissions") from None


class Logger:
    """Writes one run's folder and mirrors it to wandb.

    `progress` is the checkpoint's: rows of metrics.csv beyond it, which a killed run may have left, are dropped.
    """

    def __init__(self, cfg, folder, progress):
        begun, run_id = progress["iteration"], progress["run_id"]
        self.cfg = cfg
        self.folder = folder
        columns = ["iteration", "group", "task", *REWARDS, "env_steps", "seconds", "diverged"]
        columns += [f"share_{k}" for k in range(cfg.num_low)]
        columns += [f"{who}_{name}" for who in ("master", *self._subs()) for name in LOSSES]
        config = {"run_id": run_id, "config": cfg.as_dict(), "machine": describe_machine()}
        try:
            kept = [row for row in read_metrics(folder) if int(row["iteration"]) < begun] if begun else []
        except (KeyError, ValueError) as error:
            raise UserError(f"{folder / 'metrics.csv'} is not of this run ({error!r}); move it away") from None
        with writing(folder):
            (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            with open(folder / "metrics.csv.tmp", "w", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(kept)
            os.replace(folder / "metrics.csv.tmp", folder / "metrics.csv")
            self._file = open(folder / "metrics.csv", "a", newline="")  # noqa: SIM115
        self._writer = csv.DictWriter(self._file, columns)
        home = os.path.expanduser("~")  # noqa: PTH111 (Path.home raises where there is none)
        if not os.access(home, os.W_OK):  # what libraries keep there goes to the run folder
            for name in ("HOME", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "MPLCONFIGDIR"):
                os.environ.setdefault(name, str(folder.absolute() / "wandb" / "home"))
        self._wandb = start_wandb(cfg, folder, run_id)
        inner = cfg.W + cfg.U
        self._bar = tqdm(total=cfg.tasks * inner, initial=begun * inner, unit="it", dynamic_ncols=True)
        self._trained, self._rate_from, self._diverged = "", None, 0
        self._start = time.monotonic() - progress["seconds"]

    @property
    def seconds(self):
        """Wall-clock seconds of training, earlier parts of a continued run included."""
        return time.monotonic() - self._start

    def _subs(self):
        return [f"sub{k}" for k in range(self.cfg.num_low)]

    def step(self, iteration, phase, rollout, env_steps):
        """After an inner iteration: the bar, and wandb's `reward`."""
        self._diverged = self._diverged + rollout.diverged
        now = time.monotonic()
        if self._rate_from is None:
            self._rate_from = env_steps, now
        steps, then = self._rate_from
        rate = f"{(env_steps - steps) / (now - then):,.0f} steps/s" if now > then else ""
        self._bar.set_description_str(f"task {iteration + 1}/{self.cfg.tasks} {phase}", refresh=False)
        self._bar.set_postfix_str(", ".join(filter(None, (self._trained, rate))), refresh=False)
        self._bar.update()
        self._log({"reward": rollout.episode_return.mean().item(), "env_steps": env_steps})

    def task_done(self, iteration, tasks, rollouts, master, low, env_steps):
        """After an outer iteration: a row a group.

        `rollouts`: the played episodes behind each of `REWARDS`; `master`, `low`: what the last `update` of each
        returned (`low` empty without joint iterations).
        """
        rewards = {name: r.episode_return.mean(1).tolist() for name, r in zip(REWARDS, rollouts, strict=True)}
        share = rollouts[1].share.tolist()
        subs = {f"{who}_{k}": v for k, x in low.items() for who, v in zip(self._subs(), x.tolist(), strict=True)}
        masters = {f"master_{k}": x.tolist() for k, x in master.items()}
        logged = dict(subs)
        for g, task in enumerate(tasks):
            row = {"iteration": iteration, "group": g, "task": task, "env_steps": env_steps, "seconds": self.seconds}
            row["diverged"] = int(self._diverged[g])
            row |= {name: x[g] for name, x in (rewards | masters).items()} | subs
            row |= {f"share_{k}": x for k, x in enumerate(share[g])}
            with writing(self.folder):
                self._writer.writerow({k: f"{x:.6g}" if isinstance(x, float) else x for k, x in row.items()})
        for name, x in (rewards | masters).items():
            logged[name] = sum(x) / len(x)
        for task in {str(t): t for t in tasks}.values():
            of_task = [g for g, t in enumerate(tasks) if t == task]
            for name in REWARDS:
                logged[f"{task}_{name}"] = sum(rewards[name][g] for g in of_task) / len(of_task)
            for k in range(self.cfg.num_low):
                logged[f"{task}_share_{k}"] = sum(share[g][k] for g in of_task) / len(of_task)
        logged["diverged"] = int(self._diverged.sum())
        self._diverged = 0
        with writing(self.folder):
            self._file.flush()
            os.fsync(self._file.fileno())  # no checkpoint is ahead of it, even if the machine goes down
        self._trained = f"trained reward {logged['trained_reward']:.2f}"
        self._log(logged | {"env_steps": env_steps})

    def say(self, text):
        """A line above the progress bar."""
        self._bar.write(text, file=sys.stderr)

    def video(self, iteration, name, frames, fps, env_steps):
        """Write frames (uint8 [H, W, 3] each) to videos/ and to wandb under `name`."""
        path = self.folder / "videos" / f"{iteration:05d}-{name}.gif"
        write_video(path, frames, fps)
        if self._wandb:
            self._log({name: wandb.Video(str(path), format="gif"), "env_steps": env_steps})

    def finish(self, results=None):
        """Draw the curves, write results.json, log the checkpoint as an artifact, close everything."""
        self._bar.close()
        with writing(self.folder):
            self._file.close()
            draw_curves(self.folder)
            if results:
                temporary = self.folder / "results.json.tmp"
                temporary.write_text(json.dumps(results, indent=2) + "\n")
                os.replace(temporary, self.folder / "results.json")
        self._try_wandb(self._finish_wandb, results)

    def abandon(self):
        """Close what is open, when the disk takes no more; nothing is raised."""
        self._bar.close()
        with contextlib.suppress(OSError):
            self._file.close()
        self._try_wandb(lambda: self._wandb.finish())

    def _finish_wandb(self, results):
        run = self._wandb
        for row in (results or {}).get("test", []):
            run.summary[f"{row['task']}_test_return"] = row["return"]
        run.log({"curves": wandb.Image(str(self.folder / "curves.png"))})
        artifact = wandb.Artifact(f"checkpoint-{run.id}", type="model")
        artifact.add_file(str(self.folder / "checkpoint.pt"))
        run.log_artifact(artifact)
        run.finish()
        self._wandb = None

    def _log(self, values):
        self._try_wandb(lambda: self._wandb.log(values))

    def _try_wandb(self, call, *args):
        """wandb may fail as it likes: say so once and go on without it."""
        if self._wandb is None:
            return
        try:
            call(*args)
        except Exception as error:
            self._wandb = None
            with contextlib.suppress(Exception):
                wandb.teardown()  # else its exit handler prints a traceback
            self.say(f"wandb failed and is off from here on: {error}")


class Silence:
    """The Logger of a process that is not the first."""

    seconds = 0.0

    def __getattr__(self, name):
        return lambda *args: None


def start_wandb(cfg, folder, run_id):
    """The wandb run, or None: online, offline or disabled as --wandb says.

    auto never asks for a login, and falls back to offline where there is none or wandb cannot be reached.
    """
    if cfg.wandb == "disabled":
        return None
    logging.raiseExceptions = False  # wandb's own log on a full disk would print tracebacks
    mode = cfg.wandb
    try:
        if mode == "auto":
            mode = "online" if wandb.login(prompt=False) else "offline"
        run = init_wandb(cfg, folder, run_id, mode)
    except Exception as error:
        if cfg.wandb == "auto" and mode != "offline":
            return start_wandb(dataclasses.replace(cfg, wandb="offline"), folder, run_id)
        print(f"wandb did not start, going on without it: {' '.join(str(error).split())}", file=sys.stderr)
        return None
    if run.offline:
        parts = Path(run.dir).parent.parent / f"offline-run-*-{run_id}"
        print(f"wandb is offline; to see it, `wandb login`, then `wandb sync {parts}`", file=sys.stderr)
    else:
        print(f"wandb: {run.url}", file=sys.stderr)
    return run


def init_wandb(cfg, folder, run_id, mode):
    run = wandb.init(
        project=cfg.wandb_project,
        group=cfg.wandb_group or cfg.env.split(":")[-1],
        name=cfg.wandb_name or folder.name,
        id=run_id,
        resume="allow",
        dir=str(folder),
        mode=mode,
        config=cfg.as_dict(),
        settings=wandb.Settings(silent=True, console="off", init_timeout=30),
    )
    run.define_metric("env_steps")
    run.define_metric("*", step_metric="env_steps")
    return run


def write_video(path, frames, fps):
    """Write frames (uint8 [H, W, 3] each) as .gif or .mp4, by the ending of `path`."""
    try:
        if Path(path).suffix == ".gif":
            # one palette and no dithering: what stands still costs nothing, a tenth of the bytes
            palette = Image.fromarray(np.concatenate(frames[:: max(1, len(frames) // 20)])).quantize(64)
            first, *rest = [Image.fromarray(frame).quantize(palette=palette, dither=0) for frame in frames]
            first.save(path, save_all=True, append_images=rest, duration=1000 / fps, loop=0)
        else:
            imageio.mimsave(path, frames, fps=fps, macro_block_size=2)
    except (OSError, ValueError) as error:
        wanted = "it wants free disk space, permission, and an end in .gif or .mp4"
        raise UserError(f"cannot write {path} ({error}); {wanted}") from None


def curve(rows, task, reward):
    """Env steps (millions) and mean `reward` of the groups on `task` (None: on any), of each outer iteration."""
    values, steps = defaultdict(list), {}
    for row in rows:
        if task in (None, row["task"]):
            values[row["iteration"]].append(float(row[reward]))
            steps[row["iteration"]] = int(row["env_steps"]) / 1e6
    return list(steps.values()), [np.mean(values[i]) for i in steps]


def draw_curves(folder):
    """curves.png from metrics.csv: a panel a task (of at most six) and one for all, return against env steps."""
    from matplotlib.figure import Figure

    rows = read_metrics(folder)
    tasks = sorted({row["task"] for row in rows})
    panels = [*(tasks if len(tasks) <= 6 else []), None]
    figure = Figure(figsize=(4 * len(panels), 3.2), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels, strict=True):
        for reward, style in zip(REWARDS, ("C7:", "C0-", "C1--"), strict=True):
            axes.plot(*curve(rows, task, reward), style, label=reward.replace("_reward", ""))
        axes.set(title="all tasks" if task is None else f"task {task}", xlabel="million env steps")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("mean episode return")
    figure.axes[0].legend()
    figure.savefig(folder / "curves.png", dpi=110)
