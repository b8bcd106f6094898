"""Classes of the original code (https://github.com/openai/mlsh), unchanged: --env originals:Originals-v0

Put the folder of that code that has test_envs on the PYTHONPATH. KeyDoor, Allwalk and Fourrooms work in the same way.
"""

import gymnasium

from mlsh.envs import OldGymTasks


class Originals(OldGymTasks):
    old_class = "test_envs.envs:MovementBandits"


gymnasium.register("Originals-v0", Originals, max_episode_steps=50)
