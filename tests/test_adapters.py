"""The adapters in examples/, as far as what they adapt is installed."""

import importlib
import sys

import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete

from conftest import CODE
from mlsh.config import Config
from mlsh.envs import make_env

sys.path.append(str(CODE.parent / "examples"))
STEPS = 20
TO_THE_LAST_GOAL = [2, 2, 2, 1, 2, 2, 2]  # of rooms.Goals: to the wall, right, and into the corner
NEEDED = {"rooms": "minigrid", "robotics": "gymnasium_robotics", "control_suite": "dm_control"}
ADAPTED = (
    "running:HalfCheetahDir-v0",
    "running:AntDir-v0",
    "running:Walker2dDir-v0",
    "variants:CartPoles-v0",
    "variants:Pendulums-v0",
    "variants:Acrobots-v0",
    "variants:Lakes-v0",
    "variants:Reachers-v0",
    "rooms:Rooms-v0",
    "rooms:Goals-v0",
    "rooms:GoalImages-v0",
    "robotics:PointMaze-v0",
    "robotics:FetchPlaces-v0",
    "control_suite:Walker-v0",
)


def played(env, tasks, actions=()):
    """Observations and rewards of each of two tasks, with the same start and the same actions. Default: random ones."""
    env.set_task(tasks)
    observations, rewards = [env.reset(seed=[0] * len(tasks))[0]], []
    rng, space = np.random.default_rng(0), env.single_action_space
    for action in actions or range(STEPS):
        if not actions:
            action = rng.integers(space.n) if isinstance(space, Discrete) else rng.uniform(-1, 1, space.shape)
        observation, reward, *_ = env.step(torch.as_tensor(np.stack([action] * len(tasks))))
        observations.append(observation)
        rewards.append(reward)
    return torch.stack(observations), torch.stack(rewards)


@pytest.fixture(params=ADAPTED)
def env_id(request):
    module = request.param.split(":")[0]
    if module in NEEDED:
        pytest.importorskip(NEEDED[module], reason="make .venv/others/installed")
    importlib.import_module(module)
    return request.param


def test_tasks_differ_and_a_task_is_the_same_again(env_id):
    env = make_env(Config(env=env_id, T=100), 2)
    tasks, route = env.train_tasks, TO_THE_LAST_GOAL if "Goal" in env_id else ()
    assert len({env.task_label(task) for task in tasks}) == len(tasks) >= 2
    observations, rewards = played(env, [tasks[0], tasks[-1]], route)
    again = played(env, [tasks[0], tasks[-1]], route)
    assert torch.equal(observations, again[0]) and torch.equal(rewards, again[1])
    same = played(env, [tasks[0]] * 2, route)
    assert torch.equal(same[0][:, 0], same[0][:, 1]) and torch.equal(same[1][:, 0], same[1][:, 1])
    assert not torch.equal(rewards[:, 0], rewards[:, 1]) or not torch.equal(observations[:, 0], observations[:, 1])
    if route:
        assert rewards[-1, 0] == 0 and rewards[-1, 1] == pytest.approx(1 - 0.9 * len(route) / 60)
    env.close()
