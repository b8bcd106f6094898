"""Gymnasium's FrozenLake with the map as the task (--env variants:Lakes-v0), and its Ant with the direction, an angle,
as the task (--env variants:Ants-v0)."""

import gymnasium as gym
import numpy as np
from gymnasium.envs.mujoco.ant_v5 import AntEnv
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv, generate_random_map


class Lakes(FrozenLakeEnv):
    train_tasks = [generate_random_map(size=4, seed=seed) for seed in range(4)]
    test_tasks = [generate_random_map(size=4, seed=seed) for seed in (100, 101)]

    def set_task(self, task):
        super().__init__(desc=task, render_mode=self.render_mode, is_slippery=False)


class Ants(AntEnv):
    def sample_task(self, rng):
        return float(rng.uniform(-np.pi, np.pi))

    def set_task(self, task):
        self.direction = np.array([np.cos(task), np.sin(task)])

    def step(self, action):
        observation, reward, *ended, info = super().step(action)
        speed = self.direction @ [info["x_velocity"], info["y_velocity"]]
        return observation, reward + speed - info["reward_forward"], *ended, info | {"speed": speed}


gym.register("Lakes-v0", Lakes, max_episode_steps=30)
gym.register("Ants-v0", Ants, max_episode_steps=1000)
