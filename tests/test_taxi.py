import random

import gymnasium as gym
import numpy as np
import pytest
import torch

import mlsh  # noqa: F401
from mlsh.config import Config
from mlsh.envs import best_return, make_env
from mlsh.envs.grid_world import solve
from mlsh.sampling import Streams, balanced_tasks, tasks_to_test

ID = "TaxiFAMP-v0"
HELD_OUT = [0, 4, 8, 13, 17, 21, 26, 30, 34, 39, 43, 47]
PLACES = [(0, 0), (5, 0), (5, 4), (0, 5)]  # R, Y, B, G: row and column, from 0
WALLS = {(0, 2), (1, 2), (4, 1), (5, 1), (4, 3), (5, 3)}


class Plain:
    """The rules, written again in plain Python."""

    def __init__(self, task):
        self.steps = 0
        self.at, self.waiting, self.goal = self.trip(task)

    @staticmethod
    def trip(task):
        if task < 48:
            start, pick, goal = task // 12, task // 4 % 3, task % 4
            return PLACES[start], PLACES[(goal + pick + 1) % 4], PLACES[goal]
        start, goal = (task - 48) // 4, task % 4
        return PLACES[(goal + start + 1) % 4], None, PLACES[goal]

    def observation(self):
        row, column = self.at
        return (0 if self.waiting else 36) + 6 * column + row

    def step(self, action):
        """Return the reward, and whether the passenger has been delivered."""
        self.steps += 1
        row, column = self.at
        if action in (1, 2, 3, 4):
            down, right = {1: (0, -1), 2: (0, 1), 3: (1, 0), 4: (-1, 0)}[action]
            to = row + down, column + right
            if to not in WALLS and 0 <= to[0] < 6 and 0 <= to[1] < 6:
                self.at = to
        elif action == 5 and self.waiting == self.at:
            self.waiting = None
        elif action == 5 and not self.waiting and self.at == self.goal:
            return 2.0, True
        return -0.1, False


def batched(num_envs=1, **kwargs):
    return gym.make_vec(ID, num_envs=num_envs, vectorization_mode="vector_entry_point", **kwargs).unwrapped


