"""The memory that an iteration takes at its peak, in multiples of the rollout's observations: python tests/peak.py"""

import resource
import subprocess
import sys

import numpy as np
import torch
from gymnasium.spaces import Box
from tabulate import tabulate

from mlsh.config import Config
from mlsh.envs.base import VectorTasks
from mlsh.models import Hierarchy
from mlsh.ppo import Adam, update
from mlsh.rollout import collect
from mlsh.sampling import Streams

DIMENSIONS, SHARES = (8, 30, 376), ("as chosen", "all to one")
SIZES = {"T": 1000, "N": 64, "groups": 8}


class Blank(VectorTasks):
    """Shows zeros of so many dimensions."""

    train_tasks = [0]

    def __init__(self, num_envs, dimensions):
        self.single_observation_space = Box(-1, 1, (dimensions,), np.float32)
        self.single_action_space = Box(-1, 1, (8,), np.float32)
        super().__init__(num_envs, None, None, "cpu")
        self._never = torch.zeros(num_envs, dtype=torch.bool)

    def _reset(self, which):
        return torch.zeros(self.num_envs, *self.single_observation_space.shape)

    def _step(self, actions):
        return self._reset(None), actions.sum(1), self._never, {}


def peak(dimensions, share, sizes):
    """Bytes that a joint iteration adds to what the process has before, and those of its observations."""
    cfg = Config(**sizes, epochs=1, high_len=100)
    env = Blank(cfg.groups * cfg.N, dimensions)
    agent = Hierarchy.build(cfg, env)
    agent.master.reset(Streams(0, range(cfg.groups))(0, "master"))
    agent.sub_policies.reset(Streams(0, range(cfg.num_sub_policies))(0, "subs"))
    if share == "all to one":
        agent.master.policy_bias.data[..., 0] = 50.0
    optimizers = Adam(agent.master, cfg.master_lr), Adam(agent.sub_policies, cfg.sub_lr, apart=True)
    rngs = Streams(0, range(cfg.groups))(0, "peak")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rollout = collect(env, agent, rngs, **cfg.rollout)
    update(agent.master, optimizers[0], rollout.master, rngs, **cfg.master_ppo)
    update(agent.sub_policies, optimizers[1], rollout.low, rngs, **cfg.low_ppo(0))
    agent.normaliser.update(rollout.obs)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (after - before) * 1024, 4 * dimensions * env.num_envs * cfg.T


def measured(dimensions, share, **sizes):
    """`peak` in a process of its own."""
    call = f"import peak; print(*peak.peak({dimensions}, {share!r}, {sizes}))"
    words = [sys.executable, "-c", call]
    run = subprocess.run(words, cwd=sys.path[0], capture_output=True, text=True, check=True)
    return map(int, run.stdout.split())


def main():
    rows = []
    for dimensions in DIMENSIONS:
        for share in SHARES:
            added, observations = measured(dimensions, share, **SIZES)
            rows.append([dimensions, share, f"{observations / 1e6:,.0f}", f"{added / 1e6:,.0f}", added / observations])
    print(
        tabulate(
            rows, ["dimensions", "sub-policies", "observations, MB", "peak, MB", "times"], "github", floatfmt=".1f"
        )
    )


if __name__ == "__main__":
    main()
