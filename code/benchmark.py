"""Throughput of training, and where its time goes: python benchmark.py --env MovementBandits-v0"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from mlsh.config import Config
from mlsh.envs import make_env
from mlsh.envs.mujoco_tasks import MujocoTasks
from mlsh.errors import UserError, run_command
from mlsh.models import Hierarchy
from mlsh.ppo import Adam, update
from mlsh.rollout import collect
from mlsh.runs.log import MOMENTS
from mlsh.runs.metrics import read_metrics
from mlsh.sampling import Streams
from mlsh.settings import CountOrNone, Counts, Settings, at_least, cli, parse

SECONDS = 2  # to repeat a call for, at least


@dataclass
class Args(Settings):
    """Print the env steps a second of train.py, and the seconds of each part of an outer iteration."""

    env: tuple[str, ...] = ("MovementBandits-v0",)
    """Gymnasium ids of task families, one after the other."""
    groups: Counts = ()
    """Numbers of task groups to measure; the preset's if none is given."""
    device: str = "cpu"
    """Torch device."""
    tasks: Annotated[int, at_least(2)] = 4
    """Outer iterations of train.py, two or more; the first is not counted."""
    compile: tuple[Literal["on", "off"], ...] = ("off",)
    """Compile what learns from a minibatch; what is compiled after the first outer iteration counts, so give more."""
    sim_threads: CountOrNone = 0
    """Threads that simulate, in MuJoCo's families; 0 for all cores."""
    processes: CountOrNone = 0
    """Instead, compare torchrun with so many processes to one, and to so many runs at once; a thread each, twice."""
    threads: Counts = ()
    """Numbers of threads, for PyTorch and for what simulates, with which --repeats measures; else as many as cores."""
    repeats: CountOrNone = 0
    """Instead of parts measure all whole loops asked for in turn, so many times, as a machine's speed may change; or
    so often do what --processes says."""


def whole_loop(flags, tasks, launcher=(), copies=1, **environment):
    """Env steps and seconds of an outer iteration of train.py as a user starts it, without videos, by metrics.csv.

    Of `copies` runs at the same time, a pair each.
    """
    names = ("env_steps", "seconds")
    with tempfile.TemporaryDirectory() as folder:
        more = ["--record", 0, "--tasks", tasks, "--wandb", "offline", "--test_episodes", 2]
        command = [sys.executable, *launcher, Path(__file__).with_name("train.py"), *flags, *more, "--out"]
        outs = [Path(folder, str(copy)) for copy in range(copies)]
        started = []
        for out in outs:
            with open(f"{out}.log", "w") as log:
                words = [str(word) for word in (*command, out)]
                started.append(subprocess.Popen(words, stdout=log, stderr=log, env=os.environ | environment))
        for run, out in zip(started, outs, strict=True):
            if run.wait():
                lines = Path(f"{out}.log").read_text().strip().splitlines() or ["train.py has failed without a word"]
                raise UserError(next((line for line in lines if "error: " in line), lines[-1]))
        rows = [read_metrics(out) for out in outs]
    return [[(float(r[-1][name]) - float(r[0][name])) / (tasks - 1) for name in names] for r in rows]


def scaling(flags, cfg, args):
    """Print env steps a second of one process, of several at once that share nothing, and of as many by torchrun."""
    n = args.processes
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", n)
    ways = {"one run": {}, f"{n} runs at once": {"copies": n}, f"torchrun, {n} processes": {"launcher": launcher}}
    speeds = {way: [] for way in ways}
    for _ in range(args.repeats or 2):
        for way, how in ways.items():
            loops = whole_loop([*flags, "--sim_threads", "1"], args.tasks, **how, OMP_NUM_THREADS="1")
            speeds[way].append(sum(steps / seconds for steps, seconds in loops))
    print(f"{cfg.env} --groups {cfg.groups} --compile {cfg.compile}, a thread each, env steps/s:")
    one, apart, together = (statistics.mean(x) for x in speeds.values())
    for (way, each), mean in zip(speeds.items(), (one, apart, together), strict=True):
        print(f"  {way:<24}{mean:10,.0f}  x {mean / one:.2f}  ({', '.join(f'{x:,.0f}' for x in each)})")
    print(f"  torchrun has {100 * together / apart:.0f} % of what this machine can give", flush=True)


