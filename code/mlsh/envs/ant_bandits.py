"""AntBandits ("Twowalk"): an ant must walk right or up, and does not observe which."""

from typing import Any

import mujoco
import numpy as np
import torch
from gymnasium.spaces import Box

from mlsh.envs.ants import NO_COLLISION, is_upright, normalise_quaternions
from mlsh.envs.base import SingleEnv
from mlsh.envs.mujoco_tasks import MujocoTasks, add_com_sensors, gymnasium_model
from mlsh.envs.registry import register

TARGETS = np.array(((5.0, 0.0), (0.0, 5.0)))  # positions of the target's two slide joints, for each task
FRAME = 10.0  # half the side of the square that is drawn around the world


def add_target(spec: mujoco.MjSpec) -> None:
    """Add a target on two slide joints, a red ball that touches nothing, and draw a frame around the world."""
    target = spec.worldbody.add_body(name="target", pos=(0.19, -0.19, 0.01))
    for name, axis, ref in (("target_x", (1, 0, 0), 0.1), ("target_y", (0, 1, 0), -0.1)):
        slide = {"type": mujoco.mjtJoint.mjJNT_SLIDE, "axis": axis, "ref": ref, "range": (-9, 9), "limited": True}
        target.add_joint(name=name, armature=0, damping=0, **slide)
    sphere = {"type": mujoco.mjtGeom.mjGEOM_SPHERE, "size": (0.4, 0, 0), "pos": (0, 0, 1), "rgba": (0.9, 0.1, 0.1, 1)}
    target.add_geom(name="target_geom", **sphere, **NO_COLLISION)
    corners = [(x * FRAME, y * FRAME, 0.01) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
        bar = {"type": mujoco.mjtGeom.mjGEOM_CAPSULE, "fromto": (*start, *end), "size": (0.1, 0, 0)}
        spec.worldbody.add_geom(rgba=(0.9, 0.4, 0.6, 1), **bar, **NO_COLLISION)


def build_model() -> mujoco.MjModel:
    """Build Gymnasium's ant, the hidden target, and sensors of both centres of mass."""
    spec = gymnasium_model("ant.xml")
    add_target(spec)
    add_com_sensors(spec, "torso", "target")
    return spec.compile()


class AntBanditsVector(MujocoTasks):
    """
    ## Description
    The paper's "Twowalk", with the constants of the original's `AntBandits-v1`. A four-legged ant starts near the
    origin. The target is a red ball, 5 m to the right or 5 m up. Which of the two is the task, and it is not observed.

    Two details differ from the original on MuJoCo 1.31. Capsules have their exact masses, as in MuJoCo since 2.1.1, so
    the ant weighs 0.911 kg instead of 0.879 kg. The centre of mass in the reward is one substep old.

    ## Action Space
    `Box(-1, 1, (8,))`, torques, multiplied by a gear of 150. Values outside the box are clipped.

    | index | joint |
    |--|--|
    | 0, 1 | hip 4, ankle 4 |
    | 2, 3 | hip 1, ankle 1 |
    | 4, 5 | hip 2, ankle 2 |
    | 6, 7 | hip 3, ankle 3 |

    ## Observation Space
    `Box(30)`: the ant's qpos and qvel, and a constant.

    | index | observation | unit |
    |--|--|--|
    | 0–2 | absolute x, y and z of the torso | m |
    | 3–6 | orientation of the torso, a quaternion (w, x, y, z) | |
    | 7–14 | angles of hip and ankle 1, 2, 3 and 4 | rad |
    | 15–17 | velocity of the torso | m/s |
    | 18–20 | angular velocity of the torso | rad/s |
    | 21–28 | angular velocities of the joints, in the order of the angles | rad/s |
    | 29 | constant 0 | |

    ## Rewards
    −√d / 3000, where d is the distance in metres between the centres of mass of ant and target. MuJoCo's sensor of the
    centre of mass is one substep (10 ms) old. `info["distance"]` is d. `info["upright"]` says whether the ant is not
    on its back.

    ## Starting State
    qpos is uniform within ±0.1 of the model's, with the quaternion normalised. qvel is uniform within ±0.005. The
    target is at its place, at rest.

    ## Episode End
    Truncated after 1000 steps of 50 ms. Terminated only if the simulation diverges.

    ## Arguments
    `max_episode_steps`; `render_mode`, "human" or "rgb_array". Single view only: `task`. Batched view only:
    `num_envs`, `device`, and `sim_threads`, 0 or None for all cores.
    """

    metadata = MujocoTasks.metadata | {"render_fps": 20}
    train_tasks = [0, 1]
    frame_skip = 5
    camera = {"distance": 14.0, "elevation": -50.0, "azimuth": 90.0, "lookat": np.array((2.5, 2.5, 0.0))}
    single_observation_space = Box(-np.inf, np.inf, (30,), np.float32)
    single_action_space = Box(-1, 1, (8,), np.float32)

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        device: str | torch.device = "cpu",
        sim_threads: int | None = None,
    ) -> None:
        super().__init__(build_model(), num_envs, max_episode_steps, render_mode, device, sim_threads)

    def task_label(self, task: int) -> str:
        return ("right", "up")[task]

    def _initial_state(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nq, nv = self.model.nq - 2, self.model.nv - 2  # of the ant; the last two are the target's
        qpos = self._sample(lambda rng, n: rng.uniform(-0.1, 0.1, (n, nq)), slots)
        qvel = self._sample(lambda rng, n: rng.uniform(-0.005, 0.005, (n, nv)), slots)
        target = TARGETS[np.array(self.task)[slots]]
        qpos = np.concatenate((normalise_quaternions(self.model.qpos0[:-2] + qpos), target), 1)
        return qpos, np.concatenate((qvel, np.zeros_like(target)), 1)

    def _observe(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        return np.concatenate((qpos[:, :-2], qvel[:, :-2], np.zeros((self.num_envs, 1))), 1)

    def _reward(
        self, qpos_before: np.ndarray, actions: np.ndarray, qpos: np.ndarray, sensors: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        distance = np.linalg.norm(sensors[:, :3] - sensors[:, 3:], axis=1)
        return -np.sqrt(distance) / 3000, {"distance": distance, "upright": is_upright(qpos)}


class AntBandits(SingleEnv):
    __doc__ = AntBanditsVector.__doc__
    vector_class = AntBanditsVector


PRESET: dict[str, Any] = {
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
