"""Throughput of training, and where its time goes: python benchmark.py --env MovementBandits-v0"""

import contextlib
import io
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from mlsh import config
from mlsh.adapt import adam
from mlsh.envs import make_env
from mlsh.errors import UserError, run_command
from mlsh.logger import read_metrics
from mlsh.models import Hierarchy
from mlsh.ppo import update
from mlsh.rollout import collect, streams


@dataclass
class Args:
    """Print the env steps a second of train.py and the share of each part of an iteration."""

    env: str = "MovementBandits-v0"
    """Gymnasium id of a task family."""
    groups: tuple[int, ...] = (1, 10)
    """Numbers of task groups to measure."""
    device: str = "cpu"
    """Torch device."""
    tasks: int = 4
    """Outer iterations of train.py; the first is not counted."""


def whole_loop(flags, tasks):
    """Env steps a second of train.py as a user starts it, without videos, from its metrics.csv."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(__file__).with_name("train.py")
        more = ["--record", 0, "--tasks", tasks, "--wandb", "offline", "--test_episodes", 1, "--out", folder]
        run = subprocess.run([sys.executable, script, *map(str, [*flags, *more])], capture_output=True, text=True)
        if run.returncode:
            raise UserError(f"train.py failed: {run.stderr.strip().splitlines()[-1]}")
        rows = read_metrics(folder)
    steps = int(rows[-1]["env_steps"]) - int(rows[0]["env_steps"])
    return steps / (float(rows[-1]["seconds"]) - float(rows[0]["seconds"]))


def parts(cfg, repeats=20):
    """Seconds of the parts of an iteration: bare environment, collecting, the master's and the sub-policies' update."""
    groups = range(cfg.groups)
    env = make_env(cfg, cfg.groups * cfg.N)
    agent = Hierarchy.build(cfg, env)
    agent.master.reset(streams(0, 0, "master", groups))
    agent.subs.reset(streams(0, 0, "sub-policies", range(cfg.num_low)))
    master, low = adam(agent.master, cfg.hlr), adam(agent.subs, cfg.llr)
    rngs = streams(0, 0, "benchmark", groups)
    actions = collect(env, agent, rngs, **cfg.rollout).low.action.view(cfg.T, cfg.groups * cfg.N, -1).squeeze(-1)
    seconds = dict.fromkeys(("environment", "collect", "update master", "update sub-policies"), 0.0)

    @contextlib.contextmanager
    def clock(part):
        start = time.perf_counter()
        yield
        if cfg.device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds[part] += time.perf_counter() - start

    for i in range(repeats):
        with clock("environment"):
            env.reset(seed=i)
            for action in actions:
                env.step(action)
        with clock("collect"):
            rollout = collect(env, agent, rngs, low=False, explore=cfg.explore, **cfg.rollout)
        with clock("update master"):
            update(agent.master, master, rollout.master, rngs, **cfg.master_ppo)
        if i % 10 == 0:
            rollout = collect(env, agent, rngs, **cfg.rollout)
            with clock("update sub-policies"):
                update(agent.subs, low, rollout.low, rngs, **cfg.low_ppo(0))
    return {part: s / (repeats / 10 if part == "update sub-policies" else repeats) for part, s in seconds.items()}


def main():
    args = tyro.cli(Args, use_underscores=True)
    for groups in args.groups:
        flags = ["--env", args.env, "--groups", str(groups), "--device", args.device]
        with contextlib.redirect_stdout(io.StringIO()):
            cfg, _ = config.parse(flags, None)
        steps = groups * cfg.N * cfg.T
        rate = whole_loop(flags, args.tasks)
        print(f"{args.env}, --groups {groups}, {torch.get_num_threads()} threads: {rate:,.0f} env steps/s, whole loop")
        seconds = parts(cfg)
        for part, s in seconds.items():
            print(f"  {part:>20}: {1e3 * s:7.1f} ms for a rollout of {steps:,} steps ({steps / s:,.0f} steps/s)")
        sum_ = (cfg.W + cfg.U) * (seconds["collect"] + seconds["update master"])
        sum_ += cfg.U * seconds["update sub-policies"]
        print(f"  {'of a whole task':>20}: {100 * (cfg.W + cfg.U) * seconds['collect'] / sum_:.0f} % collect, ", end="")
        print(f"{100 * (cfg.W + cfg.U) * seconds['update master'] / sum_:.0f} % update master, ", end="")
        print(f"{100 * cfg.U * seconds['update sub-policies'] / sum_:.0f} % update sub-policies")


if __name__ == "__main__":
    run_command(main)