def new_agent(cfg, env):
    agent = Hierarchy.build(cfg, env)
    agent.master.reset(Streams(0, range(cfg.groups))(0, "master"))
    agent.sub_policies.reset(Streams(0, range(cfg.num_sub_policies))(0, "sub-policies"))
    return agent


def seconds(call, device="cpu"):
    """The mean seconds of a call, and what the last one gave."""
    call()  # it may compile
    start, repeats, spent = time.perf_counter(), 0, 0.0
    while spent < SECONDS:
        result = call()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        repeats, spent = repeats + 1, time.perf_counter() - start
    return spent / repeats, result


def parts(cfg):
    """Of an outer iteration, the seconds in the environment, the rest of collecting, and the updates of θ and φ; and
    the floating-point operations of all matrix products."""
    env = make_env(cfg, cfg.groups * cfg.N)
    agent = new_agent(cfg, env)
    master_optimizer, low_optimizer = (
        Adam(agent.master, cfg.master_lr),
        Adam(agent.sub_policies, cfg.sub_lr, apart=True),
    )
    rngs = Streams(0, range(cfg.groups))(0, "benchmark")
    action = collect(env, agent, rngs, **cfg.rollout).low.action[: env.num_envs]

    def cost(call):  # seconds, result and operations
        agent.master.compiled = agent.sub_policies.compiled = False  # for what is compiled is not counted
        with FlopCounterMode(display=False) as counter:
            call()
        agent.master.compiled = agent.sub_policies.compiled = cfg.compile == "on"
        return *seconds(call, cfg.device), counter.get_total_flops()

    def step_through():
        env.reset(seed=0)
        for _ in range(cfg.T):
            env.step(action)

    bare, _ = seconds(step_through)
    warm_up, rollout, in_warm_up = cost(lambda: collect(env, agent, rngs, low=False, **cfg.training_rollout(0)))
    theta, _, of_theta = cost(lambda: update(agent.master, master_optimizer, rollout.master, rngs, **cfg.master_ppo))
    joint, rollout, in_joint = cost(lambda: collect(env, agent, rngs, **cfg.training_rollout(0)))
    phi, _, of_phi = cost(lambda: update(agent.sub_policies, low_optimizer, rollout.low, rngs, **cfg.low_ppo(0)))
    rollouts, looks = cfg.W + cfg.U, len(MOMENTS)
    spent = {
        "environment": (rollouts + looks) * bare,
        "policies, GAE": (cfg.W + looks) * warm_up + cfg.U * joint - (rollouts + looks) * bare,
        "update of the masters": rollouts * theta,
        "update of the sub-policies": cfg.U * phi,
    }
    return spent, (cfg.W + looks) * in_warm_up + rollouts * of_theta + cfg.U * (in_joint + of_phi)


