"""Throughput of training, and where its time goes: python benchmark.py --env MovementBandits-v0"""

import contextlib
import functools
import io
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import cleandoc
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from unittest import mock

import torch
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from mlsh import parallel
from mlsh.config import Config
from mlsh.envs import make_env
from mlsh.envs.base import VectorTasks
from mlsh.envs.mujoco_tasks import MujocoTasks
from mlsh.errors import UserError, run_command
from mlsh.models import Hierarchy
from mlsh.optim import Adam
from mlsh.ppo import update
from mlsh.rollout import collect
from mlsh.runs import film
from mlsh.runs.log import MOMENTS, MLSHLog
from mlsh.runs.metrics import read_metrics
from mlsh.sampling import Streams
from mlsh.settings import DESCRIBED, CountOrZero, Counts, Settings, at_least, cli, parse

T = TypeVar("T")
Measured = tuple[list[str], Config]  # flags of train.py, and its settings
TRAIN = str(Path(__file__).with_name("train.py"))
PARTS: Sequence[str] = ("environment", "policies, GAE", "update of the masters", "update of the sub-policies")


@dataclass
class Args(Settings):
    """Print the env steps per second of train.py, and the seconds of each part of an outer iteration.

    Examples:
        python benchmark.py --groups 1 10
        python benchmark.py --env AntBandits-v1 --processes 2 --tasks 2
    """

    env: tuple[str, ...] = ("MovementBandits-v0",)
    """Gymnasium ids of task families, measured one after the other."""
    groups: Annotated[Counts, DESCRIBED] = ()
    """Numbers of task groups to measure. Default: that of the preset."""
    device: str = "cpu"
    """Torch device. On a GPU, timing the parts slows the loop down; --repeats avoids that."""
    tasks: Annotated[int, at_least(2)] = 4
    """Outer iterations of train.py. The first is not counted."""
    compile: tuple[Literal["on", "off"], ...] = ("off",)
    """Compile the PPO update. What is compiled after the first outer iteration counts, so use more --tasks."""
    sim_threads: CountOrZero = 0
    """Simulation threads of the MuJoCo families; 0 for all cores."""
    processes: CountOrZero = 0
    """Compare torchrun with this many processes, this many separate runs at once, and one run; one thread each."""
    threads: Annotated[Counts, DESCRIBED] = ()
    """With --repeats: thread counts to compare, such as 1 2, for PyTorch and the simulation. Default: all cores."""
    repeats: CountOrZero = 0
    """Time only whole training loops, this many times each, taking turns. With --processes: repeat that comparison."""


def loop_flags(tasks: int) -> list[str]:
    return ["--record", "0", "--tasks", str(tasks), "--wandb", "offline", "--test_episodes", "2"]


def whole_loop(
    flags: Sequence[str], tasks: int, launcher: Sequence[str] = (), copies: int = 1, **environment: str
) -> list[tuple[float, float]]:
    """Run train.py as a user starts it, without videos, in so many `copies` at the same time.

    Returns the env steps and the seconds of an outer iteration for each copy, from its metrics.csv.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *launcher, TRAIN, *flags, *loop_flags(tasks), "--out"]
        outs = [Path(folder, str(copy)) for copy in range(copies)]
        runs = []
        for out in outs:
            with open(f"{out}.log", "w") as log:
                env = os.environ | environment
                runs.append(subprocess.Popen([*command, str(out)], stdout=log, stderr=log, env=env))
        for run, out in zip(runs, outs, strict=True):
            if run.wait():
                lines = Path(f"{out}.log").read_text().strip().splitlines() or ["train.py failed without a message"]
                raise UserError(next((line for line in lines if "error: " in line), lines[-1]))
        return [per_outer_iteration(out, tasks) for out in outs]


def per_outer_iteration(run: Path, tasks: int) -> tuple[float, float]:
    """The mean env steps and seconds of the outer iterations after the first."""
    rows = read_metrics(run)
    steps, seconds = ((float(rows[-1][name]) - float(rows[0][name])) / (tasks - 1) for name in ("env_steps", "seconds"))
    return steps, seconds


def compare_processes(flags: Sequence[str], cfg: Config, args: Args) -> None:
    """Print the env steps per second of one process, of several independent runs at once, and of torchrun."""
    n = args.processes
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n))
    setups: dict[str, dict[str, Any]] = {
        "one run": {},
        f"{n} runs at once": {"copies": n},
        f"torchrun, {n} processes": {"launcher": launcher},
    }
    speeds: dict[str, list[float]] = {name: [] for name in setups}
    for _ in range(args.repeats or 2):
        for name, setup in setups.items():
            loops = whole_loop([*flags, "--sim_threads", "1"], args.tasks, **setup, OMP_NUM_THREADS="1")
            speeds[name].append(sum(steps / seconds for steps, seconds in loops))
    print(f"{cfg.env} --groups {cfg.groups} --compile {cfg.compile}, one thread each, env steps/s:")
    one, independent, together = (statistics.mean(x) for x in speeds.values())
    for (name, each), mean in zip(speeds.items(), (one, independent, together), strict=True):
        print(f"  {name:<24}{mean:10,.0f}  x {mean / one:.2f}  ({', '.join(f'{x:,.0f}' for x in each)})")
    print(f"  torchrun reaches {100 * together / independent:.0f} % of the independent runs", flush=True)


def new_agent(cfg: Config, env: VectorTasks) -> Hierarchy:
    agent = Hierarchy.build(cfg, env)
    agent.master.reset(Streams(0, range(cfg.groups))(0, "master"))
    agent.sub_policies.reset(Streams(0, range(cfg.num_sub_policies))(0, "sub-policies"))
    return agent


def timed(function: Callable[..., T], part: str, spent: dict[str, float], device: str) -> Callable[..., T]:
    """`function`, which adds its seconds to `spent[part]`, without those of timed functions that it calls."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> T:
        if torch.compiler.is_compiling():  # within a larger function, whose seconds count
            return function(*args, **kwargs)
        wait()
        start, inner = time.perf_counter(), sum(spent.values())
        try:
            return function(*args, **kwargs)
        finally:
            wait()
            spent[part] += time.perf_counter() - start - (sum(spent.values()) - inner)

    return call


