"""AntBandits ("Twowalk"): an ant that must walk right or up, and is not told which."""

import mujoco
import numpy as np
from gymnasium.spaces import Box

from mlsh.envs.ants import GHOST, light_ant, unit_quaternions, upright
from mlsh.envs.base import SingleEnv
from mlsh.envs.mujoco_tasks import MujocoTasks
from mlsh.envs.registry import register

TARGETS = ((5.0, 0.0), (0.0, 5.0))  # of the target's two slide joints
FRAME = 10.0  # half the side of the square that is drawn around the world


def build_model():
    """Gymnasium's ant, the hidden target, a drawn frame, and a sensor of the ant's centre of mass."""
    spec = light_ant()
    target = spec.worldbody.add_body(name="target", pos=(0.19, -0.19, 0.01))
    for name, axis, ref in (("target_x", (1, 0, 0), 0.1), ("target_y", (0, 1, 0), -0.1)):
        slide = {"type": mujoco.mjtJoint.mjJNT_SLIDE, "axis": axis, "ref": ref, "range": (-9, 9), "limited": True}
        target.add_joint(name=name, armature=0, damping=0, **slide)
    sphere = {"type": mujoco.mjtGeom.mjGEOM_SPHERE, "size": (0.4, 0, 0), "pos": (0, 0, 1), "rgba": (0.9, 0.1, 0.1, 1)}
    target.add_geom(name="target_geom", **sphere, **GHOST)
    corners = [(x * FRAME, y * FRAME, 0.01) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
        bar = {"type": mujoco.mjtGeom.mjGEOM_CAPSULE, "fromto": (*start, *end), "size": (0.1, 0, 0)}
        spec.worldbody.add_geom(rgba=(0.9, 0.4, 0.6, 1), **bar, **GHOST)
    for body in ("torso", "target"):
        objtype = mujoco.mjtObj.mjOBJ_BODY
        spec.add_sensor(name=f"{body}_com", type=mujoco.mjtSensor.mjSENS_SUBTREECOM, objtype=objtype, objname=body)
    return spec.compile()


class AntBanditsVector(MujocoTasks):
    """
    ## Description
    Paper, "Twowalk", with the constants of the original's `AntBandits-v1`. A four-legged ant starts near the origin;
    the target is a red ball 5 m to the right or 5 m up. Which one is the task, and hidden. Two small things are not the
    original's on MuJoCo 1.31: capsules have their exact masses (since 2.1.1; the ant 0.911 kg, then 0.879), and the
    reward's centre of mass is one substep old.

    ## Action Space
    `Box(-1, 1, (8,))`: the torques of hip 4, ankle 4, hip 1, ankle 1, hip 2, ankle 2, hip 3, ankle 3, times
    150. Clipped.

    ## Observation Space
    `Box(30)`: the ant's qpos (15, absolute x and y included), its qvel (14), and a constant 0.

    ## Rewards
    −√d / 3000, with d the distance in metres between the centres of mass of ant and target. MuJoCo's sensor of the
    centre of mass is one substep (10 ms) old. `info["distance"]` is d, `info["upright"]` whether the ant is not on its
    back.

    ## Starting State
    qpos uniform within ±0.1 of the model's, the quaternion normalised; qvel uniform in ±0.005; the target at its place,
    at rest.

    ## Episode End
    Truncated after 1000 steps of 50 ms. Terminated only if the simulation diverges.

    ## Arguments
    `num_envs`, `device` and `sim_threads` (batched view only; all cores); `max_episode_steps`; `render_mode`, "human"
    or "rgb_array".
    """

    metadata = MujocoTasks.metadata | {"render_fps": 20}
    train_tasks = [0, 1]
    frame_skip = 5
    camera = {"distance": 14.0, "elevation": -50.0, "azimuth": 90.0, "lookat": np.array((2.5, 2.5, 0.0))}
    single_observation_space = Box(-np.inf, np.inf, (30,), np.float32)
    single_action_space = Box(-1, 1, (8,), np.float32)

    def __init__(self, num_envs=1, max_episode_steps=None, render_mode=None, device="cpu", sim_threads=None):
        super().__init__(build_model(), num_envs, max_episode_steps, render_mode, device, sim_threads)

    def task_label(self, task):
        return ("right", "up")[task]

    def _initial(self, which):
        shape = self.model.nq - 2, self.model.nv - 2
        qpos = self._draw(lambda rng, n: rng.uniform(-0.1, 0.1, (n, shape[0])), which)
        qvel = self._draw(lambda rng, n: rng.uniform(-0.005, 0.005, (n, shape[1])), which)
        target = np.array([TARGETS[self.task[e]] for e in which])
        still = np.zeros_like(target)
        qpos = np.concatenate((unit_quaternions(self.model.qpos0[:-2] + qpos), target), 1)
        return qpos, np.concatenate((qvel, still), 1)

    def _observe(self, qpos, qvel):
        return np.concatenate((qpos[:, :-2], qvel[:, :-2], np.zeros((self.num_envs, 1))), 1)

    def _reward(self, before, actions, qpos, sensors):
        distance = np.linalg.norm(sensors[:, :3] - sensors[:, 3:], axis=1)
        return -np.sqrt(distance) / 3000, {"distance": distance, "upright": upright(qpos)}


class AntBandits(SingleEnv):
    __doc__ = AntBanditsVector.__doc__
    vector_class = AntBanditsVector


PRESET = {
    "N": 8,
    "W": 5,
    "U": 20,
    "tasks": 36,
    "T": 300,
    "high_len": 300,
    "groups": 4,
    "epochs": 4,
    "sub_minibatches": 32,
    "sub_lr_decay": 0.96,
    "target_kl": 0.03,
    "bootstrap": False,
    "explore": 0.1,
    "fade": 10,
    "log_std": -1.5,
    "reward_scale": 300.0,
}
register("AntBandits-v1", AntBandits, 1000, PRESET)