def matrix_product(cfg):
    """Floating-point operations a second of the masters' second layer alone, in a minibatch."""
    width = max(1, cfg.N * cfg.T // cfg.high_len // cfg.master_ppo["parts"])
    x, weight = (torch.randn(2 * cfg.groups, rows, cfg.hidden, device=cfg.device) for rows in (width, cfg.hidden))
    return 2 * x.numel() * cfg.hidden / seconds(lambda: x @ weight, cfg.device)[0]


def against_the_simulator(cfg, spent):
    """Add to `spent` the seconds a step of bare MuJoCo, and of a rollout through the same states, same actions.

    Both use the same threads. The rollout goes first, then MuJoCo alone repeats it.
    """
    env = make_env(cfg, cfg.groups * cfg.N)
    agent = new_agent(cfg, env)
    states = []
    rngs = Streams(0, range(cfg.groups))(0, "benchmark")
    start = time.perf_counter()
    rollout = collect(env, agent, rngs, on_step=lambda: states.append(env.state), **cfg.rollout)
    spent["collection"].append((time.perf_counter() - start) / rollout.outcome.steps)
    if rollout.outcome.steps < cfg.T * env.num_envs:
        raise UserError("a simulation diverged, and left less than whole episodes to compare")
    controls = [env.control(action) for action in rollout.low.action.view(cfg.T, env.num_envs, -1)]
    start = time.perf_counter()
    for state, control in zip(states, controls, strict=False):  # from the last state there is no step
        env.simulate(state, control)
    spent["bare MuJoCo"].append((time.perf_counter() - start) / rollout.outcome.steps)
    env.close()


def one_process(flags, cfg, args):
    """Print env steps a second of the whole loop, what MuJoCo alone could do, and where the time goes."""
    env = make_env(cfg, 1)
    spent = {"bare MuJoCo": [], "collection": []}
    for again in range(6):  # before and after the loop, as a machine's speed may change
        if again == 3:
            ((steps, whole),) = whole_loop(flags, args.tasks)
        if isinstance(env, MujocoTasks):
            against_the_simulator(cfg, spent)
    threads = f"{torch.get_num_threads()} threads"
    print(f"{cfg.env} --groups {cfg.groups}, {threads}, --compile {cfg.compile}: {steps / whole:,.0f} env steps/s")
    if spent["collection"]:
        bare, collection = (1 / statistics.mean(x) for x in spent.values())
        print(
            f"  bare MuJoCo {bare:,.0f}, collection {collection:,.0f} ({100 * collection / bare:.0f} %), "
            f"the whole loop {steps / whole:,.0f} ({100 * steps / whole / bare:.0f} %)"
        )
    shares, flop = parts(cfg)
    shares["log, wandb, new masters, the rest"] = whole - sum(shares.values())
    for part, took in shares.items():
        print(f"  {part:<34}{took:7.2f} s {100 * took / whole:4.0f} %")
    print(f"  {'an outer iteration':<34}{whole:7.2f} s  100 %")
    each, limit = flop / steps, matrix_product(cfg) * steps / flop
    print(f"  {each / 1e3:,.0f} kFLOP an env step; matrix products alone would do {limit:,.0f} env steps/s", flush=True)


def in_turn(measured, args):
    """Print env steps a second of whole loops, measured in turn, `args.repeats` times each."""
    speeds = {(i, n): [] for i in range(len(measured)) for n in args.threads or (torch.get_num_threads(),)}
    for _ in range(args.repeats):
        for (i, n), each in speeds.items():
            flags = [*measured[i][0], *(("--sim_threads", str(n)) if args.threads else ())]
            ((steps, spent),) = whole_loop(flags, args.tasks, OMP_NUM_THREADS=str(n))
            each.append(steps / spent)
            cfg = measured[i][1]
            what = f"{cfg.env} --groups {cfg.groups} --compile {cfg.compile}, {n} threads"
            summary = f"{statistics.median(each):,.0f} ({min(each):,.0f} to {max(each):,.0f})"
            print(f"{what}: {each[-1]:,.0f} env steps/s; median of {len(each)} {summary}", flush=True)


def main():
    args = cli(Args)
    args.validate()
    of_all = ["--device", args.device, "--sim_threads", str(args.sim_threads)]
    measured = []  # all before the first, so that mistakes are told at once
    for env, groups, compile in product(args.env, args.groups or (None,), args.compile):
        flags = ["--env", env, *of_all, "--compile", compile, *(("--groups", str(groups)) if groups else ())]
        cfg, _ = parse(Config, flags, load=None)
        if args.processes and not 1 < args.processes <= cfg.groups:
            raise UserError(f"--processes is {args.processes}: use 2 to {cfg.groups}, the number of task groups")
        make_env(cfg, 1).close()
        measured.append((flags, cfg))
    if not measured:
        raise UserError("--env names no task family; name one or more")
    if args.threads and (args.processes or args.sim_threads or not args.repeats):
        raise UserError("--threads is for whole loops in turn; add --repeats, without --processes and --sim_threads")
    if args.repeats and not args.processes:
        in_turn(measured, args)
        return
    for flags, cfg in measured:
        (scaling if args.processes else one_process)(flags, cfg, args)


if __name__ == "__main__":
    run_command(main)
