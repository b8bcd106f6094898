"""AntObstacles and AntObstaclesBig: courses with an enemy for the ant of AntMovement, which pay only at their end."""

from typing import Any, NamedTuple

import mujoco
import numpy as np
import torch

from mlsh.envs.ants import BOX, GREEN, NO_COLLISION, NV, OBSTACLE, RED, HeavyAnts, heavy_ant_with_walls
from mlsh.envs.base import SingleEnv
from mlsh.envs.registry import register

GOAL_RADIUS, ENEMY_SIGHT = 30**0.5, 15


class Course(NamedTuple):
    """A course. Places are x and y in metres."""

    walls: tuple[tuple[float, float, float, float], ...]  # x, y, half the extent along x and along y, in metres
    height: float  # of the walls, in metres
    start: tuple[float, float]
    goal: tuple[float, float]
    plate: float  # half the side of the goal's plate, in metres
    enemy_home: tuple[float, float]
    upright_interval: int
    camera: dict[str, Any]


SMALL = Course(
    walls=(
        *((28, -3, 35, 0.3), (28, 40, 35, 0.3), (-3, 28, 0.3, 35), (40, 28, 0.3, 35)),
        *((35, 25, 5, 0.3), (30, 10, 0.3, 15)),
    ),
    height=5,
    start=(0, 0),
    goal=(38, 38),
    plate=1,
    enemy_home=(0, 20),
    upright_interval=200,
    camera={"distance": 60.0, "elevation": -90.0, "azimuth": 90.0, "lookat": np.array((18.5, 18.5, 0.0))},
)
BIG = Course(
    walls=(
        *((0, -40, 40, 0.3), (0, 40, 40, 0.3), (-40, 0, 0.3, 40), (40, 0, 0.3, 40)),
        *((-15, 20, 0.3, 17), (-35, 20, 5, 0.3), (-10, -20, 20, 0.3), (-10, -30, 20, 0.3), (10, -20, 0.3, 20)),
    ),
    height=2,
    start=(-35, 15),
    goal=(35, -35),
    plate=5,
    enemy_home=(25, 30),
    upright_interval=300,
    camera={"distance": 115.0, "elevation": -90.0, "azimuth": 90.0, "lookat": np.zeros(3)},
)


def build_course(course: Course = SMALL) -> mujoco.MjModel:
    """Build the walls, the goal's plate, the disc in which the enemy sees the ant, and the enemy."""
    spec = heavy_ant_with_walls(course.walls, course.height)
    plate = {"pos": (*course.goal, 0), "size": (course.plate, course.plate, 0.3)}
    spec.worldbody.add_geom(type=BOX, rgba=GREEN, **plate, **NO_COLLISION)
    red_ellipsoid = {"type": mujoco.mjtGeom.mjGEOM_ELLIPSOID, "rgba": RED}
    disc = {"pos": (*course.enemy_home, 0), "size": (ENEMY_SIGHT, ENEMY_SIGHT, 0.1)}
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

    `AntObstaclesBig-v1` is the original's larger course: a square of 80 m with walls 2 m high. The ant must get from
    (−35, 15) to (35, −35), so it needs to run down as well.

    The enemy is a solid ball of radius 3 m. In every step that begins with the ant within 15 m of its home, the enemy
    moves towards the ant, by 1 m along x and 1 m along y. That is 40 m/s along each axis, and walls do not stop it.
    Otherwise it stays where it is. An ant that it catches is flung away, or lies under it until the end.

    Every 200 steps, on the big course every 300, the ant is put upright where it is, with a new random pose and
    velocity. The original does this before that step, so the step's action was chosen for another pose. Here it happens
    after the step, and the next observation shows it.

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
    1 for a step after which the ant is within √30 m of the middle of the green plate; otherwise 0. The plate is at
    (38, 38), on the big course at (35, −35). The paper does not say where the course pays. This rule is from the
    original's `AntObstaclesBig-v1`, the only sparse reward that the original computes. `info["distance"]` is the
    distance to the middle of the plate; `info["reached"]` says whether the episode
    has paid so far.

    ## Starting State
    The ant is at the origin, on the big course at (−35, 15). qpos is uniform within ±0.1 of the model's, with the
    quaternion normalised. qvel is normal with standard deviation 0.1. The enemy is at its home: (0, 20), on the big
    course (25, 30).

    ## Episode End
    Truncated after 2000 steps of 25 ms, on the big course after 3000. Terminated only if the simulation diverges.

    ## Arguments
    As in AntMovement, except `directions`; `big`, whether to build the big course.
    """

    train_tasks = [0]

    def __init__(
        self,
        num_envs: int = 1,
        big: bool = False,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        device: str | torch.device = "cpu",
        sim_threads: int | None = None,
    ) -> None:
        self.course = BIG if big else SMALL
        self.upright_interval, self.camera = self.course.upright_interval, self.course.camera
        super().__init__(build_course(self.course), num_envs, max_episode_steps, render_mode, device, sim_threads)

    def task_label(self, task: int) -> str:
        return "course"

    def _start_xy(self, slots: np.ndarray) -> tuple[float, float]:
        return self.course.start

    def _initial_state(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        qpos, qvel = super()._initial_state(slots)
        enemy = np.broadcast_to(np.array(self.course.enemy_home, float), (len(slots), 2))
        return np.concatenate((qpos, enemy), 1), np.concatenate((qvel, np.zeros_like(enemy)), 1)

    def _edit_state(self, state: np.ndarray) -> None:
        super()._edit_state(state)
        # the ant may have pushed the enemy a little; rounding puts it back
        xy, enemy = state[:, 1:3], np.round(state[:, 16:18])
        seen = ((xy - self.course.enemy_home) ** 2).sum(1, keepdims=True) < ENEMY_SIGHT**2
        state[:, 16:18] = enemy + seen * np.sign(xy - enemy)
        state[:, 18 + NV :] = 0

    def _reward(
        self, qpos_before: np.ndarray, actions: np.ndarray, qpos: np.ndarray, sensors: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        distance = np.linalg.norm(qpos[:, :2] - self.course.goal, axis=1)
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
register("AntObstacles-v1", AntObstacles, 2000, PRESET, big=False)
register("AntObstaclesBig-v1", AntObstacles, 3000, PRESET | {"T": 3000}, big=True)
