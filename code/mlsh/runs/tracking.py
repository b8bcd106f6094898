"""wandb, online or offline: once it has started it is never in the way of training."""

import contextlib
import dataclasses
import logging
import os
import shlex
import sys
from pathlib import Path

import wandb
from tqdm import tqdm

from mlsh.errors import UserError

CODE = Path(__file__).parents[2]


class Tracker:
    """A run on wandb; where wandb fails, which is said once, nothing. `machine`: what the run is made with.

    wandb's own steps are env steps: what a continued run has logged before is at the same ones, and not shown twice.
    """

    def __init__(self, cfg, folder, run_id, machine):
        self._folder = folder
        self._run = start_wandb(cfg, folder, run_id, machine)
        self._try(save_code)

    def log(self, values, env_steps):
        """Values by name, at so many env steps."""
        self._try(lambda run: run.log(values | {"env_steps": env_steps}, step=env_steps))

    def videos(self, names, path, env_steps):
        """The GIF at `path`, under all these names."""
        self._try(lambda run: self.log({name: wandb.Video(str(path), format="gif") for name in names}, env_steps))

    def finish(self, results, summary, env_steps):
        """The last word: what the final test gave, curves, checkpoint and results as an artifact."""
        self._try(self._finish, results, summary, env_steps)

    def abandon(self):
        self._try(lambda run: run.finish())

    def _finish(self, run, results, summary, env_steps):
        run.summary.update(summary)
        self.log({"curves": wandb.Image(str(self._folder / "curves.png"))}, env_steps)
        artifact = wandb.Artifact(f"checkpoint-{run.id}", type="model")
        for name in ("checkpoint.pt", "results.json") if results else ("checkpoint.pt",):
            artifact.add_file(str(self._folder / name))
        run.log_artifact(artifact)
        run.finish()
        self._run = None

    def _try(self, call, *args):
        """wandb may fail as it likes: say so once and go on without it."""
        if self._run is None:
            return
        try:
            call(self._run, *args)
        except Exception as error:
            self._run = None
            with contextlib.suppress(Exception):
                wandb.teardown()  # else its exit handler prints a traceback
            tqdm.write(f"wandb failed and is off from here on: {error}", file=sys.stderr)


def start_wandb(cfg, folder, run_id, machine):
    """The wandb run, online or offline as `cfg.wandb_mode` says, or None where an offline one does not start.

    auto never asks for a login, and falls back to offline where there is none or wandb cannot be reached. Raises a
    UserError if it is to be online and is not.
    """
    logging.raiseExceptions = False  # wandb's own log on a full disk would print tracebacks
    wanted = mode = cfg.wandb_mode
    try:
        if mode == "auto":
            mode = "online" if wandb.login(prompt=False) else "offline"
        run = init_wandb(cfg, folder, run_id, mode, machine)
    except Exception as error:
        reason = " ".join(str(error).split())
        if wanted == "online":
            raise UserError(f"wandb is not online ({reason}); `wandb login`, or use --wandb offline") from None
        if mode != "offline":
            return start_wandb(dataclasses.replace(cfg, wandb="offline"), folder, run_id, machine)
        print(f"wandb did not start, going on without it: {reason}", file=sys.stderr)
        return None
    if run.offline:
        parts = Path(run.dir).parent.parent
        parts = f"{shlex.quote(str(parts))}/offline-run-*-{run_id}"  # the shell is to see the star
        print(f"wandb is offline; to see it, `wandb login`, then `wandb sync {parts}`", file=sys.stderr)
    else:
        print(f"wandb: {run.url}", file=sys.stderr)
    return run


def init_wandb(cfg, folder, run_id, mode, machine):
    run = wandb.init(
        project=cfg.wandb_project or os.environ.get("WANDB_PROJECT") or "mlsh",
        group=cfg.wandb_group or os.environ.get("WANDB_RUN_GROUP") or cfg.env.split(":")[-1],
        name=cfg.wandb_name or os.environ.get("WANDB_NAME") or folder.name,
        id=run_id,
        resume="allow",
        dir=str(folder),
        mode=mode,
        config=cfg.as_dict() | machine,
        settings=wandb.Settings(silent=True, console="wrap", init_timeout=30),
    )
    run.define_metric("env_steps")
    run.define_metric("*", step_metric="env_steps")
    return run


def save_code(run):
    """The package and the scripts beside it, as an artifact; of an installed package no neighbours."""
    root = CODE if (CODE / "train.py").exists() else CODE / "mlsh"
    run.log_code(str(root), include_fn=lambda path: path.endswith(".py"))
