"""HumanoidBandits and HumanoidCourse: a humanoid must walk, or crawl under a ceiling."""

from typing import Any

import mujoco
import numpy as np
import torch
from gymnasium.spaces import Box

from mlsh.envs.ants import BOX, NO_COLLISION, OBSTACLE
from mlsh.envs.base import SingleEnv
from mlsh.envs.mujoco_tasks import MujocoTasks, add_com_sensors, gymnasium_model
from mlsh.envs.registry import register

NQ, NV = 24, 23
CRAWL, WALK = 0, 1  # the tasks
STANDING = 1.0  # m, the height of the torso's middle above which a humanoid stands
STRENGTH = 0.4  # the largest control
COURSE_END = 25.0  # m, where the course's walk ends
CEILING = {False: -12.0, True: 12.0}  # m, x of the ceiling's middle in HumanoidBandits and on the course


def build_humanoid(course: bool = False, with_ceiling: bool = True) -> mujoco.MjModel:
    """Build Gymnasium's humanoid, a sensor of its centre of mass, and the ceiling.

    Without the ceiling, its box is still in the model, but it touches nothing and is not drawn. So both models have the
    same geoms.
    """
    spec = gymnasium_model("humanoid.xml")
    spec.geom("floor").size = 40, 40, 0.125  # how far it is drawn; physically it has no end
    ceiling = {"type": BOX, "pos": (CEILING[course], 0, 1.5), "size": (11.5, 11.5, 0.5)}
    kind = OBSTACLE if with_ceiling else NO_COLLISION
    spec.worldbody.add_geom(name="ceiling", rgba=(0.9, 0.2, 0.2, 0.3 * with_ceiling), **ceiling, **kind)
    add_com_sensors(spec, "torso")
    return spec.compile()


