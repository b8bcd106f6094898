"""Allwalk against its rules, written again in plain Python; and a continuous family in training."""

import json
import math

import numpy as np
import pytest
import torch

from conftest import TINY
from mlsh.config import Config
from mlsh.envs import best_return, make_env
from mlsh.runs import checkpoint
from mlsh.runs.metrics import read_metrics
from mlsh.sampling import Streams, balanced_tasks, tasks_to_test

MOVES = [(0, 0), (20, 0), (-20, 0), (0, 20), (0, -20)]
ALLWALK = [*TINY, "--env", "Allwalk-v0", "--record", 0]


def family(num_envs, **kwargs):
    return make_env(Config.defaults("Allwalk-v0"), num_envs, **kwargs)


def test_the_rules():
    env = family(60)
    assert env.train_tasks is None
    goals = [[10.0, 390.0], [200, 200], [333.3, 0.0]]
    env.set_task(goals)
    obs, _ = env.reset(seed=[1, 2, 3])
    assert obs.shape == (60, 2) and obs.dtype == torch.float32 and (obs == 0.5).all()
    env.set_task([[5.0, 5.0]])  # from the next reset on
    at, draw = [(200, 200)] * 60, np.random.default_rng(0)
    for t in range(1, 51):
        actions = draw.integers(5, size=60)
        obs, reward, terminated, truncated, _ = env.step(torch.from_numpy(actions))
        assert not terminated.any() and (truncated == (t == 50)).all()
        for e, action in enumerate(actions):
            at[e] = at[e][0] + MOVES[action][0], at[e][1] + MOVES[action][1]
            assert (400 * obs[e]).tolist() == pytest.approx(at[e], abs=1e-3)  # no bounds
            x, y = goals[e // 20]
            assert reward[e].item() == pytest.approx(-(abs(at[e][0] - x) + abs(at[e][1] - y)) / 5000, abs=1e-7)
    obs, _ = env.reset(options={"reset_mask": torch.arange(60) == 7})
    assert obs[7].tolist() == [0.5, 0.5] and (400 * obs[8]).tolist() == pytest.approx(at[8], abs=1e-3)
    assert env.step(torch.zeros(60, dtype=torch.long))[1][7].item() == pytest.approx(-390 / 5000)


def test_each_group_s_own_generator_draws_its_task():
    env, streams = family(4), Streams(5, range(4))
    tasks = balanced_tasks(env, streams, 3, 4)
    assert tasks[2:] == balanced_tasks(env, Streams(5, [2, 3]), 3, 4) and len({str(task) for task in tasks}) == 4
    env.set_task(tasks)
    assert env.task == tasks and json.loads(json.dumps(tasks)) == tasks
    many = np.array([env.sample_task(np.random.default_rng(seed)) for seed in range(2000)])
    assert many.shape == (2000, 2) and many.min() >= 0 and many.max() <= 400
    np.testing.assert_allclose(many.mean(0), 200, atol=8)
    np.testing.assert_allclose(many.std(0), 400 / 12**0.5, atol=4)
    assert len(tasks_to_test(env, 0)) == 10 and tasks_to_test(env, 0, held_out=True) == []
    assert env.task_label([12.4, 399.6]) == "(12, 400)"


def test_it_is_trained_tested_and_evaluated(command, tmp_path):
    run = tmp_path / "run"
    code, out, err = command("train.py", *ALLWALK, "--out", run)
    assert code == 0, err
    rows = json.loads((run / "results.json").read_text())["test"]
    assert len(rows) == 10 and all(row["label"] == "({:.0f}, {:.0f})".format(*row["task"]) for row in rows)
    assert len({row["task"] for row in read_metrics(run)}) == 4  # two groups in two outer iterations
    assert checkpoint.load(run, [Config])["config"].env == "Allwalk-v0"
    few = ["--updates", 1, "--seeds", 1]
    code, out, err = command("evaluate.py", run, *few, "--tasks", "[100, 300]", "[0.5, 1]")
    assert code == 0 and "task [100, 300] ((100, 300))" in out, err
    code, out, err = command("evaluate.py", run, *few, "--tasks", "[100]", "--out", tmp_path)
    assert code == 2 and err.count("\n") == 1 and "--tasks: [100] is no task of this family; use finite numbers" in err
    code, out, err = command("report.py", run)
    assert code == 0, err


def walk_straight(goal, steps=50):
    """Return what an agent earns that always takes the step that brings it nearest to the goal."""
    at, total = (200, 200), 0

    def distance(a):
        return abs(a[0] - goal[0]) + abs(a[1] - goal[1])

    for _ in range(steps):
        at = min(((at[0] + x, at[1] + y) for x, y in MOVES), key=distance)
        total -= distance(at) / 5000
    return total


def test_the_best_possible_return():
    grid = (np.arange(61) + 0.5) * 400 / 61  # 61 does not divide the 20 pixels of a step
    mean = np.mean([walk_straight((x, y)) for x in grid for y in grid])
    assert best_return("Allwalk-v0") == pytest.approx(mean, abs=5e-4)


GRID = (np.arange(41) + 0.5) * 400 / 41  # x or y of goals


def bound(K):
    """Return an upper bound on the mean return of masters over any K sub-policies, with decisions every 10 steps.

    After d decisions the K^d sequences lead to at most K^d places (given all random numbers, if policies are
    stochastic). The mean L1 distance from a square of area A to the nearest of k places is at least that within k
    diamonds of area A/k, which is 2/3 √(A/2k). And no step leaves the agent nearer to the goal than walking straight.
    """
    total = 0.0
    for t in range(1, 51):
        straight = np.mean([distance_left(x, y, t) for x in GRID for y in GRID])
        places = K ** math.ceil(t / 10)
        total += max(straight, 2 / 3 * (400**2 / (2 * places)) ** 0.5)
    return -total / 5000


def distance_left(x, y, t):
    """Return the distance that is left to a goal after t steps straight to it."""
    distances = [abs(x - 200), abs(y - 200)]
    gains = [gain for d in distances for gain in [20] * int(d // 20) + [max(0, 2 * (d % 20) - 20)]]
    return sum(distances) - sum(sorted(gains, reverse=True)[:t])


def walk_to(point):
    """Return a sub-policy that walks to a point, along the longer axis first: the action at each of 21 × 21 places."""
    action = np.zeros((21, 21), int)
    for (i, j), _ in np.ndenumerate(action):
        offset = point[0] - 20 * i, point[1] - 20 * j
        axis = int(abs(offset[1]) > abs(offset[0]))
        action[i, j] = 0 if abs(offset[axis]) < 10 else 1 + 2 * axis + (offset[axis] < 0)
    return action


def best_mean_return(sub_policies):
    """Return the mean return over the goals of masters that make the best five decisions for their goal."""
    at, x, y = (
        np.array([[10, 10]]),
        np.zeros((1, len(GRID))),
        np.zeros((1, len(GRID))),
    )  # sums of distances, one row per sequence of decisions
    subs, K = np.stack(sub_policies), len(sub_policies)
    for _ in range(5):
        k = np.repeat(np.arange(K), len(at))
        at, x, y = (np.tile(z, (K, 1)) for z in (at, x, y))
        for _ in range(10):
            at = at + np.array(MOVES)[subs[k, at[:, 0], at[:, 1]]] // 20
            x, y = x + abs(20 * at[:, :1] - GRID), y + abs(20 * at[:, 1:] - GRID)
    return -(x[:, :, None] + y[:, None]).min(0).mean() / 5000


def test_best_return_over_sub_policies_that_walk_to_places():
    """A random search found these places; it is not known which sub-policies are the best."""
    of_two, of_four = [(148, 342), (238, 59)], [(122, 382), (234, 0), (390, 270), (13, 200)]
    for places, found, most in ((of_two, -1.40, -0.77), (of_four, -0.86, -0.42)):
        assert best_mean_return([walk_to(place) for place in places]) == pytest.approx(found, abs=0.01)
        assert bound(len(places)) == pytest.approx(most, abs=0.01)
    assert best_mean_return([walk_to((200, 200))]) == pytest.approx(
        -2.0, abs=0.01
    )  # a single sub-policy does no better than to stay


def test_rendering_shows_agent_and_goal():
    env = family(1, render_mode="rgb_array")
    env.set_task([[100.0, 300.0]])
    env.reset(seed=1)
    (frame,) = env.render()
    colours = [frame[460 - y, 60 + x].tolist() for x, y in ((200, 200), (100, 300), (119, 300), (122, 300))]
    assert colours == [[0, 0, 0], [213, 94, 0], [213, 94, 0], [255, 255, 255]]
