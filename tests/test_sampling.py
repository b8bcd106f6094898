import dataclasses

import numpy as np
import pytest

from mlsh.config import Config
from mlsh.envs import make_env
from mlsh.errors import UserError
from mlsh.sampling import Streams, balanced_tasks, find_task, tasks_to_test
from test_rollout import Ladder


def test_streams_differ_in_every_key_and_repeat():
    keys = [(1, 2, "a", 0), (2, 2, "a", 0), (1, 3, "a", 0), (1, 2, "b", 0), (1, 2, "a", 1)]
    draws = [Streams(s, [g])(i, p)[0].integers(2**62) for s, i, p, g in keys]
    assert len(set(draws)) == len(keys)
    assert draws[0] == Streams(1, range(1))(2, "a")[0].integers(2**62)


class Endless(Ladder):
    """A continuous family."""

    train_tasks = None

    def sample_task(self, rng):
        return rng.uniform(0, 5, 2).tolist()


def test_a_continuous_family_draws_each_groups_task_from_its_own_stream():
    env = Endless([9, 9])
    three, two = balanced_tasks(env, Streams(0, range(3)), 4, 3), balanced_tasks(env, Streams(0, range(2)), 4, 2)
    assert three[:2] == two and len({tuple(task) for task in three}) == 3
    env.set_task(two)
    assert env.task == two
    assert balanced_tasks(env, Streams(0, [1]), 4, 3) == three[1:2]  # a process that plays the second group only


def test_a_continuous_family_may_hold_out_a_list_of_tasks():
    env = Endless([9, 9])
    env.test_tasks = [[1.0, 1.0]]
    env.set_task([[2.0, 3.0], [1.0, 1.0]])
    assert env.task == [[2.0, 3.0], [1.0, 1.0]]


def test_balanced_tasks():
    env = make_env(Config(env="MovementBandits4-v0"), 1)
    for groups, most, least in ((8, 2, 2), (6, 2, 1), (3, 1, 0)):
        for i in range(5):
            tasks = balanced_tasks(env, Streams(0, range(groups)), i, groups)
            counts = np.bincount(tasks, minlength=4)
            mine = balanced_tasks(env, Streams(0, [0, groups - 1]), i, groups)  # of a process with two of the groups
            assert mine == [tasks[0], tasks[-1]]
            assert len(tasks) == groups and counts.max() == most and counts.min() == least
    assert len({tuple(balanced_tasks(env, Streams(0, range(1)), i, 1)) for i in range(30)}) == 4


def test_of_many_tasks_ten_are_tested(cfg):
    assert tasks_to_test(make_env(cfg, 1), 0) == [0, 1]
    env = make_env(dataclasses.replace(cfg, env="foreign:Many-v0"), 1)
    few = tasks_to_test(env, 0)
    assert len(set(few)) == 10 and set(few) < set(env.train_tasks) and few == tasks_to_test(env, 0)
    assert few != tasks_to_test(env, 1)
    sampled = make_env(dataclasses.replace(cfg, env="foreign:Sampled-v0"), 1)
    assert sorted(tasks_to_test(sampled, 0)) == [-1, 1]  # equal ones once
    assert len(tasks_to_test(Endless([9]), 0)) == 10
    assert tasks_to_test(env, 0, held_out=True) == tasks_to_test(sampled, 0, held_out=True) == []


def test_a_task_is_found_by_what_the_user_types():
    env = make_env(Config(env="MovementBandits4-v0"), 1)
    assert find_task(env, "3", "--task") == 3
    with pytest.raises(UserError, match="^--task is 4: use 0, 1, 2, 3$"):
        find_task(env, "4", "--task")
    assert find_task(Endless([9]), "[1, 2.5]", "--task") == [1, 2.5]
    with pytest.raises(UserError, match="--task is up: use JSON"):
        find_task(Endless([9]), "up", "--task")
