"""WalkerObstacles: a walker must run, and jump over hurdles that it does not observe."""

from typing import Any

import mujoco
import numpy as np
import torch
from gymnasium.spaces import Box

from mlsh.envs.ants import BOX, OBSTACLE, RED
from mlsh.envs.base import SingleEnv
from mlsh.envs.mujoco_tasks import MujocoTasks, gymnasium_model
from mlsh.envs.registry import register

HURDLES = (6.0, 12.0, 18.0, 24.0)  # m, x of their middles
NONE, MEDIUM, LOW = -2.0, 0.225, 0.125  # m, of a hurdle's middle above the floor; its top is 0.5 m higher
TASKS = (
    (NONE, NONE, NONE, NONE),
    (MEDIUM, NONE, NONE, NONE),
    (NONE, MEDIUM, NONE, NONE),
    (MEDIUM, MEDIUM, NONE, NONE),
    (LOW, LOW, LOW, LOW),  # held out
)


def build_walker(task: int) -> mujoco.MjModel:
    """Build Gymnasium's walker and the hurdles of a task; those that it does not have are below the floor."""
    spec = gymnasium_model("walker2d_v5.xml")
    for i, (x, height) in enumerate(zip(HURDLES, TASKS[task], strict=True)):
        hurdle = {"type": BOX, "pos": (x, 0, height), "size": (0.1, 1, 0.5), "rgba": RED}
        spec.worldbody.add_geom(name=f"hurdle_{i}", **hurdle, **OBSTACLE)
    return spec.compile()


class WalkerObstaclesVector(MujocoTasks):
    """
    ## Description
    The original's `Obstacles-v1`. The two-legged walker of Gymnasium's `Walker2d-v5` must run to the right. In each of
    four tasks, hurdles of 0.725 m stand at 6 m, at 12 m, at both or at neither. They are not observed. Task 4 is held
    out of training: four hurdles of 0.625 m at 6, 12, 18 and 24 m, which is commented out in the original.

    These faults of the original are not reproduced:

    - Its XML file does not load in today's MuJoCo.
    - Hurdles are on joints, and are put back into their places after every step. Here they are fixed.

    ## Action Space
    `Box(-1, 1, (6,))`, the torques of Gymnasium's `Walker2d-v5`. Values outside the box are clipped.

    ## Observation Space
    `Box(17)`, as in Gymnasium's `Walker2d-v5`: qpos without x, then qvel clipped to ±10.

    ## Rewards
    Δx / dt + Δz / dt − 0.001 Σa², where x and z are the place of the torso, dt is 8 ms, and a are the actions before
    clipping. `info["walked"]` is x in metres.

    ## Starting State
    The walker stands at the origin. qpos is uniform within ±0.005 of the model's, and so is qvel.

    ## Episode End
    Truncated after 1000 steps of 8 ms. Terminated only if the simulation diverges: a walker that falls lies until the
    end, as in the original.

    ## Arguments
    `max_episode_steps`; `render_mode`, "human" or "rgb_array". Single view only: `task`. Batched view only:
    `num_envs`, `device`, and `sim_threads`, 0 or None for all cores.
    """

    metadata = MujocoTasks.metadata | {"render_fps": 125}
    train_tasks, test_tasks = [0, 1, 2, 3], [4]
    frame_skip = 4
    camera = {"distance": 6.0, "elevation": -15.0, "azimuth": 90.0}
    follow_camera = camera
    single_observation_space = Box(-np.inf, np.inf, (17,), np.float32)
    single_action_space = Box(-1, 1, (6,), np.float32)

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        device: str | torch.device = "cpu",
        sim_threads: int | None = None,
    ) -> None:
        super().__init__(build_walker(0), num_envs, max_episode_steps, render_mode, device, sim_threads)
        self._worlds = [build_walker(task) for task in range(len(TASKS))]
        self._episode_task = np.zeros(num_envs, int)  # the task of the current episode; `task` is that of the next

    def task_label(self, task: int) -> str:
        places = [f"{x:g}" for x, height in zip(HURDLES, TASKS[task], strict=True) if height > NONE]
        return f"hurdles at {', '.join(places)} m" if places else "no hurdles"

    def _initial_state(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self._episode_task[slots] = np.array(self.task)[slots]
        qpos = self._sample(lambda rng, n: rng.uniform(-0.005, 0.005, (n, self.model.nq)), slots)
        qvel = self._sample(lambda rng, n: rng.uniform(-0.005, 0.005, (n, self.model.nv)), slots)
        return self.model.qpos0 + qpos, qvel

    def _models(self) -> list[mujoco.MjModel]:
        return [self._worlds[task] for task in self._episode_task]

    def _observe(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        return np.concatenate((qpos[:, 1:], np.clip(qvel, -10, 10)), 1)

    def _reward(
        self, qpos_before: np.ndarray, actions: np.ndarray, qpos: np.ndarray, sensors: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        speed = (qpos[:, :2] - qpos_before[:, :2]).sum(1) / (self.frame_skip * self.model.opt.timestep)
        return speed - 1e-3 * (actions**2).sum(1), {"walked": qpos[:, 0].copy()}

    def _render_episode(self, e: int) -> Any:
        self.model.geom_pos[:] = self._worlds[self._episode_task[e]].geom_pos
        return super()._render_episode(e)


class WalkerObstacles(SingleEnv):
    __doc__ = WalkerObstaclesVector.__doc__
    vector_class = WalkerObstaclesVector


PRESET: dict[str, Any] = {
    "N": 2,
    "W": 5,
    "U": 35,
    "tasks": 8,
    "T": 1000,
    "high_len": 200,
    "groups": 4,
    "epochs": 4,
    "sub_minibatches": 32,
    "target_kl": 0.03,
    "sub_spread": 0.1,
    "explore": 0.1,
    "fade": 5,
    "log_std": -0.5,
    "reward_scale": 0.1,
}
register("WalkerObstacles-v1", WalkerObstacles, 1000, PRESET)
