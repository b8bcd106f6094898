import csv
import functools
import json
import random
import re
from collections import Counter

import gymnasium as gym
import numpy as np
import pytest
import torch

import mlsh  # noqa: F401
from conftest import TINY
from mlsh.config import Config
from mlsh.envs import best_return, make_env
from mlsh.envs.grid_world import Dynamics, move_table, solve
from mlsh.sampling import Streams, balanced_tasks, tasks_to_test

BOTH = ("Fourrooms-v0", "FourroomsUnseen-v0")


def walls():
    """Return (row, column) of every wall in the 13 × 13 grid: the edge, and walls between rooms with four doorways."""
    edge = {(i, j) for i in range(13) for j in range(13) if {i, j} & {0, 12}}
    upright = {(i, 6) for i in range(13)} - {(3, 6), (10, 6)}
    across = {(6, j) for j in range(1, 7)} - {(6, 2)} | {(7, j) for j in range(6, 13)} - {(7, 9)}
    return edge | upright | across


WALLS = walls()
FREE = sorted({(i, j) for i in range(13) for j in range(13)} - WALLS)
STEPS = [(-1, 0), (1, 0), (0, -1), (0, 1)]


@functools.cache
def outcomes(cell, action):
    """Return the cells where the agent may be after an action, with their probabilities."""
    i, j = cell[0] + STEPS[action][0], cell[1] + STEPS[action][1]
    if (i, j) in WALLS:
        return {cell: 1.0}
    near = [(i + di, j + dj) for di, dj in STEPS if (i + di, j + dj) not in WALLS]
    return {(i, j): 2 / 3} | {other: 1 / 3 / len(near) for other in near}


def batched(env_id="Fourrooms-v0", num_envs=1, **kwargs):
    return gym.make_vec(env_id, num_envs=num_envs, vectorization_mode="vector_entry_point", **kwargs).unwrapped


def test_the_tables_are_the_rules():
    dynamics = batched("FourroomsUnseen-v0").dynamics
    assert len(FREE) == 104 and FREE[62] == (7, 9)
    assert dynamics.next.shape == (21, 104, 4, 36) and (dynamics.start == 62).all() and not dynamics.ends.any()
    assert (dynamics.next == dynamics.next[:1]).all()
    for s, cell in enumerate(FREE):
        for a in range(4):
            found = Counter(dynamics.next[0, s, a].tolist())
            wanted = outcomes(cell, a)
            assert {FREE[k]: n / 36 for k, n in found.items()} == pytest.approx(wanted)


