"""The DeepMind Control Suite, with one robot and its tasks: --env control_suite:Walker-v0 (stand, walk, run)"""

import gymnasium as gym
import numpy as np
from dm_control import suite
from gymnasium.spaces import Box


class ControlSuite(gym.Env):
    """A robot and its tasks. Each action is taken twice."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, robot, train_tasks, render_mode=None):
        self.robot, self.train_tasks, self.render_mode = robot, train_tasks, render_mode
        self.envs = {task: suite.load(robot, task) for task in train_tasks}
        self.set_task(train_tasks[0])
        spec, observations = self.env.action_spec(), self.env.observation_spec().values()
        self.action_space = Box(spec.minimum, spec.maximum, dtype=np.float64)
        self.observation_space = Box(-np.inf, np.inf, (sum(int(np.prod(x.shape)) for x in observations),))

    def set_task(self, task):
        self.env = self.envs[task]

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.env.task._random = np.random.RandomState(seed)
        return self.observed(self.env.reset()), {}

    def step(self, action):
        reward = 0.0
        for _ in range(2):
            played = self.env.step(action)
            reward += played.reward or 0.0
        return self.observed(played), reward, False, False, {}

    def observed(self, played):
        return np.concatenate([np.ravel(x) for x in played.observation.values()]).astype(np.float32)

    def render(self):
        return self.env.physics.render(240, 320, camera_id=0)


tasks_of_walker = {"robot": "walker", "train_tasks": ["stand", "walk", "run"]}
gym.register("Walker-v0", ControlSuite, max_episode_steps=250, kwargs=tasks_of_walker)