def timed_loop(flags: Sequence[str], cfg: Config, tasks: int) -> tuple[float, float, dict[str, float]]:
    """Run train.py in this process, and time its parts.

    Returns the env steps and the seconds of an outer iteration, and how many of these seconds were spent in each part.
    Every second counts once, so what is left is never negative.
    """
    environment, policies, masters, sub_policies = PARTS
    spent = dict.fromkeys(PARTS, 0.0)
    after: list[dict[str, float]] = []  # `spent` after each outer iteration
    main = runpy.run_path(TRAIN)["main"].__wrapped__
    names, env = main.__globals__, type(make_env(cfg, 1))
    of = functools.partial(timed, spent=spent, device=cfg.device)
    outer_iteration_done = MLSHLog.outer_iteration_done

    def note(*args: Any) -> None:
        outer_iteration_done(*args)
        after.append(dict(spent))

    if cfg.compile == "on":
        torch.compiler.reset()  # as in a new process
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as out,
        mock.patch.object(sys, "argv", ["train.py", *flags, *loop_flags(tasks), "--out", out]),
        mock.patch.object(env, "reset", of(env.reset, environment)),
        mock.patch.object(env, "step", of(env.step, environment)),
        mock.patch.object(film, "evaluate", of(film.evaluate, policies)),
        mock.patch.object(parallel, "update", of(parallel.update, sub_policies)),
        mock.patch.dict(names, collect=of(names["collect"], policies), update=of(names["update"], masters)),
        mock.patch.object(MLSHLog, "outer_iteration_done", note),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        main()
        steps, seconds = per_outer_iteration(Path(out), tasks)
    return steps, seconds, {part: (after[-1][part] - after[0][part]) / (tasks - 1) for part in PARTS}


def operations(cfg: Config) -> int:
    """The floating-point operations of all matrix products in an outer iteration."""
    env = make_env(cfg, cfg.groups * cfg.N)
    agent = new_agent(cfg, env)
    rngs = Streams(0, range(cfg.groups))(0, "benchmark")
    settings = cfg.training_rollout(0)

    def count(call: Callable[[], T]) -> tuple[int, T]:
        with FlopCounterMode(display=False) as counter:
            result = call()
        return counter.get_total_flops(), result

    joint, rollout = count(lambda: collect(env, agent, rngs, settings))
    batch = rollout.sub_policies
    assert batch is not None
    warm_up, _ = count(lambda: collect(env, agent, rngs, settings, for_sub_policies=False))
    optimizer, sub_optimizer = Adam(agent.master, 0), Adam(agent.sub_policies, 0, per_member=True)
    theta, _ = count(lambda: update(agent.master, optimizer, rollout.master, rngs, cfg.master_ppo))
    phi, _ = count(lambda: update(agent.sub_policies, sub_optimizer, batch, rngs, cfg.sub_ppo(0)))
    return (cfg.W + len(MOMENTS)) * warm_up + (cfg.W + cfg.U) * theta + cfg.U * (joint + phi)


