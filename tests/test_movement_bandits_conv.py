"""MovementBanditsConv against its rules, written again in plain Python; and agents that observe images."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from conftest import TINY
from mlsh.config import Config
from mlsh.envs import best_return, make_env
from mlsh.meta_test import load_agent
from mlsh.models import Hierarchy
from mlsh.rollout import RolloutSettings, collect
from mlsh.runs import checkpoint
from mlsh.sampling import Streams

ENV = "MovementBanditsConv-v0"
RL2 = ["--episodes", 2, "-T", 5, "--parts", 2, "--wandb", "disabled"]
MOVES = [(0, 0), (20, 0), (-20, 0), (0, 20), (0, -20)]


def family(num_envs, **kwargs):
    return make_env(Config.defaults(ENV), num_envs, **kwargs)


def moved(at, action):
    return tuple(min(max(x + d, 27), 350) for x, d in zip(at, MOVES[action], strict=True))


def is_near(a, b):
    return (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 < 2500


def picture(agent, goals):
    image = np.zeros((16, 16, 3), np.uint8)
    for plane, (x, y) in enumerate((agent, *goals)):
        image[int(x / 25), int(y / 25), plane] = 1
    return image


def test_the_rules():
    env = family(150)
    assert env.train_tasks == [0, 1]
    assert env.single_observation_space == Box(0, 1, (16, 16, 3), np.uint8)
    env.set_task([0, 1, 0])
    obs, _ = env.reset(seed=[3, 4, 5])
    assert obs.shape == (150, 16, 16, 3) and obs.dtype == torch.uint8
    goals = env.goals.clone()
    assert torch.equal(goals, goals.round()) and goals.min() >= 26 and goals.max() <= 349
    torch.testing.assert_close(goals.mean(0), torch.full((2, 2), 187.5), atol=25, rtol=0)
    goals, at, paid = goals.tolist(), [(200, 200)] * 150, 0
    draw = np.random.default_rng(0)
    for t in range(1, 51):
        actions = draw.choice(5, 150, p=[0.1, 0.4, 0.1, 0.1, 0.3]) if t < 30 else draw.integers(5, size=150)
        obs, reward, terminated, truncated, _ = env.step(torch.from_numpy(actions))
        assert not terminated.any() and (truncated == (t == 50)).all()
        for e, action in enumerate(actions):
            at[e] = moved(at[e], action)
            assert np.array_equal(obs[e], picture(at[e], goals[e]))
            assert reward[e] == is_near(at[e], goals[e][50 <= e < 100])
            paid += reward[e].item()
    assert paid > 0 and max(x for x, _ in at) == 350 and min(y for _, y in at) == 27


def test_single_and_batched_are_the_same_dynamics():
    single, batch = gym.make(ENV), family(1)
    obs, _ = single.reset(seed=11)
    batch.reset(seed=0)
    batch._rngs = [np.random.Generator(np.random.PCG64(11))]
    assert obs.dtype == np.uint8 and np.array_equal(obs, batch.reset()[0][0])
    for t in range(50):
        a, b = single.step(t % 5), batch.step(torch.tensor([t % 5]))
        assert np.array_equal(a[0], b[0][0]) and a[1:4] == tuple(x.item() for x in b[1:4])


def test_the_best_possible_return():
    steps, front = {200: 0}, [200]  # along one axis; a wall shifts all later positions
    for x in front:
        for y in (min(x + 20, 350), max(x - 20, 27)):
            if y not in steps:
                steps[y] = steps[x] + 1
                front.append(y)
    taken = np.array([[max(1, steps[x] + steps[y]) for y in front] for x in front])[..., None]
    square = (np.array(front)[:, None] - np.arange(26, 350)) ** 2  # [position, goal]
    best = [51 - np.where(of_x[:, None, None] + square < 2500, taken, 99).min((0, 1)) for of_x in square.T]
    assert best_return(ENV) == pytest.approx(np.mean(best), abs=0.005)


def test_rendering_shows_the_world_and_not_the_cells():
    env = family(1, render_mode="rgb_array")
    env.set_task(1)
    env.reset(seed=1)
    env.goals[0] = torch.tensor([[100.0, 300.0], [300.0, 300.0]])
    env._right_goal[0], env.agent[0] = env.goals[0, 1], torch.tensor([200.0, 40.0])
    (frame,) = env.render()
    colours = [frame[460 - y, 60 + x].tolist() for x, y in ((200, 40), (100, 300), (300, 300), (300, 349), (100, 349))]
    assert colours == [[0, 0, 0], [213, 94, 0], [0, 114, 178], [0, 0, 0], [255, 255, 255]]


def test_images_are_stored_once():
    env = family(4)
    agent = Hierarchy.build(Config(groups=2), env)
    rollout = collect(env, agent, Streams(0, range(2))(0, "test"), RolloutSettings(T=9, high_len=3))
    assert rollout.obs.shape == (36, 768) and rollout.obs.dtype == rollout.master.obs.dtype == torch.uint8
    assert rollout.sub_policies.obs.data_ptr() == rollout.obs.data_ptr()
    assert np.array_equal(rollout.obs[0].view(16, 16, 3), picture((200, 200), env.goals[0].tolist()))


def test_it_is_trained_continued_evaluated_and_filmed(command, tmp_path):
    run = tmp_path / "run"
    code, _, err = command("train.py", *TINY, "--env", ENV, "--out", run)
    assert code == 0, err
    saved = checkpoint.load(run, [Config])
    assert saved["sub_policies"]["trunk.kernel0"].shape == (2, 2, 16, 3, 3, 3) and saved["config"].convolve
    assert saved["sub_policies"]["trunk.kernel0"].any() and saved["sub_policies"]["trunk.bias1"].any()
    assert load_agent(saved, family(1)).sub_policies.trunk.kernel0.equal(saved["sub_policies"]["trunk.kernel0"])
    assert len(list((run / "videos").iterdir())) > 0
    code, _, err = command("train.py", "-c", "--out", run, "--tasks", 3)
    assert code == 0, err
    code, _, err = command("evaluate.py", run, "--updates", 1, "--seeds", 1)
    assert code == 0, err
    code, _, err = command("train_rl2.py", "--env", ENV, "-N", 4, "--iterations", 1, *RL2, "--out", tmp_path / "rl2")
    assert code == 0, err


def test_an_older_checkpoint_has_flattened_images(command, tmp_path):
    code, _, err = command("train.py", *TINY, "--env", ENV, "--no_convolve", "--record", 0, "--out", tmp_path)
    assert code == 0, err
    data = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del data["config"]["convolve"]  # older checkpoints lack this setting
    torch.save(data, tmp_path / "checkpoint.pt")
    saved = checkpoint.load(tmp_path, [Config])
    assert not saved["config"].convolve and load_agent(saved, family(1)).sub_policies.trunk is None
