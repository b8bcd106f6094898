"""Throughput of training, and where its time goes: python benchmark.py --env MovementBandits-v0"""

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from mlsh import config
from mlsh.envs import make_env
from mlsh.errors import UserError, run_command
from mlsh.logger import read_metrics
from mlsh.models import Hierarchy
from mlsh.ppo import adam, update
from mlsh.rollout import collect, streams

REPEATS = 10


@dataclass
class Args:
    """Print the env steps a second of train.py, and the seconds of each part of an outer iteration."""

    env: str = "MovementBandits-v0"
    """Gymnasium id of a task family."""
    groups: tuple[int, ...] = (1, 10)
    """Numbers of task groups to measure."""
    device: str = "cpu"
    """Torch device."""
    tasks: int = 4
    """Outer iterations of train.py, two or more; the first is not counted."""


def whole_loop(flags, tasks):
    """Env steps and seconds of an outer iteration of train.py as a user starts it, without videos, by metrics.csv."""
    with tempfile.TemporaryDirectory() as folder:
        more = ["--record", 0, "--tasks", tasks, "--wandb", "offline", "--test_episodes", 2, "--out", folder]
        command = [sys.executable, Path(__file__).with_name("train.py"), *flags, *more]
        run = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        if run.returncode:
            raise UserError(run.stderr.strip().splitlines()[-1].removeprefix("train.py: error: "))
        rows = read_metrics(folder)
    return [(float(rows[-1][name]) - float(rows[0][name])) / (tasks - 1) for name in ("env_steps", "seconds")]


def parts(cfg):
    """Seconds an outer iteration spends in the environment, the rest of collecting, and the updates of θ and φ."""
    groups = range(cfg.groups)
    env = make_env(cfg, cfg.groups * cfg.N)
    agent = Hierarchy.build(cfg, env)
    agent.master.reset(streams(0, 0, "master", groups))
    agent.subs.reset(streams(0, 0, "sub-policies", range(cfg.num_low)))
    master_optimizer, low_optimizer = adam(agent.master, cfg.hlr), adam(agent.subs, cfg.llr)
    rngs = streams(0, 0, "benchmark", groups)
    action = collect(env, agent, rngs, **cfg.rollout).low.action[: env.num_envs]

    def seconds(call, repeats=REPEATS):
        start = time.perf_counter()
        for _ in range(repeats):
            result = call()
        if cfg.device.startswith("cuda"):
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / repeats, result

    def step_through():
        env.reset(seed=0)
        for _ in range(cfg.T):
            env.step(action)

    bare, _ = seconds(step_through)
    warm_up, rollout = seconds(lambda: collect(env, agent, rngs, low=False, explore=cfg.explore, **cfg.rollout))
    theta, _ = seconds(lambda: update(agent.master, master_optimizer, rollout.master, rngs, **cfg.master_ppo))
    joint, rollout = seconds(lambda: collect(env, agent, rngs, explore=cfg.explore, **cfg.rollout))
    phi, _ = seconds(lambda: update(agent.subs, low_optimizer, rollout.low, rngs, **cfg.low_ppo(0)), repeats=2)
    rollouts, looks = cfg.W + cfg.U, 3  # train.py plays three times only to measure
    return {
        "environment": (rollouts + looks) * bare,
        "policies, GAE": (cfg.W + looks) * warm_up + cfg.U * joint - (rollouts + looks) * bare,
        "update of the masters": rollouts * theta,
        "update of the sub-policies": cfg.U * phi,
    }


def main():
    args = tyro.cli(Args, use_underscores=True)
    if args.tasks < 2:
        raise UserError(f"--tasks is {args.tasks}: use 2 or more")
    for groups in args.groups:
        flags = ["--env", args.env, "--groups", str(groups), "--device", args.device]
        cfg, _ = config.parse(flags, load=None)
        steps, whole = whole_loop(flags, args.tasks)
        print(f"{args.env} --groups {groups}, {torch.get_num_threads()} threads: {steps / whole:,.0f} env steps/s")
        spent = parts(cfg)
        spent["log, wandb, new masters, the rest"] = whole - sum(spent.values())
        for part, seconds in spent.items():
            print(f"  {part:<34}{seconds:7.2f} s {100 * seconds / whole:4.0f} %")
        print(f"  {'an outer iteration':<34}{whole:7.2f} s  100 %", flush=True)


if __name__ == "__main__":
    run_command(main)
