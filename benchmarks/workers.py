"""Env steps per second of environments by other people, by the number of processes: python benchmarks/workers.py ENV …

Run it with PYTHONPATH=code:examples and OMP_NUM_THREADS=1. It prints every measurement, and then medians and ranges:

alone       processes that step their share of the copies with random actions, and nothing else
collecting  rollouts for the masters
training    train.py --compile off with 2 warm-up and 8 joint iterations, the proportion of the defaults
torchrun    the same, with so many processes instead of workers
"""

import argparse
import dataclasses
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from benchmark import whole_loop
from mlsh.config import Config
from mlsh.envs import make_env
from mlsh.envs.gymnasium_tasks import GymnasiumTasks
from mlsh.models import Hierarchy
from mlsh.rollout import collect
from mlsh.sampling import Streams, balanced_tasks

PROCESSES = (1, 2)
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
Measured = dict[tuple[str, str, int], list[float]]  # (environment, what, processes) -> env steps per second


def alone(cfg: Config, copies: int, ready: Any, seconds: Any) -> None:
    """Step so many copies through a rollout, and put the time that it took into a queue."""
    tasks = make_env(dataclasses.replace(cfg, env_workers=1), copies)
    assert isinstance(tasks, GymnasiumTasks)
    tasks.reset(seed=0)
    ready.wait(60)
    start = time.perf_counter()
    for _ in range(cfg.T):
        for env in tasks._copies.envs:
            *_, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                env.reset()
    seconds.put(time.perf_counter() - start)


def measure_alone(cfg: Config, processes: int) -> float:
    context, slots = multiprocessing.get_context("spawn"), cfg.groups * cfg.N
    ready, seconds = context.Barrier(processes), context.Queue()
    started = [context.Process(target=alone, args=(cfg, slots // processes, ready, seconds)) for _ in range(processes)]
    for process in started:
        process.start()
    slowest = max(seconds.get(timeout=600) for _ in started)
    for process in started:
        process.join()
    return cfg.T * (slots // processes) * processes / slowest


class Collecting:
    """Rollouts with so many processes, to be timed again and again."""

    def __init__(self, cfg: Config, processes: int) -> None:
        self._cfg, self._streams = cfg, Streams(0, range(cfg.groups))
        self._env = make_env(dataclasses.replace(cfg, env_workers=processes), cfg.groups * cfg.N)
        self._env.set_task(balanced_tasks(self._env, self._streams, 0, cfg.groups))
        self._agent = Hierarchy.build(cfg, self._env)

    def measure(self, i: int) -> float:
        start = time.perf_counter()
        rngs = self._streams(i, "benchmark")
        rollout = collect(self._env, self._agent, rngs, self._cfg.rollout, for_sub_policies=False)
        return rollout.outcome.steps / (time.perf_counter() - start)


def measure_training(env: str, workers: int, launcher: Sequence[str] = ()) -> float:
    flags = f"--env {env} -W 2 -U 8 --compile off --env_workers {workers}"
    [(steps, seconds)] = whole_loop(flags.split(), tasks=2, launcher=launcher)
    return steps / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env", nargs="+", help="such as running:HalfCheetahDir-v0 or rooms:Rooms-v0")
    parser.add_argument("--repeats", type=int, default=6, help="measurements of each number (default: 6)")
    args = parser.parse_args()
    measured: Measured = {}

    def note(env: str, what: str, processes: int, speed: float) -> None:
        measured.setdefault((env, what, processes), []).append(speed)
        print(f"{env}, {what}, {processes}: {speed:,.0f} env steps/s", flush=True)

    for env in args.env:
        cfg = dataclasses.replace(Config.defaults(env), **{k: x.value for k, x in Config.derived(env, 0).items()})
        collecting = {n: Collecting(cfg, n) for n in PROCESSES}
        for i in range(args.repeats):
            for n in PROCESSES:
                note(env, "alone", n, measure_alone(cfg, n))
                note(env, "collecting", n, collecting[n].measure(i))
                note(env, "training", n, measure_training(env, n))
            note(env, "torchrun", 2, measure_training(env, 1, TORCHRUN))
    rows = [(*key, f"{statistics.median(x):,.0f} ({min(x):,.0f} to {max(x):,.0f})") for key, x in measured.items()]
    print(tabulate(rows, ("environment", "", "processes", "env steps/s"), "github"))


if __name__ == "__main__":
    main()
