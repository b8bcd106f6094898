"""Logging to wandb, online or offline. Once wandb has started, its failures never stop the training."""

import contextlib
import dataclasses
import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import wandb
from tqdm import tqdm
from wandb.errors import UsageError

from mlsh.errors import UserError
from mlsh.settings import TrackedSettings

CODE = Path(__file__).parents[2]


class WandbTracker:
    """A run on wandb. If wandb fails, the error is printed once and all later calls do nothing.

    The step on wandb is the number of env steps. A continued run repeats the steps that it lost, and wandb ignores
    what it already has. Names without a section, which are those of the earlier port, get no charts of their own.
    """

    def __init__(self, cfg: TrackedSettings, folder: Path, run_id: str, machine: Mapping[str, Any]) -> None:
        """Start the wandb run as `start_wandb` does, and upload the code. `machine`: see `run.describe_machine`."""
        self._folder = folder
        self._run = start_wandb(cfg, folder, run_id, machine)
        self.run_id: str = self._run.id if self._run else run_id  # wandb chooses it in a sweep
        self._hidden: set[str] = set()
        self._best: tuple[Mapping[str, Any], float] | None = None
        self._attempt(save_code)

    def log(self, values: Mapping[str, Any], env_steps: int) -> None:
        """Log values by name at a number of env steps."""
        self._attempt(self._log, values, env_steps)

    def _log(self, run: Any, values: Mapping[str, Any], env_steps: int) -> None:
        for name in {name for name in values if "/" not in name} - self._hidden:
            self._hidden.add(name)
            run.define_metric(name, step_metric="env_steps", hidden=True)
        run.log({**values, "env_steps": env_steps}, step=env_steps)

    def log_image(self, name: str, path: Path, env_steps: int) -> None:
        """Log the film (.gif) or picture at `path`."""
        self._attempt(self._log_image, name, str(path), env_steps)

    def _log_image(self, run: Any, name: str, path: str, env_steps: int) -> None:
        media = wandb.Video(path, format="gif") if path.endswith(".gif") else wandb.Image(path)
        self._log(run, {name: media}, env_steps)

    def keep_best(self, snapshot: Mapping[str, Any], trained_reward: float) -> None:
        """Keep a checkpoint's data, to be uploaded at the end as the best one so far."""
        self._best = snapshot, trained_reward

    def finish(self, results: Mapping[str, Any], summary: Mapping[str, Any], env_steps: int) -> None:
        """Log the summary and the curves, upload checkpoints and results as artifacts, and end the wandb run.

        `results` is empty for a run that was interrupted: then there is no results.json.
        """
        self._attempt(lambda run: run.summary.update(summary))
        self.log_image("test/curves", self._folder / "curves.png", env_steps)
        self._attempt(self._upload, results, summary)
        self.close()

    def close(self) -> None:
        """End the wandb run."""
        self._attempt(lambda run: run.finish())
        self._run = None

    def _upload(self, run: Any, results: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
        """Upload the best checkpoint, if there is one, and then the last one with the results."""
        if self._best:
            snapshot, trained_reward = self._best
            best = self._artifact(run, snapshot, {"trained_reward": trained_reward})
            with best.new_file("checkpoint.pt", mode="wb") as file:
                torch.save(snapshot, file)
            run.log_artifact(best, aliases=["best"])
        path = self._folder / "checkpoint.pt"
        last = self._artifact(run, torch.load(path, weights_only=True), summary)
        for file in (path, self._folder / "results.json") if results else (path,):
            last.add_file(str(file))
        run.log_artifact(last, aliases=["last"])

    def _artifact(self, run: Any, data: Mapping[str, Any], rewards: Mapping[str, float]) -> wandb.Artifact:
        described = {name: data[name] for name in ("kind", "iteration", "env_steps")}
        described |= {name: data["config"][name] for name in ("env", "seed")}
        return wandb.Artifact(f"checkpoint-{run.id}", type="model", metadata=described | dict(rewards))

    def _attempt(self, call: Callable[..., object], *args: Any) -> None:
        """Call `call(run, *args)`; at the first exception print it and switch wandb off."""
        if self._run is None:
            return
        try:
            call(self._run, *args)
        except Exception as error:
            self._run = None
            with contextlib.suppress(Exception):
                wandb.teardown()  # otherwise its exit handler prints a traceback
            tqdm.write(f"wandb failed and is off from here on: {error}", file=sys.stderr)


def start_wandb(cfg: TrackedSettings, folder: Path, run_id: str, machine: Mapping[str, Any]) -> wandb.Run | None:
    """Start the wandb run in the mode of `cfg.wandb_mode`, and print where to see it.

    "auto" never asks for a login. It goes offline if there is no login or wandb cannot be reached. Returns None if an
    offline run does not start. Raises a UserError if the mode is "online" and wandb is not.
    """
    logging.raiseExceptions = False  # on a full disk, wandb's own log would print tracebacks
    wanted = mode = cfg.wandb_mode
    try:
        if mode == "auto":
            mode = "online" if wandb.login(prompt=False) else "offline"
        run = init_wandb(cfg, folder, run_id, mode, machine)
    except Exception as error:
        reason = " ".join(str(error).split())
        if wanted == "online":
            raise UserError(f"wandb is not online ({reason}); run `wandb login`, or use --wandb offline") from None
        if mode != "offline":
            return start_wandb(dataclasses.replace(cfg, wandb="offline"), folder, run_id, machine)  # type: ignore[type-var]
        print(f"wandb did not start, continuing without it: {reason}", file=sys.stderr)
        return None
    if run.offline:
        offline_runs = Path(run.dir).parent.parent
        # the shell must see the star unquoted
        pattern = f"{shlex.quote(str(offline_runs))}/offline-run-*-{shlex.quote(run.id)}"
        print(f"wandb is offline; to upload this run: `wandb login`, then `wandb sync {pattern}`", file=sys.stderr)
    else:
        print(f"wandb: {run.url}", file=sys.stderr)
    return run


def check_names(cfg: TrackedSettings) -> None:
    """Raise a UserError if wandb refuses the project's name, or the run's id in $WANDB_RUN_ID."""
    try:
        wandb.Settings(project=project_name(cfg), run_id=os.environ.get("WANDB_RUN_ID") or None)
    except UsageError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"wandb refuses a name ({reason}); change --wandb_project, or the variable it is from"
        ) from None


