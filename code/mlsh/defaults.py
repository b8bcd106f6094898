"""Default settings for an environment without a preset. They follow from its spaces, its tasks and a few episodes."""

import contextlib
import math
from typing import NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Discrete
from torch import Tensor

from mlsh.envs.base import VectorTasks
from mlsh.envs.registry import EnvSettings, make_env
from mlsh.models import size_of
from mlsh.networks import Image
from mlsh.settings import Default
from mlsh.slots import Actor, Slots, play_episodes

PROBED = 8  # episodes with random actions
FEW = 8  # up to so many tasks, every update learns from all, and each task has a sub-policy
W, U = 10, 40
ROLLOUT = 4_000  # env steps per rollout of all task groups together
BUDGET = 400_000  # env steps of a run
MINIBATCH = 256  # env steps per minibatch of the sub-policies


class Facts(NamedTuple):
    """What the defaults follow from."""

    T: int
    tasks: int | None  # the number of training tasks; None if they are sampled
    action_size: int  # how many numbers a continuous action has; 0 for discrete actions
    one_hot: bool  # whether every number of an observation was 0 or 1
    image: bool  # whether observations are convolved
    return_size: float  # root mean square of the discounted returns of random actions, over all env steps


class RandomActor(Actor):
    """Actions as random as those of a new policy."""

    def __init__(self, env: VectorTasks) -> None:
        self._space, self._shape = env.single_action_space, env.action_space.shape
        self._rng = np.random.default_rng(0)

    def act(self, slots: Slots) -> Tensor:
        if isinstance(self._space, Discrete):
            actions = self._rng.integers(self._space.n, size=self._shape)
        else:
            actions = self._rng.normal(0, 0.6, self._shape).astype(np.float32)
        return torch.from_numpy(actions).to(slots.obs.device)


def find_facts(cfg: EnvSettings, gamma: float) -> Facts:
    """Play a few episodes with random actions, each on another task. An environment gives the same facts every time.

    Raises what `make_env` raises, EnvironmentFailed, and FloatingPointError for numbers that are not finite.
    """
    rng = np.random.default_rng(0)
    with contextlib.closing(make_env(cfg, PROBED)) as env:
        tasks = env.train_tasks or []
        env.set_task([tasks[e % len(tasks)] if tasks else env.sample_task(rng) for e in range(PROBED)])
        with env.rollout_context():
            record = play_episodes(env, RandomActor(env), range(PROBED), cfg.T)
        space = env.single_action_space
        action_size = 0 if isinstance(space, Discrete) else size_of(space)
        image = Image.of(env.single_observation_space) is not None
    returns, following = [], torch.zeros(PROBED)
    for reward in record.reward.cpu().flip(0):
        following = reward + gamma * following
        returns.append(following)
    played = torch.stack(returns[::-1])[record.alive.cpu()]
    one_hot = bool(((record.obs == 0) | (record.obs == 1)).all())
    return Facts(cfg.T, len(tasks) or None, action_size, one_hot, image, float(played.square().mean().sqrt()))


def derive(facts: Facts) -> dict[str, Default]:
    """The defaults for an environment: field of `config.Config` -> its value and the reason for it."""
    T, n = facts.T, facts.tasks
    if n and n <= FEW:
        groups, why_groups = n * math.ceil(4 / n), "a multiple of the number of tasks, at least 4"
        K, why_K = max(n, 2), "one per task, but 2 or more"
    else:
        groups, why_groups, K, why_K = FEW, "many tasks: several in every update", FEW, "many tasks"
    N = min(max(round(ROLLOUT / (groups * T)), 4), 64)
    env_steps = groups * N * T
    spread = round(0.3 / math.sqrt(facts.action_size), 2) if facts.action_size else 1.0
    tasks = max(2, round(BUDGET / (env_steps * (W + U))))
    found = {
        "groups": Default(groups, why_groups),
        "N": Default(N, f"about {ROLLOUT:,} env steps per iteration, but 4 to 64 episodes per group"),
        "W": Default(W, "a new master needs about ten updates to find its sub-policy"),
        "U": Default(U, "most env steps teach the sub-policies"),
        "tasks": Default(tasks, f"about {BUDGET:,} env steps in all, but 2 outer iterations or more"),
        "high_len": Default(math.ceil(T / 4), "four decisions per episode"),
        "num_sub_policies": Default(K, why_K),
        "test_episodes": Default(min(max(round(2_000 / T), 10), 100), "about 2,000 env steps, but 10 to 100 episodes"),
        "sub_lr": Default(5e-4, "the sub-policies learn in most iterations, but each from a part of the env steps"),
        "sub_minibatches": Default(math.ceil(env_steps / MINIBATCH), f"{MINIBATCH} env steps each"),
        "sub_spread": Default(spread, "sub-policies that start alike may all learn the same task"),
        "explore": Default(0.1, "every sub-policy is tried on every task"),
        "fade": Default(tasks - 1, "the last outer iteration has no random decisions"),
    }
    if facts.action_size:
        found["log_std"] = Default(-0.5, "continuous actions")
    if facts.one_hot:
        found["normalise"] = Default(False, "all observations are 0 or 1")
    if facts.image:
        found["epochs"] = Default(3, "images: fewer epochs take less time")
    if facts.return_size:
        scale = float(f"{1 / facts.return_size:.1g}")
        found["reward_scale"] = Default(
            scale, f"discounted returns of random actions are about {facts.return_size:.2g}"
        )
    return found
