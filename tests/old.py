"""An environment in the style of the original code, on the old Gym, for tests: `--env old:Old-v0`."""

import gym
import gymnasium
import numpy as np
from shimmy import GymV21CompatibilityV0


class Old(gym.Env):
    """Draws from the generator that `seed` creates; `step` returns four values."""

    action_space = gym.spaces.Discrete(3)
    observation_space = gym.spaces.Box(-9, 9, (1,), np.float32)
    realgoal = 0

    def seed(self, seed=None):
        self.np_random = np.random.RandomState(seed)

    def randomizeCorrect(self):
        self.realgoal = self.np_random.randint(2)

    def reset(self):
        self.x = self.np_random.uniform()
        return np.array([self.x], np.float32)

    def step(self, action):
        self.x = np.clip(self.x + action - 1, -9, 9)
        return np.array([self.x], np.float32), float((self.x > 0) == self.realgoal), False, {}


gymnasium.register("Old-v0", lambda **_: GymV21CompatibilityV0(env=Old()), max_episode_steps=50)
