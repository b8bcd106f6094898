"""SwimmerBandits: a swimmer must reach a place that it does not observe."""

from typing import Any

import mujoco
import numpy as np
import torch
from gymnasium.spaces import Box

from mlsh.envs.ant_bandits import add_target
from mlsh.envs.base import SingleEnv
from mlsh.envs.mujoco_tasks import MujocoTasks, add_com_sensors, gymnasium_model
from mlsh.envs.registry import register

FARTHEST = 5.0  # m, of a target along x and along y


def build_swimmer() -> mujoco.MjModel:
    """Build Gymnasium's swimmer, the hidden target, and sensors of two centres of mass."""
    spec = gymnasium_model("swimmer.xml")
    add_target(spec)
    add_com_sensors(spec, "mid", "target")
    return spec.compile()


class SwimmerBanditsVector(MujocoTasks):
    """
    ## Description
    The original's `SwimmerBandits-v1`. Gymnasium's swimmer of three links must reach a target, a red ball. The place of
    the target is the task, and it is not observed.

    These faults of the original are not reproduced:

    - Its XML file does not load in today's MuJoCo.
    - The reward is computed before the step, so an action does not influence its own reward.

    ## Action Space
    `Box(-1, 1, (2,))`, torques of the front and the back joint, multiplied by a gear of 150. Values outside the box are
    clipped.

    ## Observation Space
    `Box(10)`: the swimmer's qpos and qvel.

    | index | observation | unit |
    |--|--|--|
    | 0, 1 | absolute x and y of the front link's frame | m |
    | 2 | orientation of the front link | rad |
    | 3, 4 | angles of the front and the back joint | rad |
    | 5, 6 | velocity of the front link's frame | m/s |
    | 7 | angular velocity of the front link | rad/s |
    | 8, 9 | angular velocities of the joints | rad/s |

    ## Rewards
    0.001 (−d − 0.0001 Σa²), where d is the distance in metres between the target and the centre of mass of the two
    links behind, and a are the actions before clipping. The target is 1 m above the swimmer, so d is at least 1 m.
    MuJoCo's sensor of the centre of mass is one substep (10 ms) old. `info["distance"]` is d.

    ## Tasks
    Places (x, y), uniform in [0, 5]² (metres).

    ## Starting State
    The swimmer lies along x, at the origin. qpos is uniform within ±0.1 of the model's, qvel within ±0.005. The target
    is at its place, at rest.

    ## Episode End
    Truncated after 1000 steps of 40 ms. Terminated only if the simulation diverges.

    ## Arguments
    `max_episode_steps`; `render_mode`, "human" or "rgb_array". Single view only: `task`. Batched view only:
    `num_envs`, `device`, and `sim_threads`, 0 or None for all cores.
    """

    metadata = MujocoTasks.metadata | {"render_fps": 25}
    frame_skip = 4
    camera = {"distance": 14.0, "elevation": -60.0, "azimuth": 90.0, "lookat": np.array((2.0, 2.0, 0.0))}
    single_observation_space = Box(-np.inf, np.inf, (10,), np.float32)
    single_action_space = Box(-1, 1, (2,), np.float32)
    task_shape = (2,)

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        device: str | torch.device = "cpu",
        sim_threads: int | None = None,
    ) -> None:
        super().__init__(build_swimmer(), num_envs, max_episode_steps, render_mode, device, sim_threads)

    def sample_task(self, rng: np.random.Generator) -> list[float]:
        return rng.uniform(0, FARTHEST, 2).tolist()

    def task_label(self, task: Any) -> str:
        return f"({task[0]:.2f}, {task[1]:.2f})"

    def _initial_state(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        qpos = self._sample(lambda rng, n: rng.uniform(-0.1, 0.1, (n, 5)), slots)
        qvel = self._sample(lambda rng, n: rng.uniform(-0.005, 0.005, (n, 5)), slots)
        target = np.array(self.task, float)[slots]
        return np.concatenate((qpos, target), 1), np.concatenate((qvel, np.zeros_like(target)), 1)

    def _observe(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        return np.concatenate((qpos[:, :5], qvel[:, :5]), 1)

    def _reward(
        self, qpos_before: np.ndarray, actions: np.ndarray, qpos: np.ndarray, sensors: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        distance = np.linalg.norm(sensors[:, :3] - sensors[:, 3:], axis=1)
        return -0.001 * (distance + 1e-4 * (actions**2).sum(1)), {"distance": distance}


class SwimmerBandits(SingleEnv):
    __doc__ = SwimmerBanditsVector.__doc__
    vector_class = SwimmerBanditsVector


PRESET: dict[str, Any] = {
    "N": 2,
    "W": 10,
    "U": 30,
    "tasks": 10,
    "T": 1000,
    "high_len": 200,
    "num_sub_policies": 4,
    "groups": 8,
    "epochs": 4,
    "sub_minibatches": 32,
    "target_kl": 0.03,
    "blind": 2,
    "sub_spread": 0.1,
    "explore": 0.1,
    "fade": 10,
    "log_std": -0.5,
    "reward_scale": 100.0,
}
register("SwimmerBandits-v1", SwimmerBandits, 1000, PRESET)