def matrix_product_speed(cfg: Config) -> float:
    """Floating-point operations per second of the masters' second layer alone, in a minibatch."""
    width = max(1, cfg.N * cfg.T // cfg.high_len // cfg.master_ppo.minibatches)
    x, weight = (torch.randn(2 * cfg.groups, rows, cfg.hidden, device=cfg.device) for rows in (width, cfg.hidden))
    timer = Timer("x @ weight", globals={"x": x, "weight": weight}, num_threads=torch.get_num_threads())
    return 2 * x.numel() * cfg.hidden / timer.blocked_autorange(min_run_time=2).median


def compare_with_simulator(cfg: Config) -> tuple[float, float]:
    """The seconds per env step of bare MuJoCo, and of a rollout through the same states with the same actions.

    Both use the same threads. The rollout goes first, and MuJoCo alone repeats it.
    """
    env = make_env(cfg, cfg.groups * cfg.N)
    assert isinstance(env.unwrapped, MujocoTasks)
    simulator, states = env.unwrapped, []
    agent = new_agent(cfg, env)
    rngs = Streams(0, range(cfg.groups))(0, "benchmark")
    start = time.perf_counter()
    rollout = collect(env, agent, rngs, cfg.rollout, on_step=lambda: states.append(simulator.state))
    collection = (time.perf_counter() - start) / rollout.outcome.steps
    if rollout.outcome.steps < cfg.T * env.num_envs or rollout.sub_policies is None:
        raise UserError("a simulation diverged, and left less than whole episodes to compare")
    actions = rollout.sub_policies.action.view(cfg.T, env.num_envs, -1)
    controls = [simulator.control(action) for action in actions]
    start = time.perf_counter()
    for state, control in zip(states, controls, strict=False):  # no step starts from the last state
        simulator.simulate(state, control)
    bare = (time.perf_counter() - start) / rollout.outcome.steps
    env.close()
    return bare, collection


def measure_one_process(flags: Sequence[str], cfg: Config, args: Args) -> None:
    """Print the env steps per second of the whole loop, those of MuJoCo alone, and where the time goes."""
    simulated = isinstance(make_env(cfg, 1).unwrapped, MujocoTasks)
    compared = [compare_with_simulator(cfg) for _ in range(3) if simulated]
    steps, whole, seconds = timed_loop(flags, cfg, args.tasks)
    compared += [compare_with_simulator(cfg) for _ in range(3) if simulated]  # again, as a machine's speed may change
    threads = f"{torch.get_num_threads()} threads"
    print(f"{cfg.env} --groups {cfg.groups}, {threads}, --compile {cfg.compile}: {steps / whole:,.0f} env steps/s")
    if compared:
        bare, collection = (1 / statistics.mean(x) for x in zip(*compared, strict=True))
        print(
            f"  bare MuJoCo {bare:,.0f}, collection {collection:,.0f} ({100 * collection / bare:.0f} %), "
            f"the whole loop {steps / whole:,.0f} ({100 * steps / whole / bare:.0f} %)"
        )
    seconds["log, wandb, new masters, the rest"] = whole - sum(seconds.values())
    for part, spent in seconds.items():
        print(f"  {part:<34}{spent:7.2f} s {100 * spent / whole:4.0f} %")
    print(f"  {'an outer iteration':<34}{whole:7.2f} s  100 %")
    per_step = operations(cfg) / steps
    limit = matrix_product_speed(cfg) / per_step
    print(
        f"  {per_step / 1e3:,.0f} kFLOP per env step; matrix products alone allow {limit:,.0f} env steps/s", flush=True
    )


def measure_in_turn(measured: Sequence[Measured], args: Args) -> None:
    """Print the env steps per second of whole loops, measured in turn, `args.repeats` times each."""
    threads = args.threads or (torch.get_num_threads(),)
    speeds: dict[tuple[int, int], list[float]] = {(i, n): [] for i in range(len(measured)) for n in threads}
    for _ in range(args.repeats):
        for (i, n), each in speeds.items():
            flags, cfg = measured[i]
            more = ("--sim_threads", str(n)) if args.threads else ()
            ((steps, seconds),) = whole_loop([*flags, *more], args.tasks, OMP_NUM_THREADS=str(n))
            each.append(steps / seconds)
            what = f"{cfg.env} --groups {cfg.groups} --compile {cfg.compile}, {n} threads"
            summary = f"{statistics.median(each):,.0f} ({min(each):,.0f} to {max(each):,.0f})"
            print(f"{what}: {each[-1]:,.0f} env steps/s; median of {len(each)}: {summary}", flush=True)


def read_settings(args: Args) -> list[Measured]:
    """What is to be measured. All settings are checked before the first measurement."""
    shared = ["--device", args.device, "--sim_threads", str(args.sim_threads)]
    measured: list[Measured] = []
    for env, groups, compile_ in product(args.env, args.groups or (None,), args.compile):
        flags = ["--env", env, *shared, "--compile", compile_, *(("--groups", str(groups)) if groups else ())]
        cfg, _ = parse(Config, flags, load=lambda _: {})
        if args.processes and not 1 < args.processes <= cfg.groups:
            raise UserError(f"--processes is {args.processes}: use 2 to {cfg.groups}, the number of task groups")
        make_env(cfg, 1).close()
        measured.append((flags, cfg))
    if not measured:
        raise UserError("--env names no task family; name one or more")
    if args.threads and (args.processes or args.sim_threads or not args.repeats):
        raise UserError("--threads needs --repeats, and excludes --processes and --sim_threads")
    return measured


def main() -> None:
    args = cli(Args, description=cleandoc(Args.__doc__ or ""))
    args.validate()
    measured = read_settings(args)
    if args.repeats and not args.processes:
        measure_in_turn(measured, args)
        return
    for flags, cfg in measured:
        if args.processes:
            compare_processes(flags, cfg, args)
        else:
            measure_one_process(flags, cfg, args)


if __name__ == "__main__":
    run_command(main)