def project_name(cfg: TrackedSettings) -> str:
    """Return the name of the project on wandb."""
    return cfg.wandb_project or os.environ.get("WANDB_PROJECT") or "mlsh"


def init_wandb(cfg: TrackedSettings, folder: Path, run_id: str, mode: Any, machine: Mapping[str, Any]) -> wandb.Run:
    """Call `wandb.init` with this run's names, settings and x axis."""
    run = wandb.init(
        project=project_name(cfg),
        group=os.environ.get("WANDB_RUN_GROUP") or cfg.env.split(":")[-1],
        name=os.environ.get("WANDB_NAME") or folder.name,
        job_type=os.environ.get("WANDB_JOB_TYPE") or cfg.KIND,
        id=os.environ.get("WANDB_RUN_ID") or run_id,
        resume="allow",
        dir=str(folder),
        mode=mode,
        config={"kind": cfg.KIND, **cfg.as_dict(), **machine},
        settings=wandb.Settings(silent=True, console="wrap", init_timeout=30),
    )
    run.define_metric("env_steps", hidden=True)
    run.define_metric("*", step_metric="env_steps")
    return run


def save_code(run: wandb.Run) -> None:
    """Upload the package and the scripts next to it; only the package if it is installed without the scripts."""
    root = CODE if (CODE / "train.py").exists() else CODE / "mlsh"
    run.log_code(str(root), include_fn=lambda path: path.endswith(".py"))
