import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete


class Corridor(gym.Env):
    """Walk left or right: one of the two ends pays 1 per step, and which one is the task."""

    train_tasks = [-1, 1]  # the left end, the right end

    def __init__(self):
        self.observation_space = Box(-10, 10, (1,), np.float32)
        self.action_space = Discrete(3)  # left, stay, right

    def set_task(self, task):
        self.good_end = 10 * task

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.x = 0
        return np.array([self.x], np.float32), {}

    def step(self, action):
        self.x = int(np.clip(self.x + action - 1, -10, 10))
        reward = float(self.x == self.good_end)
        return np.array([self.x], np.float32), reward, False, False, {}


gym.register("Corridor-v0", Corridor, max_episode_steps=50)
