"""Task families that misbehave, for tests: `--env faulty:ID`."""

import os

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete

from mlsh.envs.base import VectorTasks


class Faulty(VectorTasks):
    """Returns `bad` as reward or observation in the third step of its fifth episode, in blocks with task 1."""

    train_tasks = [0, 1]

    def __init__(self, num_envs=1, max_episode_steps=None, render_mode=None, device="cpu", bad=np.nan, where="reward"):
        self.single_observation_space = Box(-1, 1, (2,), np.float32)
        self.single_action_space = Discrete(3)
        super().__init__(num_envs, max_episode_steps, render_mode, device)
        self.bad, self.where, self.episodes = bad, where, 0

    def _reset(self, slots):
        self.episodes += 1
        return torch.zeros(self.num_envs, 2)

    def _step(self, actions):
        observation, reward = torch.zeros(self.num_envs, 2), actions.float()
        if self.episodes == 5 and self._elapsed[0] == 3:
            hit = torch.tensor(self.task) == 1
            (reward if self.where == "reward" else observation)[hit] = self.bad
        return observation, reward, torch.zeros(self.num_envs, dtype=torch.bool), {}


for name, kwargs in {
    "NaNReward-v0": {},
    "InfiniteReward-v0": {"bad": -np.inf},
    "NaNObservation-v0": {"where": "observation"},
}.items():
    gym.register(name, vector_entry_point=Faulty, kwargs=kwargs)


class GoesElsewhere(Faulty):
    """Changes the working folder when it is made, and in every step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        os.chdir(os.environ["GOES_TO"])

    def _step(self, actions):
        os.chdir(os.environ["GOES_TO"])
        return torch.zeros(self.num_envs, 2), actions.float(), torch.zeros(self.num_envs, dtype=torch.bool), {}


gym.register("GoesElsewhere-v0", vector_entry_point=GoesElsewhere)
