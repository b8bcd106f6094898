"""What the ant families share: Gymnasium's ant, the heavy ant of the original's courses, and walls."""

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
import torch
from gymnasium.spaces import Box

from mlsh.envs.mujoco_tasks import MujocoTasks, gymnasium_model

NQ, NV = 15, 14  # of the ant alone; whatever else moves comes after it in qpos and qvel
HEAVY_MASS = 40.0  # kg
NO_COLLISION = {"contype": 0, "conaffinity": 0}  # attributes of a geom that is only drawn
OBSTACLE = {"contype": 0, "conaffinity": 1, "margin": 0}  # attributes of a geom that only the ant collides with
BOX = mujoco.mjtGeom.mjGEOM_BOX
GREEN, RED, WHITE = (0.2, 0.9, 0.2, 1), (0.9, 0.2, 0.2, 1), (0.9, 0.9, 0.9, 1)


def heavy_ant() -> mujoco.MjSpec:
    """Return the original's `ant_v2` as a spec: a long torso with a head, front hips further ahead, 40 kg."""
    spec = gymnasium_model("ant.xml")
    spec.option.timestep = 0.005
    spec.geom("floor").size = 80, 80, 40  # how far it is drawn; physically it has no end
    torso = spec.geom("torso_geom")
    torso.type, torso.size = mujoco.mjtGeom.mjGEOM_ELLIPSOID, (0.5, 0.25, 0.25)
    head = {"type": mujoco.mjtGeom.mjGEOM_SPHERE, "size": (0.25, 0, 0), "pos": (0.4, 0, 0.25), "density": 0.01}
    spec.body("torso").add_geom(name="head", rgba=(1, 0.5, 0.3, 1), **head)
    for name, y in (("aux_1", 0.2), ("aux_4", -0.2)):
        spec.body(name).pos = 0.4, y, 0
    factor = HEAVY_MASS / spec.copy().compile().body("torso").subtreemass[0]
    for geom in spec.geoms:
        geom.density *= factor
    return spec


def add_obstacle(spec: mujoco.MjSpec, pos: Sequence[float], size: Sequence[float], **attributes: Any) -> None:
    """Add a box that the ant collides with; `size` is half its extent along x, y and z.

    The box gets a body of its own, so that MuJoCo skips it while the ant is far away. As soon as one geom of a body is
    near, all geoms of that body are checked for collisions.
    """
    spec.worldbody.add_body(pos=pos).add_geom(type=BOX, size=size, **attributes, **OBSTACLE)


def heavy_ant_with_walls(walls: Sequence[Sequence[float]], height: float = 5) -> mujoco.MjSpec:
    """Return an MjSpec of the heavy ant among walls. The floor has no pattern: the camera is far above it.

    Each wall is given by x, y, and half its extent along x and along y, in metres.
    """
    spec = heavy_ant()
    floor = spec.geom("floor")
    floor.material, floor.rgba = "", (0.35, 0.4, 0.35, 1)
    floor.contype = 0  # otherwise the enemy of the course, which sinks into the floor, would collide with it
    for x, y, *half_extent in walls:
        add_obstacle(spec, (x, y, 0), (*half_extent, height), rgba=WHITE)
    return spec


def normalise_quaternions(qpos: np.ndarray) -> np.ndarray:
    """Normalise the quaternions of the torso in `qpos` [n, nq] in place, and return it."""
    qpos[:, 3:7] /= np.linalg.norm(qpos[:, 3:7], axis=1, keepdims=True)
    return qpos


def is_upright(qpos: np.ndarray) -> np.ndarray:
    """Return whether the torso's z axis points up, bool [n], for `qpos` [n, nq].

    It points above the horizontal if and only if x² + y² < 1/2, where (w, x, y, z) is the torso's quaternion.
    """
    return (qpos[:, 4:6] ** 2).sum(1) < 0.5


class HeavyAnts(MujocoTasks):
    """A family of tasks for the heavy ant.

    A subclass may set `upright_interval`: after every so many steps of an episode the ant is put upright where it is,
    with a new random pose and velocity. It defines `_start_xy(slots)`, which returns x and y at which the episodes of
    `slots` begin, in a form that broadcasts to [len(slots), 2].
    """

    metadata = MujocoTasks.metadata | {"render_fps": 40}
    frame_skip, dt = 5, 0.025  # dt: seconds per control step
    upright_interval: int | None = None
    follow_camera = {"distance": 15.0, "elevation": -80.0, "azimuth": 90.0}  # steep, since walls are 5 m high
    single_observation_space = Box(-np.inf, np.inf, (4 + NQ - 2 + NV,), np.float32)
    single_action_space = Box(-1, 1, (8,), np.float32)

    def __init__(
        self,
        model: mujoco.MjModel,
        num_envs: int,
        max_episode_steps: int | None,
        render_mode: str | None,
        device: str | torch.device,
        sim_threads: int | None,
    ) -> None:
        super().__init__(model, num_envs, max_episode_steps, render_mode, device, sim_threads)
        self._episode_task = np.zeros(num_envs, int)  # the task of the current episode; `task` is that of the next
        self._origin = np.zeros((num_envs, 2))  # where the ant was last put upright
        self._reached_goal = np.zeros(num_envs, bool)  # in the current episode

    def world(self, task: int) -> mujoco.MjModel:
        """Return the MuJoCo model of a task."""
        return self.model

    def _start_xy(self, slots: np.ndarray) -> Any:
        raise NotImplementedError

    def _put_upright(self, slots: np.ndarray, xy: Any) -> tuple[np.ndarray, np.ndarray]:
        """Draw a new pose and velocity for the ants in `slots`, standing at `xy`.

        Returns qpos [len(slots), 15] and qvel [len(slots), 14]. `xy` becomes the origin of relative positions.
        """
        qpos = self.model.qpos0[:NQ] + self._sample(lambda rng, n: rng.uniform(-0.1, 0.1, (n, NQ)), slots)
        qpos[:, :2] = self._origin[slots] = xy
        return normalise_quaternions(qpos), self._sample(lambda rng, n: 0.1 * rng.standard_normal((n, NV)), slots)

    def _initial_state(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self._episode_task[slots], self._reached_goal[slots] = np.array(self.task)[slots], False
        noise = self._sample(lambda rng, n: rng.uniform(-0.1, 0.1, (n, 2)), slots)
        return self._put_upright(slots, self._start_xy(slots) + noise)

    def _edit_state(self, state: np.ndarray) -> None:
        if self.upright_interval:
            due = np.flatnonzero(self._elapsed.numpy(force=True) % self.upright_interval == 0)
            if len(due):
                qpos, qvel = self._put_upright(due, state[due, 1:3])
                state[due, 1 : 1 + NQ] = qpos
                state[due, 1 + self.model.nq : 1 + self.model.nq + NV] = qvel

    def _observe(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        xy = qpos[:, :2]
        return np.concatenate((xy, xy - self._origin, qpos[:, 2:NQ], qvel[:, :NV]), 1)
