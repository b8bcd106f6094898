"""A class of the original code, on today's Gymnasium: --env originals:Originals-v0

It needs Shimmy (pip install -e .[gym]) and the folder of https://github.com/openai/mlsh that has test_envs on the
PYTHONPATH. Gym has since renamed methods, removed `randint` and begun to require an `info`: hence this adapter.
KeyDoor, Allwalk and Fourrooms work in the same way. There are no films.
"""

import gym.envs.registration
import gymnasium
import numpy as np
from gym.utils import seeding
from shimmy import GymV21CompatibilityV0

gym.envs.registration.register = lambda **_: None  # test_envs passes an argument that Gym has removed
seeding.np_random = lambda seed=None: (np.random.RandomState(seed), seed)  # this generator has `randint`
from test_envs.envs import MovementBandits as Old  # noqa: E402


class Original(Old):
    reset, seed = getattr(Old, "_reset", Old.reset), Old._seed

    def step(self, action):
        *played, info = getattr(Old, "_step", Old.step)(self, action)
        return *played, info or {}


gymnasium.register("Originals-v0", lambda **_: GymV21CompatibilityV0(env=Original()), max_episode_steps=50)
