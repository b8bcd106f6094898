"""Film a checkpoint's agent with a fresh master and with one trained by warm-up: python render.py --help"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mlsh.config import Config
from mlsh.envs import make_env
from mlsh.errors import UserError, run_command
from mlsh.meta_test import adapt, load_agent, transferred
from mlsh.runs import checkpoint
from mlsh.runs.files import safe_name
from mlsh.runs.film import film
from mlsh.sampling import Streams, find_task
from mlsh.settings import Count, CountOrNone, NotNegative, Settings, cli, short


@dataclass
class Args(Settings):
    """Write two videos of one task: the master newly initialised, and trained."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder or checkpoint."""
    task: str = "0"
    """Task: a number 0 … n−1 in a finite family, else JSON."""
    out: str = ""
    """NAME.gif or .mp4; writes NAME-initialised and NAME-trained. Default: task-<task>.gif in the run folder, or, of a
    checkpoint that is in none, in the current one."""
    episodes: Count = 1
    """Episodes in a video."""
    every: Count = 1
    """Keep one frame of so many; the video is as many times as fast."""
    env: str = ""
    """Another environment than the run's own, as of evaluate.py."""
    updates: CountOrNone = 0
    """PPO updates of the master; 0 for the run's W, or without a warm-up U."""
    N: Annotated[CountOrNone, short("-N")] = 0
    """Episodes a rollout of its training; 0 for the run's."""
    T: Annotated[CountOrNone, short("-T")] = 0
    """Env steps of an episode; 0 for the run's, or those of --env."""
    master_lr: NotNegative = 0.0
    """Its learning rate; 0 for the run's."""
    device: str = "cpu"
    """Torch device."""


def main():
    args = cli(Args)
    args.validate()
    data = checkpoint.load(args.run, [Config])
    cfg = transferred(data["config"], args.env)
    cfg.device, cfg.N, cfg.T, cfg.master_lr = (
        args.device,
        args.N or cfg.N,
        args.T or cfg.T,
        args.master_lr or cfg.master_lr,
    )
    env = make_env(cfg, cfg.N)
    task = find_task(env, args.task, "--task")
    in_its_folder = args.run.name == "checkpoint.pt"  # where runs have it
    folder = args.run if args.run.is_dir() else args.run.parent if in_its_folder else Path()
    out = Path(args.out or folder / f"task-{safe_name(str(task))}.gif")
    if out.suffix not in (".gif", ".mp4"):
        raise UserError(f"--out is {out}: use a name that ends in .gif or .mp4")
    if not out.parent.is_dir():
        raise UserError(f"--out is {out}, but there is no folder {out.parent}; make it first")
    agent = load_agent(data, env)
    for name, updates in (("initialised", 0), ("trained", args.updates or cfg.W or cfg.U)):
        pupil, _ = adapt(agent, env, [task], cfg, updates)
        path = out.with_stem(f"{out.stem}-{name}")
        rngs = Streams(cfg.seed, [0])(0, "render")
        film(cfg, pupil, [task], rngs, lambda task, path=path: path, args.episodes, args.every)
        print(path)


if __name__ == "__main__":
    run_command(main)