def test_episodes_follow_the_rules():
    plain = random.Random(0)
    env = batched(120)
    env.set_task(list(range(60)))
    obs, _ = env.reset(seed=0)
    games = [Plain(task) for task in range(60) for _ in range(2)]
    delivered = torch.zeros(120)
    for _ in range(1500):
        assert obs.argmax(1).tolist() == [game.observation() for game in games]
        assert obs.shape == (120, 72) and (obs.sum(1) == 1).all()
        actions = [plain.choice((1, 2, 3, 4, 5, 5, 0)) for _ in range(120)]
        obs, reward, terminated, truncated, info = env.step(torch.tensor(actions))
        wanted = [game.step(action) for game, action in zip(games, actions, strict=True)]
        torch.testing.assert_close(reward, torch.tensor([x for x, _ in wanted]))
        assert terminated.tolist() == [over for _, over in wanted] == info["delivered"].tolist()
        assert truncated.tolist() == [game.steps == 1500 for game in games]
        delivered += terminated
        obs, _ = env.reset(options={"reset_mask": terminated})
        for e in terminated.nonzero()[:, 0].tolist():
            games[e] = Plain(e // 2)
    assert (delivered > 0).float().mean() > 0.8


def test_tasks_are_famps():
    trips = [Plain.trip(task) for task in range(60)]
    assert len(set(trips)) == 60 and sum(waits is None for _, waits, _ in trips) == 12
    env = make_env(Config.defaults(ID), 1)
    assert env.test_tasks == HELD_OUT and sorted(env.train_tasks + HELD_OUT) == list(range(60))
    assert [env.task_label(task) for task in (0, 1, 12, 47, 48, 59)] == ["RYR", "RBY", "YYR", "GBG", "YR", "BG"]
    for i in range(20):
        assert not set(balanced_tasks(env, Streams(0, range(20)), i, 20)) & set(HELD_OUT)
    assert {env.sample_task(np.random.default_rng(i)) for i in range(900)} == set(env.train_tasks)
    tested = tasks_to_test(env, 0, held_out=True)
    assert len(tested) == 10 and set(tested) < set(HELD_OUT) and not set(tasks_to_test(env, 0)) & set(HELD_OUT)


def steps_between(start, goal):
    """Return the length of the shortest path, by breadth-first search."""
    distance, queue = {start: 0}, [start]
    for row, column in queue:
        for to in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            if to not in WALLS and to not in distance and 0 <= to[0] < 6 and 0 <= to[1] < 6:
                distance[to] = distance[row, column] + 1
                queue.append(to)
    return distance[goal]


def test_the_optimum_is_the_shortest_path_and_is_reached():
    env = make_env(Config.defaults(ID), 60)
    optimal = env.optimal_returns()
    best, policy = solve(env.dynamics, 40)
    for task in range(60):
        start, waits, goal = Plain.trip(task)
        steps = steps_between(start, waits) + 1 + steps_between(waits, goal) if waits else steps_between(start, goal)
        assert optimal[task] == best[task].item() == pytest.approx(2 - 0.1 * steps, abs=1e-6)
    assert best_return(ID) == pytest.approx(np.mean([optimal[task] for task in env.train_tasks]), abs=0.005)
    env.set_task(list(range(60)))
    env.reset(seed=0)
    returns, alive = torch.zeros(60), torch.ones(60, dtype=torch.bool)
    for t in range(40):
        _, reward, terminated, _, _ = env.step(policy[t, env._episode_task, env.state])
        returns += alive * reward
        alive &= ~terminated
    torch.testing.assert_close(returns.double(), best, atol=1e-5, rtol=0)
    assert not alive.any()


def test_the_picture_shows_where_everything_is():
    env = batched(2, render_mode="rgb_array")
    env.set_task([13, 49])  # from Y via B to Y; from B to Y with the passenger on board
    env.reset(seed=0)
    white, grey, black = [255, 255, 255], [153, 153, 153], [0, 0, 0]
    orange, blue = [213, 94, 0], [0, 114, 178]
    waiting, on_board = env.render()
    assert waiting.shape == (400, 400, 3) and waiting.dtype == np.uint8
    for row in range(-1, 7):
        for column in range(-1, 7):
            wall = (row, column) in WALLS or not (0 <= row < 6 and 0 <= column < 6)
            goal = (row, column) == (5, 0)
            y, x = 50 * (row + 1), 50 * (column + 1)
            wanted = grey if wall else orange if goal else white
            assert on_board[y + 2, x + 2].tolist() == wanted
            assert waiting[y + 2, x + 2].tolist() == (blue if (row, column) == (5, 4) else wanted)
    middle, aside = (slice(324, 325), 74), (slice(324, 325), 74 + 12)
    assert waiting[middle].tolist() == waiting[aside].tolist() == [black]
    taxi = 50 * 6 + 24, 50 * 5 + 24
    assert on_board[taxi].tolist() == blue and on_board[taxi[0], taxi[1] + 12].tolist() == black
    env.state[0] = 36 + 6 * 4 + 5  # at B, with the passenger on board
    assert env.render()[0][302, 252].tolist() == white


def test_delivery_is_reported():
    env = gym.make(f"mlsh:{ID}")
    env.unwrapped.set_task(48)  # from Y to R with the passenger on board: up, the last time towards the wall
    env.reset(seed=0)
    for action in (4,) * 5:
        _, reward, terminated, truncated, info = env.step(action)
        assert reward == pytest.approx(-0.1) and not terminated and not truncated and info == {"delivered": False}
    _, reward, terminated, _, info = env.step(5)
    assert reward == 2 and terminated and info == {"delivered": True}
