"""The defaults for environments without a preset."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from mlsh.config import Config
from mlsh.defaults import PROBED, Facts, derive, find_facts
from mlsh.envs import find_preset
from test_settings import parse

TWO_DIRECTIONS = Facts(T=200, tasks=2, action_size=9, one_hot=False, image=False, return_size=17.0)


def values(**facts):
    return {name: x.value for name, x in derive(TWO_DIRECTIONS._replace(**facts)).items()}


class Countdown(gym.Env):
    """Pays 1 in each of three steps, then ends. The observation is one-hot, and actions are kept."""

    train_tasks = ["a", "b", "c"]
    observation_space, action_space = Discrete(4), Box(-2, 2, (1,))
    actions, played = [], set()

    def set_task(self, task):
        self.played.add(task)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return 0, {}

    def step(self, action):
        self.t += 1
        self.actions.append(float(action[0]))
        return self.t, 1.0, self.t == 3, False, {}


gym.register("Countdown-v0", Countdown, max_episode_steps=10)


def test_facts_come_from_a_few_random_episodes():
    Countdown.actions.clear()
    cfg = Config(env="test_defaults:Countdown-v0", T=10)
    facts = find_facts(cfg, gamma=0.5)
    squares = [1.75**2, 1.5**2, 1]  # of the discounted returns at the three steps
    assert facts == Facts(10, 3, 1, True, False, pytest.approx(np.sqrt(np.mean(squares))))
    first, Countdown.actions[:] = Countdown.actions[:], []
    assert len(set(first)) > 2 * PROBED and Countdown.played == {"a", "b", "c"}
    assert find_facts(cfg, gamma=0.5) == facts and Countdown.actions == first


def test_defaults_follow_from_the_facts():
    found = values()
    assert (found["groups"], found["N"], found["high_len"], found["num_sub_policies"]) == (4, 5, 50, 2)
    assert (found["log_std"], found["reward_scale"], "normalise" in found) == (-0.5, 0.06, False)
    assert found["sub_minibatches"] == 16  # 4 · 5 · 200 env steps in minibatches of 256
    assert found["sub_spread"] == 0.1 and values(action_size=0)["sub_spread"] == 1
    assert [values(tasks=n)["groups"] for n in (1, 3, 4, 8, 9, None)] == [4, 6, 4, 8, 8, 8]
    assert [values(tasks=n)["num_sub_policies"] for n in (1, 2, 3, 5, 50, None)] == [2, 2, 3, 5, 8, 8]
    assert [values(T=T)["N"] for T in (1, 100, 1000)] == [64, 10, 4]
    assert "log_std" not in values(action_size=0) and values(one_hot=True)["normalise"] is False
    assert "reward_scale" not in values(return_size=0.0)  # no reward was found


@pytest.mark.parametrize("T", [1, 30, 500, 5000])
@pytest.mark.parametrize("tasks", [1, 7, 50, None])
def test_every_environment_gets_valid_defaults(T, tasks):
    cfg = dataclasses.replace(Config(), T=T, **values(T=T, tasks=tasks))
    cfg.validate()
    assert cfg.fade <= cfg.tasks and cfg.high_len <= T
    assert not tasks or cfg.groups % tasks == 0 or tasks > cfg.groups


def test_defaults_have_reasons_and_flags_override_them():
    cfg, _ = parse("--env test_defaults:Countdown-v0 -N 3 -T 8".split())
    lines = cfg.notes.splitlines()
    assert cfg.N == 3 and cfg.high_len == 2 and cfg.groups == 6
    assert any(x.split()[:2] == ["--groups", "6"] and "number of tasks" in x for x in lines)
    assert not any(x.startswith("-N") for x in lines)


def test_environments_with_a_preset_have_no_other_defaults():
    cfg, _ = parse([])
    assert cfg == Config(**find_preset("MovementBandits-v0")) and not cfg.notes


def test_a_continued_run_keeps_its_settings():
    saved = {"config": Config(env="test_defaults:Countdown-v0", N=5), "iteration": 0}
    cfg, _ = parse(["-c", "--out", "x"], lambda path: saved)
    assert (cfg.N, cfg.groups) == (5, 1) and not cfg.notes
