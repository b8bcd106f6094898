"""The task families. Importing this package registers each with Gymnasium; list a new module here to register it."""

import mlsh.envs.opengl  # noqa: F401, must come before anything else that imports mujoco
from mlsh.envs import (  # noqa: F401
    allwalk,
    ant_bandits,
    ant_course,
    ant_mazes,
    ant_movement,
    fourrooms,
    humanoid,
    key_door,
    movement_bandits,
    movement_bandits_conv,
    swimmer_bandits,
    taxi,
    walker_obstacles,
)
from mlsh.envs.old_gym import OldGymTasks
from mlsh.envs.registry import (
    best_return,
    env_ids,
    find_class,
    find_id,
    find_preset,
    has_preset,
    make_env,
    max_parallel_episodes,
)

__all__ = [
    "OldGymTasks",
    "best_return",
    "env_ids",
    "find_class",
    "find_id",
    "find_preset",
    "has_preset",
    "make_env",
    "max_parallel_episodes",
]
