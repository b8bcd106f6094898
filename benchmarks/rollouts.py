"""Milliseconds to collect a rollout of MovementBandits with 1 to 16 sub-policies: python benchmarks/rollouts.py

Eight groups with forty slots each. Run it with PYTHONPATH=code, and with OMP_NUM_THREADS=1 for one thread. Each number
is the shortest time of eight rollouts.
"""

import dataclasses
import time

from tabulate import tabulate

from mlsh.config import Config
from mlsh.envs import make_env
from mlsh.models import Hierarchy
from mlsh.rollout import collect
from mlsh.sampling import Streams

GROUPS, REPEATS = 8, 8


def milliseconds(K: int, joint: bool) -> float:
    """The time of a warm-up rollout, or of a joint one, in which the sub-policies' values are computed, too."""
    cfg = dataclasses.replace(Config.defaults("MovementBandits-v0"), num_sub_policies=K, groups=GROUPS)
    env, streams = make_env(cfg, GROUPS * cfg.N), Streams(0, range(GROUPS))
    env.set_task([0, 1] * (GROUPS // 2))
    agent = Hierarchy.build(cfg, env)
    agent.master.reset(streams(0, "masters"))
    agent.sub_policies.reset(Streams(0, range(K))(0, "sub-policies"))
    times = []
    for i in range(REPEATS):
        start = time.perf_counter()
        collect(env, agent, streams(i, "benchmark"), cfg.rollout, for_sub_policies=joint)
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


if __name__ == "__main__":
    rows = [(K, milliseconds(K, joint=False), milliseconds(K, joint=True)) for K in (1, 2, 4, 8, 16)]
    print(tabulate(rows, ("K", "warm-up, ms", "joint, ms"), floatfmt=".1f"))
