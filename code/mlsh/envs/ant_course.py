"""AntObstacles: a course with an enemy for the ant of AntMovement, which pays only at its end."""

from typing import Any

import mujoco
import numpy as np
import torch

from mlsh.envs.ants import BOX, GREEN, NO_COLLISION, NV, OBSTACLE, RED, HeavyAnts, heavy_ant_with_walls
from mlsh.envs.base import SingleEnv
from mlsh.envs.registry import register

# each wall: x, y, half its extent along x and along y, in metres
OUTER_WALLS = ((28, -3, 35, 0.3), (28, 40, 35, 0.3), (-3, 28, 0.3, 35), (40, 28, 0.3, 35))
WALLS = (*OUTER_WALLS, (35, 25, 5, 0.3), (30, 10, 0.3, 15))
GOAL, GOAL_RADIUS = (38, 38), 30**0.5
ENEMY_HOME, ENEMY_SIGHT = (0, 20), 15


def build_course() -> mujoco.MjModel:
    """Build the walls, the goal's plate, the disc in which the enemy sees the ant, and the enemy."""
    spec = heavy_ant_with_walls(WALLS)
    spec.worldbody.add_geom(type=BOX, pos=(*GOAL, 0), size=(1, 1, 0.3), rgba=GREEN, **NO_COLLISION)
    red_ellipsoid = {"type": mujoco.mjtGeom.mjGEOM_ELLIPSOID, "rgba": RED}
    disc = {"pos": (*ENEMY_HOME, 0), "size": (ENEMY_SIGHT, ENEMY_SIGHT, 0.1)}
    spec.worldbody.add_geom(**disc, **red_ellipsoid, **NO_COLLISION)
    enemy = spec.worldbody.add_body(name="enemy")
    for axis in ((1, 0, 0), (0, 1, 0)):
        slide = {"type": mujoco.mjtJoint.mjJNT_SLIDE, "axis": axis, "limited": False}
        enemy.add_joint(armature=0, damping=0, **slide)
    enemy.add_geom(name="enemy", pos=(0, 0, 1), size=(3, 3, 3), mass=25_714, **red_ellipsoid, **OBSTACLE)
    return spec.compile()


class AntObstaclesVector(HeavyAnts):
    """
    ## Description
    The paper's obstacle course, after the original's `AntObstacles-v1`. The ant of `AntMovement-v1` must get from one
    corner of a square of 43 m to the opposite corner, around two inner walls and an enemy. There is one task. The
    course is made for sub-policies that have learned in `AntMovement-v1`, because observations and actions are the
    same: `evaluate.py RUN --env AntObstacles-v1`.

    The enemy is a solid ball of radius 3 m. In every step that begins with the ant within 15 m of (0, 20), the enemy
    moves towards the ant, by 1 m along x and 1 m along y. That is 40 m/s along each axis, and walls do not stop it.
    Otherwise it stays where it is. An ant that it catches is flung away, or lies under it until the end.

    Every 200 steps the ant is put upright where it is, with a new random pose and velocity. The original does this
    before the 200th step, so that step's action was chosen for another pose. Here it happens after the 200th step, and
    the next observation shows it.

    These faults of the original are not reproduced:

    - The reward that the original computes squares a sum of coordinates, and broadcasting sums them twice.
    - Two bits of a task are never used.
    - The total mass of the model includes the enemy, so the ant weighs 41.4 kg. Here it weighs 40 kg.
    - `init_qpos` has no effect.
    - The ant has a round torso and starts at a height of 0.6 m; in AntMovement it has a long torso and starts at
      0.75 m. So sub-policies from there meet a body that they do not know. Here the ant is that of AntMovement.

    ## Action Space
    `Box(-1, 1, (8,))`, as in AntMovement.

    ## Observation Space
    `Box(31)`, as in AntMovement: absolute x and y first, then x and y relative to where the ant was last put upright.
    Neither walls nor enemy are observed.

    ## Rewards
    1 for a step after which the ant is within √30 m of (38, 38), the green plate; otherwise 0. The paper does not say
    where the course pays. This rule is from the original's `AntObstaclesBig-v1`, the only sparse reward that the
    original computes. `info["distance"]` is the distance to the plate; `info["reached"]` says whether the episode
    has paid so far.

    ## Starting State
    The ant is at the origin. qpos is uniform within ±0.1 of the model's, with the quaternion normalised. qvel is normal
    with standard deviation 0.1. The enemy is at (0, 20).

    ## Episode End
    Truncated after 2000 steps of 25 ms. Terminated only if the simulation diverges.

    ## Arguments
    As in AntMovement.
    """

    train_tasks = [0]
    upright_interval = 200
    camera = {"distance": 60.0, "elevation": -90.0, "azimuth": 90.0, "lookat": np.array((18.5, 18.5, 0.0))}

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        device: str | torch.device = "cpu",
        sim_threads: int | None = None,
    ) -> None:
        super().__init__(build_course(), num_envs, max_episode_steps, render_mode, device, sim_threads)

    def task_label(self, task: int) -> str:
        return "course"

    def _start_xy(self, slots: np.ndarray) -> int:
        return 0

    def _initial_state(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        qpos, qvel = super()._initial_state(slots)
        enemy = np.broadcast_to(np.array(ENEMY_HOME, float), (len(slots), 2))
        return np.concatenate((qpos, enemy), 1), np.concatenate((qvel, np.zeros_like(enemy)), 1)

    def _edit_state(self, state: np.ndarray) -> None:
        super()._edit_state(state)
        # the ant may have pushed the enemy a little; rounding puts it back
        xy, enemy = state[:, 1:3], np.round(state[:, 16:18])
        seen = ((xy - ENEMY_HOME) ** 2).sum(1, keepdims=True) < ENEMY_SIGHT**2
        state[:, 16:18] = enemy + seen * np.sign(xy - enemy)
        state[:, 18 + NV :] = 0

    def _reward(
        self, qpos_before: np.ndarray, actions: np.ndarray, qpos: np.ndarray, sensors: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        distance = np.linalg.norm(qpos[:, :2] - GOAL, axis=1)
        at_goal = distance < GOAL_RADIUS
        self._reached_goal |= at_goal
        return at_goal.astype(float), {"distance": distance, "reached": self._reached_goal}


class AntObstacles(SingleEnv):
    __doc__ = AntObstaclesVector.__doc__
    vector_class = AntObstaclesVector


# MLSH from scratch has not been tried on the course
PRESET: dict[str, Any] = {
    "N": 1,
    "W": 20,
    "U": 40,
    "tasks": 30,
    "T": 2000,
    "high_len": 200,
    "groups": 4,
    "sub_minibatches": 16,
    "target_kl": 0.03,
    "explore": 0.1,
    "fade": 15,
    "log_std": -0.5,
}
register("AntObstacles-v1", AntObstacles, 2000, PRESET)
