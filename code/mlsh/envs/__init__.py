"""The task families: importing this package registers each with Gymnasium. A new one is a file and its name here."""

import mlsh.envs.opengl  # noqa: F401, before anything else imports mujoco
from mlsh.envs import (  # noqa: F401
    allwalk,
    ant_bandits,
    ant_movement,
    ant_obstacles,
    fourrooms,
    key_door,
    movement_bandits,
    movement_bandits_conv,
    taxi,
)
from mlsh.envs.registry import best_return, find_class, find_id, ids, make_env, most_episodes, preset

__all__ = ["best_return", "find_class", "find_id", "ids", "make_env", "most_episodes", "preset"]
