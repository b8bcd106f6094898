"""Peak memory of a joint iteration relative to its observations (Linux only): python benchmarks/memory_peak.py"""

import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from tabulate import tabulate
from torch import Tensor

from mlsh.config import Config
from mlsh.envs.base import VectorTasks
from mlsh.models import Hierarchy
from mlsh.optim import Adam
from mlsh.ppo import update
from mlsh.rollout import collect
from mlsh.sampling import Streams

DIMENSIONS = 8, 30, 376  # of an observation
CHOICES = "all sub-policies", "one sub-policy"  # that the masters choose


class Zeros(VectorTasks):
    """An environment whose observations are zeros."""

    train_tasks = [0]

    def __init__(self, num_envs: int, dimensions: int) -> None:
        self.single_observation_space = Box(-1, 1, (dimensions,), np.float32)
        self.single_action_space = Box(-1, 1, (8,), np.float32)
        super().__init__(num_envs, None, None, "cpu")
        self._dimensions, self._never = dimensions, torch.zeros(num_envs, dtype=torch.bool)

    def _reset(self, which: Tensor | None) -> Tensor:
        return torch.zeros(self.num_envs, self._dimensions)

    def _step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
        return self._reset(None), actions.sum(1), self._never, {}


def peak(dimensions: int, choice: str) -> tuple[int, int]:
    """The bytes that a joint iteration adds to the peak of this process, and the bytes of its observations."""
    cfg = Config(T=1000, N=64, groups=8, epochs=1, high_len=100)
    env = Zeros(cfg.groups * cfg.N, dimensions)
    agent = Hierarchy.build(cfg, env)
    agent.master.reset(Streams(0, range(cfg.groups))(0, "master"))
    agent.sub_policies.reset(Streams(0, range(cfg.num_sub_policies))(0, "subs"))
    if choice == "one sub-policy":
        agent.master.policy_bias.data[..., 0] = 50.0
    optimizers = Adam(agent.master, cfg.master_lr), Adam(agent.sub_policies, cfg.sub_lr, per_member=True)
    rngs = Streams(0, range(cfg.groups))(0, "peak")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rollout = collect(env, agent, rngs, cfg.rollout)
    update(agent.master, optimizers[0], rollout.master, rngs, cfg.master_ppo)
    assert rollout.sub_policies is not None
    update(agent.sub_policies, optimizers[1], rollout.sub_policies, rngs, cfg.sub_ppo(0))
    agent.normaliser.update(rollout.obs)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (after - before) * 1024, 4 * dimensions * env.num_envs * cfg.T


def main() -> None:
    rows = []
    spawn = multiprocessing.get_context("spawn")
    for dimensions in DIMENSIONS:
        for choice in CHOICES:
            with ProcessPoolExecutor(1, spawn) as pool:  # since the peak of a process never falls
                added, observations = pool.submit(peak, dimensions, choice).result()
            rows.append([dimensions, choice, f"{observations / 1e6:,.0f}", f"{added / 1e6:,.0f}", added / observations])
    header = ["dimensions", "masters choose", "observations, MB", "peak, MB", "ratio"]
    print(tabulate(rows, header, "github", floatfmt=".1f"))


if __name__ == "__main__":
    main()
