"""What the ant families share: Gymnasium's ant, and its attitude."""

from pathlib import Path

import gymnasium.envs.mujoco
import mujoco
import numpy as np

GHOST = {"contype": 0, "conaffinity": 0}  # of a geom that is only drawn


def light_ant():
    """Gymnasium's ant as a spec, its contacts beginning 10 mm above the floor.

    MuJoCo adds the margins of two geoms, before 3.5.0 it took the larger; with 0 on the floor both are the foot's.
    """
    path = Path(gymnasium.envs.mujoco.__file__).parent / "assets" / "ant.xml"
    spec = mujoco.MjSpec.from_string(path.read_text().replace('coordinate="local"', ""))
    spec.geom("floor").margin = 0
    return spec


def unit_quaternions(qpos):
    """`qpos` [n, nq] with the torso's quaternions normalised, in place."""
    qpos[:, 3:7] /= np.linalg.norm(qpos[:, 3:7], axis=1, keepdims=True)
    return qpos