class HumanoidVector(MujocoTasks):
    """
    ## Description
    The paper's "Walk/Crawl" and the course that combines the two, after the original's `Humanoid-v1` and
    `HumanoidCourse-v1`. In `HumanoidBandits-v1` a humanoid must walk forward (+x, task 1), or crawl backward (−x, task
    0) under a ceiling 1 m above the floor. Which of the two is the task, and it is not observed. In `HumanoidCourse-v1`
    it must first walk until x exceeds 25 m. Then a ceiling appears behind it, under which it must crawl back. The
    course is made for sub-policies that have learned in `HumanoidBandits-v1`, because observations and actions are the
    same: `evaluate.py RUN --env HumanoidCourse-v1`.

    These details differ from the original:

    - The original also observes inertias, velocities and forces of all bodies (376 numbers), and subtracts up to 10 for
      impacts. MuJoCo's batched simulation does not return them.
    - The original's course shows x instead of z. So sub-policies that have learned in `Humanoid-v1` see x where
      they have learned to see z. Here both are shown in both environments.
    - The body is that of Gymnasium's `Humanoid-v5`. Its left hip bends to −110°; the original's to −120°.
    - In the original the ceiling is there in the first step of every episode, also where the humanoid must walk.
    - The centre of mass in the reward is one substep (3 ms) old.

    ## Action Space
    `Box(-1, 1, (17,))`. Actions are multiplied by 0.4 and are then the controls of Gymnasium's `Humanoid-v5`, in the
    same order. Values outside the box are clipped.

    ## Observation Space
    `Box(46)`: the humanoid's qpos without y, and its qvel.

    | index | observation | unit |
    |--|--|--|
    | 0, 1 | x and z of the torso | m |
    | 2–5 | orientation of the torso, a quaternion (w, x, y, z) | |
    | 6–22 | angles of the joints | rad |
    | 23–25 | velocity of the torso | m/s |
    | 26–28 | angular velocity of the torso | rad/s |
    | 29–45 | angular velocities of the joints | rad/s |

    ## Rewards
    Walking: 5 + 0.25 v − 0.1 Σc², where c are the controls before clipping; −0.1 Σc² if the torso is lower than 1 m.
    Crawling: −1.5 v − 0.1 Σc². v is the way of the centre of mass along x in this step, divided by the simulator's
    time step of 3 ms, as in the original. A step has 15 ms, so v is five times the speed in m/s. On the course, the
    step in which x exceeds 25 m is already paid as crawling.

    `info["walked"]` is how far the humanoid has walked in metres, as long as it had to walk. `info["crawled"]` is how
    far it has crawled back since then. `info["steps_upright"]` is the number of steps after which the torso was 1 m
    high or more. On the course, `info["reached"]` says whether x has exceeded 25 m.

    ## Starting State
    The humanoid stands at the origin. qpos is uniform within ±0.01 of the model's, with the quaternion normalised. qvel
    is uniform within ±0.01.

    ## Episode End
    Terminated if the torso is lower than 1 m while the humanoid must walk, or if the simulation diverges. Truncated
    after 1000 steps of 15 ms, on the course after 3000.

    ## Arguments
    `max_episode_steps`; `render_mode`, "human" or "rgb_array"; `course`, whether to build the course. Single view only:
    `task`. Batched view only: `num_envs`, `device`, and `sim_threads`, 0 or None for all cores.
    """

    metadata = MujocoTasks.metadata | {"render_fps": 67}
    frame_skip = 5
    pays_after_divergence = False
    camera = {"distance": 6.0, "elevation": -10.0, "azimuth": 90.0}
    follow_camera = camera
    single_observation_space = Box(-np.inf, np.inf, (NQ - 1 + NV,), np.float32)
    single_action_space = Box(-1, 1, (17,), np.float32)

    def __init__(
        self,
        num_envs: int = 1,
        course: bool = False,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        device: str | torch.device = "cpu",
        sim_threads: int | None = None,
    ) -> None:
        self.course = course
        self.train_tasks = [0] if course else [CRAWL, WALK]
        model = build_humanoid(course, with_ceiling=False)
        super().__init__(model, num_envs, max_episode_steps, render_mode, device, sim_threads)
        self._worlds = {walks: build_humanoid(course, with_ceiling=not walks) for walks in (False, True)}
        self._walks = np.zeros(num_envs, bool)  # whether the humanoid must walk now
        self._turned_at = np.zeros(num_envs)  # x where it first had to crawl
        self._steps_upright = np.zeros(num_envs)

    def task_label(self, task: int) -> str:
        return "course" if self.course else ("crawl", "walk")[task]

    def _initial_state(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        qpos = self.model.qpos0 + self._sample(lambda rng, n: rng.uniform(-0.01, 0.01, (n, NQ)), slots)
        qpos[:, 3:7] /= np.linalg.norm(qpos[:, 3:7], axis=1, keepdims=True)
        self._walks[slots] = self.course | (np.array(self.task)[slots] == WALK)
        self._turned_at[slots], self._steps_upright[slots] = qpos[:, 0], 0
        return qpos, self._sample(lambda rng, n: rng.uniform(-0.01, 0.01, (n, NV)), slots)

    def control(self, actions: torch.Tensor) -> np.ndarray:
        return STRENGTH * super().control(actions)

    def _models(self) -> list[mujoco.MjModel]:
        return [self._worlds[walks] for walks in self._walks.tolist()]

    def _observe(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        return np.concatenate((qpos[:, :1], qpos[:, 2:], qvel), 1)

    def _reward(
        self, qpos_before: np.ndarray, actions: np.ndarray, qpos: np.ndarray, sensors: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        x, stands = qpos[:, 0], qpos[:, 2] >= STANDING
        self._steps_upright += stands
        if self.course:
            turns = self._walks & (x > COURSE_END)
            self._turned_at[turns] = x[turns]
            self._walks &= ~turns
        speed = (sensors[:, 0] - self._sensors[:, 0]) / self.model.opt.timestep
        reward = np.where(self._walks, stands * (5 + 0.25 * speed), -1.5 * speed)
        reward = reward - 0.1 * ((STRENGTH * actions) ** 2).sum(1)
        info = {
            "walked": np.where(self._walks, x, self.course * self._turned_at),
            "crawled": np.where(self._walks, 0, self._turned_at - x),
            "steps_upright": self._steps_upright.copy(),
        }
        return reward, info | ({"reached": ~self._walks} if self.course else {})

    def _ended(self, qpos: np.ndarray) -> np.ndarray:
        return self._walks & (qpos[:, 2] < STANDING)

    def _render_episode(self, e: int) -> Any:
        self.model.geom_rgba[:] = self._worlds[bool(self._walks[e])].geom_rgba
        return super()._render_episode(e)


class Humanoid(SingleEnv):
    __doc__ = HumanoidVector.__doc__
    vector_class = HumanoidVector


# In HumanoidBandits an episode has 250 of 1000 steps and is one decision. Masters see x alone. In 32 decisions they
# learn which sub-policy a task needs.
PRESET: dict[str, Any] = {
    "N": 8,
    "W": 4,
    "U": 36,
    "tasks": 16,
    "T": 250,
    "high_len": 250,
    "groups": 4,
    "epochs": 5,
    "sub_minibatches": 16,
    "gamma": 0.97,
    "target_kl": 0.03,
    "hidden": 128,
    "blind": 1,
    "master_sees": 1,
    "bootstrap": False,
    "sub_spread": 0.1,
    "explore": 0.1,
    "fade": 12,
    "log_std": -1.0,
    "reward_scale": 0.1,
}
register("HumanoidBandits-v1", Humanoid, 1000, PRESET, course=False)
register("HumanoidCourse-v1", Humanoid, 3000, PRESET | {"T": 3000}, course=True)