def test_episodes_follow_the_rules():
    E = 600
    env = batched(num_envs=E, max_episode_steps=100)
    env.set_task([0, 1, 2, 3])
    obs, _ = env.reset(seed=[1, 2, 3, 4])
    assert obs.shape == (E, 104) and obs.dtype == torch.float32
    goals = [cell for cell in ((8, 7), (9, 9), (10, 8), (11, 11)) for _ in range(E // 4)]
    plain, seen = random.Random(0), Counter()
    cells = [(7, 9)] * E
    for t in range(1, 101):
        assert [FREE[s] for s in obs.argmax(1)] == cells and (obs.sum(1) == 1).all()
        actions = [plain.randrange(4) for _ in range(E)]
        obs, reward, terminated, truncated, info = env.step(torch.tensor(actions))
        assert reward.dtype == torch.float32 and not terminated.any() and (truncated == (t == 100)).all() and not info
        for e, s in enumerate(obs.argmax(1)):
            options = outcomes(cells[e], actions[e])
            assert FREE[s] in options and reward[e] == (FREE[s] == goals[e])
            if len(options) > 1:
                seen["slides"] += options[FREE[s]] < 0.5
                seen["moves"] += 1
            cells[e] = FREE[s]
    assert seen["slides"] / seen["moves"] == pytest.approx(1 / 3, abs=0.01)
    env.set_task(1)
    assert (env._episode_task == torch.arange(4).repeat_interleave(E // 4)).all()  # from the next reset on
    env.reset(options={"reset_mask": torch.arange(E) == 5})
    assert env._episode_task[4:7].tolist() == [0, 1, 0]


def test_slides_depend_only_on_the_seed_of_the_block():
    both, alone = batched(num_envs=8), batched(num_envs=4)
    both.reset(seed=[7, 8])
    alone.reset(seed=8)
    trace = []
    for t in range(60):
        action = torch.full((8,), t % 4)
        here, there = both.step(action)[0][4:], alone.step(action[:4])[0]
        assert torch.equal(here, there)
        trace.append(there.argmax(1))
        if t == 20:  # slots of the other block, and one of this
            both.reset(options={"reset_mask": torch.tensor([1, 1, 1, 1, 0, 1, 0, 0]) > 0})
            alone.reset(options={"reset_mask": torch.tensor([0, 1, 0, 0]) > 0})
    assert len({tuple(slot.tolist()) for slot in torch.stack(trace, 1)}) == 4  # each slot slides on its own


def test_single_and_batched_are_the_same_dynamics():
    single, batch = gym.make("Fourrooms-v0"), batched()
    single.unwrapped.set_task(2)
    batch.set_task(2)
    single.reset(seed=5)
    batch._rngs = [np.random.Generator(np.random.PCG64(5))]
    batch.reset()
    for t in range(100):
        a, b = single.step(t % 4), batch.step(torch.tensor([t % 4]))
        assert np.array_equal(a[0], b[0][0].numpy()) and a[1:3] == tuple(x.item() for x in b[1:3])
    assert a[3]


def test_a_tiny_corridor_by_hand():
    """Cells 0, 1 and 2 in a row; moves left and right, of which half fail; cell 2 pays."""
    moves = move_table({(0, 0): 0, (0, 1): 1, (0, 2): 2}, 3, [(0, -1), (0, 1)])
    assert moves.tolist() == [[0, 1], [0, 2], [1, 2]]
    outcomes = torch.stack((moves, torch.arange(3)[:, None].expand(3, 2)), -1)
    never = torch.tensor(False)
    best, policy = solve(Dynamics.broadcast(torch.tensor(0), outcomes[None], (outcomes == 2).double()[None], never), 4)
    # cell 2 is reached after two steps with probability 1/4 (then three steps pay), after three 1/4, after four 3/16
    assert best.tolist() == [3 / 4 + 2 / 4 + 3 / 16]
    assert policy.shape == (4, 1, 3) and (policy[:3, 0, 0] == 1).all() and (policy[:, 0, 1:] == 1).all()
    ends = (outcomes == 2)[None]  # pays once and terminates
    once, _ = solve(Dynamics.broadcast(torch.tensor(0), outcomes[None], ends.double(), ends), 4)
    assert once.tolist() == [1 / 4 + 1 / 4 + 3 / 16]


def test_the_optimal_policy_earns_the_optimum():
    """Plays the optimal policy; and computes the optimum of one task by the rules above, without the tables."""
    env = batched(num_envs=8000)
    env.set_task([0, 1, 2, 3])
    env.reset(seed=3)
    best, policy = solve(env.dynamics, 100)
    assert env.optimal_returns(100) == dict(enumerate(best.tolist()))
    # The goal is two cells down. The agent is there after one step if it slides on (1/3 · 1/4). After two steps it has
    # come from the cell between (2/3 · 2/3), or has slid from a neighbour of that cell, or back (1/12 · 1/12 each).
    assert env.optimal_returns(1)[1] == pytest.approx(1 / 12)
    assert env.optimal_returns(2)[1] == pytest.approx(1 / 12 + 4 / 9 + 4 / 144)
    returns = torch.zeros(8000)
    for t in range(100):
        returns += env.step(policy[t, env._episode_task, env.state])[1]
    returns = returns.view(4, 2000)
    assert ((returns.mean(1) - best).abs() < 4 * returns.std(1) / 2000**0.5).all()

    value = dict.fromkeys(FREE, 0.0)
    table = {(cell, a): outcomes(cell, a) for cell in FREE for a in range(4)}
    for _ in range(100):
        value = {
            cell: max(sum(p * ((to == (9, 9)) + value[to]) for to, p in table[cell, a].items()) for a in range(4))
            for cell in FREE
        }
    assert best[1].item() == pytest.approx(value[7, 9])


@pytest.mark.parametrize("env_id", BOTH)
def test_the_best_return_is_the_mean_optimum_of_the_training_tasks(env_id):
    env = make_env(Config.defaults(env_id), 1)
    optimal = env.optimal_returns()
    assert best_return(env_id) == pytest.approx(np.mean([optimal[t] for t in env.train_tasks]), abs=0.005)


def test_the_final_test_reports_the_best_return_of_each_task(command, tmp_path):
    run = ["--env", "FourroomsUnseen-v0", *TINY[2:], "-T", "3", "--out", tmp_path / "run"]
    code, out, err = command("train.py", *run)
    assert code == 0, err
    results = json.loads((tmp_path / "run/results.json").read_text())
    optimal = make_env(Config.defaults("FourroomsUnseen-v0"), 1).optimal_returns(3)
    for name in ("test", "held_out"):
        assert {row["task"]: row["best_return"] for row in results[name]}.items() <= optimal.items()
        assert all(0 <= row["best_master"] < row["best_return"] for row in results[name])
    assert len(results["held_out"]) == 5 and "± 0 (best possible: " in out
    assert ", by the best master over these sub-policies: " in out
    assert re.search(r"sub-policies: the choice tells \d\.\d\d bits about the task, of 2\.00 at most; never", out)
    code, _, err = command("evaluate.py", tmp_path / "run", "--held_out", "--updates", 0, "--seeds", 1)
    assert code == 0, err
    with open(tmp_path / "run/adaptation.csv", newline="") as file:
        reported = {int(row["task"].split()[1]): float(row["best_return"]) for row in csv.DictReader(file)}
    assert reported == {row["task"]: row["best_return"] for row in results["held_out"]}


def test_held_out_tasks_are_spread_and_never_trained():
    assert batched().test_tasks is None
    env = make_env(Config.defaults("FourroomsUnseen-v0"), 1)
    assert len(env.train_tasks) == 16 and sorted(env.train_tasks + env.test_tasks) == list(range(21))
    room = [cell for cell in FREE if cell[0] > 7 and cell[1] > 6 or cell == (10, 6)]
    assert [FREE[goal] for goal in env.goals] == room
    held_out = [room[task] for task in env.test_tasks]
    assert held_out == [(8, 7), (9, 9), (10, 6), (10, 11), (11, 8)]
    rest = [sum((j - 2 * i) % 5 == k for i, j in room) for k in range(5)]
    assert sorted(rest) == [4, 4, 4, 4, 5]
    assert all(abs(i - k) + abs(j - m) >= 3 for i, j in held_out for k, m in held_out if (i, j) != (k, m))
    for i in range(40):
        assert not set(balanced_tasks(env, Streams(0, range(20)), i, 20)) & set(env.test_tasks)
    assert {env.sample_task(np.random.default_rng(i)) for i in range(300)} == set(env.train_tasks)
    assert tasks_to_test(env, 0, held_out=True) == env.test_tasks
    assert env.task_label(env.test_tasks[2]) == "cell 88"
    env.set_task(env.test_tasks[2])
    with pytest.raises(ValueError, match="there is no task 21"):
        env.set_task(21)


def test_the_picture_shows_walls_agent_and_goal():
    env = batched(num_envs=2, render_mode="rgb_array")
    env.set_task([0, 3])
    env.reset(seed=0)
    black, white, grey, orange = [0, 0, 0], [255, 255, 255], [153, 153, 153], [213, 94, 0]
    for frame, goal in zip(env.render(), ((8, 7), (11, 11)), strict=True):
        assert frame.shape == (400, 400, 3) and frame.dtype == np.uint8
        for i in range(13):
            for j in range(13):
                wanted = grey if (i, j) in WALLS else orange if (i, j) == goal else white
                assert frame[5 + 30 * i + 2, 5 + 30 * j + 2].tolist() == wanted
                middle = frame[5 + 30 * i + 14, 5 + 30 * j + 14].tolist()
                assert middle == (black if (i, j) == (7, 9) else wanted)
