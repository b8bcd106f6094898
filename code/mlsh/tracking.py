"""wandb, online or offline, and never in the way of training."""

import contextlib
import dataclasses
import logging
import sys
from pathlib import Path

import wandb


class Tracker:
    """A run on wandb; where wandb fails, of which `say` tells once, nothing."""

    def __init__(self, cfg, folder, run_id, say):
        self._folder, self._say = folder, say
        self._run = start_wandb(cfg, folder, run_id)

    def log(self, values, env_steps):
        """Values by name, at so many env steps."""
        self._try(lambda run: run.log(values | {"env_steps": env_steps}))

    def video(self, name, path, env_steps):
        """The GIF at `path`."""
        self._try(lambda run: run.log({name: wandb.Video(str(path), format="gif"), "env_steps": env_steps}))

    def finish(self, results):
        """The last word: returns of the final test, curves, the checkpoint as an artifact."""
        self._try(self._finish, results)

    def abandon(self):
        self._try(lambda run: run.finish())

    def _finish(self, run, results):
        for row in results.get("test", []):
            run.summary[f"{row['task']}_test_return"] = row["return"]
        run.log({"curves": wandb.Image(str(self._folder / "curves.png"))})
        artifact = wandb.Artifact(f"checkpoint-{run.id}", type="model")
        artifact.add_file(str(self._folder / "checkpoint.pt"))
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
            self._say(f"wandb failed and is off from here on: {error}")


def start_wandb(cfg, folder, run_id):
    """The wandb run, online or offline as --wandb says, or None where it does not start.

    auto never asks for a login, and falls back to offline where there is none or wandb cannot be reached.
    """
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
