"""What the ant families share: Gymnasium's ant, and the heavy one of the original's courses."""

from pathlib import Path

import gymnasium.envs.mujoco
import mujoco
import numpy as np
from gymnasium.spaces import Box

from mlsh.envs.mujoco_tasks import MujocoTasks

NQ, NV = 15, 14  # of the ant alone; what else moves comes behind it
HEAVY = 40.0  # kg
GHOST = {"contype": 0, "conaffinity": 0}  # of a geom that is only drawn
FIXED = {"contype": 0, "conaffinity": 1, "margin": 0}  # of one that the ant runs against, and nothing else
BOX = mujoco.mjtGeom.mjGEOM_BOX
GREEN, RED, WHITE = (0.2, 0.9, 0.2, 1), (0.9, 0.2, 0.2, 1), (0.9, 0.9, 0.9, 1)


def light_ant():
    """Gymnasium's ant as a spec, its contacts beginning 10 mm above the floor.

    MuJoCo adds the margins of two geoms, before 3.5.0 it took the larger; with 0 on the floor both are the foot's.
    """
    path = Path(gymnasium.envs.mujoco.__file__).parent / "assets" / "ant.xml"
    spec = mujoco.MjSpec.from_string(path.read_text().replace('coordinate="local"', ""))
    spec.geom("floor").margin = 0
    return spec


def heavy_ant():
    """The original's `ant_v2` as a spec: a long torso with a head, the front hips further ahead, 40 kg."""
    spec = light_ant()
    spec.option.timestep = 0.005
    spec.geom("floor").size = 80, 80, 40  # as far as it is drawn; it has no end
    torso = spec.geom("torso_geom")
    torso.type, torso.size = mujoco.mjtGeom.mjGEOM_ELLIPSOID, (0.5, 0.25, 0.25)
    head = {"type": mujoco.mjtGeom.mjGEOM_SPHERE, "size": (0.25, 0, 0), "pos": (0.4, 0, 0.25), "density": 0.01}
    spec.body("torso").add_geom(name="head", rgba=(1, 0.5, 0.3, 1), **head)
    for name, y in (("aux_1", 0.2), ("aux_4", -0.2)):
        spec.body(name).pos = 0.4, y, 0
    factor = HEAVY / spec.copy().compile().body("torso").subtreemass[0]
    for geom in spec.geoms:
        geom.density *= factor
    return spec


def unit_quaternions(qpos):
    """`qpos` [n, nq] with the torso's quaternions normalised, in place."""
    qpos[:, 3:7] /= np.linalg.norm(qpos[:, 3:7], axis=1, keepdims=True)
    return qpos


def upright(qpos):
    """Whether the torso's own upwards is up, for `qpos` [n, nq], by its quaternion (w, x, y, z)."""
    return (qpos[:, 4:6] ** 2).sum(1) < 0.5


class HeavyAnts(MujocoTasks):
    """A family of tasks for the heavy ant, which may be put upright every `upright_every` steps, where it is.

    A subclass defines `_start(which)` -> x and y at which episodes of the slots begin, broadcastable to [n, 2].
    """

    metadata = MujocoTasks.metadata | {"render_fps": 40}
    frame_skip, dt = 5, 0.025  # s a control step
    upright_every = None
    single_observation_space = Box(-np.inf, np.inf, (4 + NQ - 2 + NV,), np.float32)
    single_action_space = Box(-1, 1, (8,), np.float32)

    def __init__(self, model, num_envs, max_episode_steps, render_mode, device, sim_threads):
        super().__init__(model, num_envs, max_episode_steps, render_mode, device, sim_threads)
        self._playing = np.zeros(num_envs, int)  # the task of the episode that is going on
        self._origin = np.zeros((num_envs, 2))  # where the ant was put upright
        self._reached = np.zeros(num_envs, bool)  # the goal, in this episode

    def world(self, task):
        """The MuJoCo model of a task."""
        return self.model

    def _upright(self, which, xy):
        """Redraw the ant's pose and velocity in the slots `which`, standing at `xy`; qpos [n, 15] and qvel [n, 14]."""
        qpos = self.model.qpos0[:NQ] + self._draw(lambda rng, n: rng.uniform(-0.1, 0.1, (n, NQ)), which)
        qpos[:, :2] = self._origin[which] = xy
        return unit_quaternions(qpos), self._draw(lambda rng, n: 0.1 * rng.standard_normal((n, NV)), which)

    def _initial(self, which):
        self._playing[which], self._reached[which] = np.array(self.task)[which], False
        noise = self._draw(lambda rng, n: rng.uniform(-0.1, 0.1, (n, 2)), which)
        return self._upright(which, self._start(which) + noise)

    def _between(self, state):
        if self.upright_every:
            due = np.flatnonzero(self._elapsed.numpy(force=True) % self.upright_every == 0)
            if len(due):
                qpos, qvel = self._upright(due, state[due, 1:3])
                state[due, 1 : 1 + NQ] = qpos
                state[due, 1 + self.model.nq : 1 + self.model.nq + NV] = qvel

    def _observe(self, qpos, qvel):
        xy = qpos[:, :2]
        return np.concatenate((xy, xy - self._origin, qpos[:, 2:NQ], qvel[:, :NV]), 1)
