"""Film a checkpoint's agent with an untrained and a trained master: python render.py --help"""

import dataclasses
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from mlsh.config import Config
from mlsh.envs import make_env
from mlsh.envs.mujoco_tasks import MujocoTasks
from mlsh.errors import UserError, command
from mlsh.meta_test import adapt, load_agent, transferred
from mlsh.runs import checkpoint
from mlsh.runs.files import safe_name
from mlsh.runs.film import film
from mlsh.sampling import Streams, find_task
from mlsh.settings import Count, CountOrZero, MasterSettings, cli


@dataclass(kw_only=True)
class Args(MasterSettings):
    """Write two videos of one task: one with a new, untrained master, and one with a trained master.

    Examples:
        python render.py runs/mb-0 --task 1 --out x.gif
        python render.py AntBandits-v1 --task 0 --episodes 2 --out ant.mp4
    """

    RENAMED: ClassVar[dict[str, str]] = {"hlr": "master_lr"}

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder or checkpoint."""
    task: str = "0"
    """Task: a number 0 … n−1 in a finite family, else JSON."""
    out: str = ""
    """NAME.gif or NAME.mp4, for NAME-untrained and NAME-trained. If empty: task-TASK.gif in the run folder."""
    episodes: Count = 1
    """Episodes per video."""
    every: Count = 1
    """Keep only every n-th frame. The video then runs n times as fast."""
    env: str = ""
    """Another environment with the same spaces, played with -T and --high_len of its preset."""
    updates: CountOrZero = 0
    """PPO updates of the trained master; 0 for W of the run, or U if it had no warm-up."""
    follow: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Let the camera follow the agent (MuJoCo families)."""
    device: str = "cpu"
    """Torch device."""


@command
def main() -> None:
    args = cli(Args, description=cleandoc(Args.__doc__ or ""))
    args.validate()
    data = checkpoint.load(args.run, [Config])
    started_in, is_folder = Path.cwd(), args.run.is_dir()  # before an environment can change the working folder
    cfg = transferred(data["config"], args.env)
    given = args.given("N", "T", "high_len", "master_sees", "master_gamma", "master_lr")
    cfg = dataclasses.replace(cfg, device=args.device, env_workers=0, **given)
    cfg.validate()
    env = make_env(cfg, cfg.N)
    if args.follow and not isinstance(env, MujocoTasks):
        raise UserError(f"--follow is for MuJoCo families, and {cfg.env} is none; leave it out")
    task = find_task(env, args.task, "--task")
    in_run_folder = args.run.name == "checkpoint.pt"
    folder = args.run if is_folder else args.run.parent if in_run_folder else Path()
    out = Path(args.out or folder / f"task-{safe_name(str(task))}.gif")
    if out.suffix not in (".gif", ".mp4"):
        raise UserError(f"--out is {out}: use a name that ends in .gif or .mp4")
    if not (started_in / out.parent).is_dir():
        raise UserError(f"--out is {out}, but there is no folder {out.parent}; make it first")
    agent = load_agent(data | {"config": cfg}, env)  # on --device, not on that of the run
    for name, updates in (("untrained", 0), ("trained", args.updates or cfg.W or cfg.U)):
        adapted, _ = adapt(agent, env, [task], cfg, updates)
        path = out.with_stem(f"{out.stem}-{name}")
        rngs = Streams(cfg.seed, [0])(0, "render")
        film(
            cfg,
            adapted,
            [task],
            rngs,
            lambda _, path=path: started_in / path,
            args.episodes,
            args.every,
            follow=args.follow,
        )
        print(path)


if __name__ == "__main__":
    main()
