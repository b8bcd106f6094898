"""The adapter of examples/meta_world.py, where Meta-World is installed."""

import json
import re

import numpy as np
import pytest
import torch

from mlsh.config import Config
from mlsh.envs import make_env
from test_gymnasium_tasks import EXAMPLES, train_example

pytest.importorskip("metaworld", reason="docs/guide/your-own-environment.md says how it is installed")


@pytest.fixture
def family(monkeypatch):
    """family(env_id, num_envs, T): the batched environment, made with the example."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return lambda env_id, num_envs, T: make_env(Config(env=f"meta_world:{env_id}", T=T, env_workers=1), num_envs)


@pytest.mark.slow
@pytest.mark.very_slow
def test_ml1_trains(command, tmp_path, monkeypatch):
    rows = train_example(command, tmp_path, monkeypatch, "meta_world", "ML1-reach-v3", "--test_episodes", 2)
    assert all(row["final_success"] == row["final_success_once"] == "0" for row in rows)  # seven steps are too few
    assert all(0 <= float(row["task"]) < 50 and float(row["final_obj_to_target"]) > 0 for row in rows)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    for name, first in (("test", 0), ("held_out", 50)):
        assert len(results[name]) == 10 and all(first <= row["task"] < first + 50 for row in results[name])
        assert all(row["label"] == "reach-v3" and row["final_success_once"] == 0 for row in results[name])


def test_ml10_plays_the_environment_of_each_task_and_hides_its_goal(family):
    env = family("ML10-v3", 3, 5)
    assert (len(env.train_tasks), len(env.test_tasks)) == (500, 250)
    for tasks, names in (
        ([0, 50, 499], ["reach-v3", "push-v3", "basketball-v3"]),
        ([1, 0, 749], ["reach-v3", "reach-v3", "lever-pull-v3"]),
    ):
        env.set_task(tasks)
        observation, _ = env.reset(seed=0)
        assert [env.task_label(task) for task in tasks] == names
        assert [re.sub(r"\W|v3", "", name) for name in names] == [
            re.search(r"sawyer_(\w+)_v3", type(one.unwrapped).__module__)[1].replace("_", "")
            for one in env._copies.task_envs
        ]
        assert observation.shape == (3, 39) and not observation[:, -3:].any()
        goals = [one.unwrapped._target_pos for one in env._copies.task_envs]
        assert all(np.abs(goals[i] - goals[j]).max() > 0.01 for i, j in ((0, 1), (0, 2), (1, 2)))
    env.close()


def test_a_success_that_does_not_last(family):
    env = family("ML1-reach-v3", 1, 150)
    single = env._copies.task_envs[0].unwrapped
    for steps_to_the_goal, last, once in ((150, 1, 1), (100, 0, 1), (0, 0, 0)):
        env.reset(seed=0)
        for t in range(150):
            there = single._target_pos if t < steps_to_the_goal else np.array([0, 0.5, 0.1])
            way = torch.tensor(np.append(10 * (there - single.tcp_center), 0), dtype=torch.float32)
            *_, terminated, truncated, info = env.step(way[None])
            assert not terminated and truncated == (t == 149)
        assert (info["success"], info["success_once"]) == (last, once)
    env.close()


def test_its_own_horizon(family):
    env = family("ML1-push-v3", 1, 501)
    env.reset(seed=0)
    ends = [env.step(torch.zeros(1, 4))[2:4] for _ in range(500)]
    assert not any(terminated for terminated, _ in ends)
    assert [bool(truncated) for _, truncated in ends] == [False] * 499 + [True]
    env.close()
