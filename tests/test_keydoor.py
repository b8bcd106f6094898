"""KeyDoor against its rules, written again in plain Python."""

from collections import deque

import numpy as np
import pytest
import torch

from mlsh.config import Config
from mlsh.envs import best_return, make_env

MOVES = [(0, 0), (20, 0), (-20, 0), (0, 20), (0, -20)]


def family(num_envs, **kwargs):
    return make_env(Config.defaults("KeyDoor-v0"), num_envs, **kwargs)


def is_near(a, b):
    return (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 < 2500


def places(obs):
    """Return agent, goal 0, goal 1 and key in pixels, and whether the key is held, from one observation."""
    numbers = [400 * x for x in obs.tolist()]
    return *((numbers[i], numbers[i + 1]) for i in (0, 2, 4, 6)), obs[8].item()


def test_the_rules():
    env = family(200)
    assert env.train_tasks == [0, 1] and [env.task_label(task) for task in (0, 1)] == ["orange", "blue"]
    env.set_task([0, 1])
    obs, _ = env.reset(seed=[3, 4])
    assert obs.shape == (200, 9) and obs.dtype == torch.float32
    assert (obs[:, :2] == 0.5).all() and not obs[:, 8].any()  # (200, 200) / 400, without the key
    drawn = obs[:, 2:8]
    assert drawn.min() >= 0 and drawn.max() <= 1
    torch.testing.assert_close(drawn.mean(0), torch.full((6,), 0.5), atol=0.1, rtol=0)
    torch.testing.assert_close(drawn.var(0), torch.full((6,), 1 / 12), atol=0.02, rtol=0)
    at, held, paid, late = [(200, 200)] * 200, [False] * 200, 0, 0
    draw = np.random.default_rng(0)
    for t in range(1, 101):
        actions = draw.integers(5, size=200)
        obs, reward, terminated, truncated, info = env.step(torch.from_numpy(actions))
        assert not terminated.any() and (truncated == (t == 100)).all()
        assert torch.equal(obs[:, 2:8], drawn)
        for e, action in enumerate(actions):
            at[e] = at[e][0] + MOVES[action][0], at[e][1] + MOVES[action][1]
            agent, *goals, key, has_key = places(obs[e])
            assert agent == pytest.approx(at[e], abs=1e-3)  # no bounds
            late += not held[e] and is_near(at[e], key) and is_near(at[e], goals[e >= 100])
            held[e] = held[e] or is_near(at[e], key)
            assert has_key == info["has_key"][e] == held[e]
            assert reward[e] == (held[e] and is_near(at[e], goals[e >= 100]))
            paid += reward[e].item()
    assert paid > 0 and late > 0 and 0 < sum(held) < 200  # some steps paid that also fetched the key


def test_near_is_less_than_50_pixels():
    for distance, has_key in ((50.0, 0), (49.9, 1)):
        env = family(1)
        env.reset(seed=0)
        env.key[0] = torch.tensor([200.0, 200.0 + distance])
        env._right_goal[0] = torch.tensor([200.0, 200.0])
        obs, reward, *_ = env.step(torch.tensor([0]))
        assert obs[0, 8] == reward[0] == has_key
    env.reset(options={"reset_mask": torch.tensor([True])})
    assert not env.has_key.any()


def shortest(goal, key):
    """Return the fewest actions after which a step pays, by breadth-first search over cells and the key."""
    start = 0, 0, False
    came, queue = {start: None}, deque([start])
    while queue:
        i, j, held = state = queue.popleft()
        for action, (x, y) in enumerate(MOVES):
            agent = 200 + 20 * i + x, 200 + 20 * j + y
            new = i + x // 20, j + y // 20, held or is_near(agent, key)
            if new[2] and is_near(agent, goal):
                actions = [action]
                while came[state]:
                    state, action = came[state]
                    actions.insert(0, action)
                return actions
            if new not in came:
                came[new] = state, action
                queue.append(new)


def test_the_best_possible_return():
    env = family(400)
    env.set_task(1)
    obs, _ = env.reset(seed=0)
    plans = []
    for e in range(400):
        _, _, goal, key, _ = places(obs[e])
        plans.append(shortest(goal, key))
    total = torch.zeros(400)
    for t in range(100):
        total += env.step(torch.tensor([plan[t] if t < len(plan) else 0 for plan in plans]))[1]
    assert total.tolist() == [101 - len(plan) for plan in plans]
    error = total.std().item() / 400**0.5
    assert abs(total.mean().item() - best_return("KeyDoor-v0")) < 3 * error < 2


def test_rendering_shows_agent_goals_and_key():
    env = family(1, render_mode="rgb_array")
    env.set_task(0)
    env.reset(seed=1)
    env.goals[0] = torch.tensor([[100.0, 300.0], [300.0, 300.0]])
    env._right_goal[0] = env.goals[0, 0]
    env.key[0], env.agent[0] = torch.tensor([300.0, 100.0]), torch.tensor([200.0, 40.0])

    def drawn():
        (frame,) = env.render()
        return lambda x, y: frame[460 - y, 60 + x].tolist()

    at, black, white, yellow = drawn(), [0, 0, 0], [255, 255, 255], [240, 228, 66]
    assert at(200, 40) == at(209, 40) == at(100, 349) == black and at(300, 349) == white
    assert at(100, 300) == [213, 94, 0] and at(300, 300) == [0, 114, 178]
    assert at(300, 100) == at(309, 100) == yellow and at(312, 100) == white
    env.has_key[0] = True
    at = drawn()
    assert at(300, 100) == white and at(200, 40) == yellow and at(208, 40) == black
