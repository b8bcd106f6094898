"""AntMazes: nine mazes, and four held-out ones, for the ant of AntMovement."""

import copy
from typing import Any

import mujoco
import numpy as np
import torch

from mlsh.envs.ants import BOX, GREEN, NO_COLLISION, RED, HeavyAnts, add_obstacle, heavy_ant_with_walls
from mlsh.envs.base import SingleEnv
from mlsh.envs.registry import register

# each wall: x, y, half its extent along x and along y, in metres
OUTER_WALLS = ((24, -24, 24, 0.3), (24, 24, 24, 0.3), (0, 0, 0.3, 24), (48, 0, 0.3, 24))
BLOCKS = {f"{row}{column}": (8 + 16 * column, 16 - 16 * row) for row in range(3) for column in range(3)}  # x and y
MAZES = (  # the open blocks, and the goal's x and y
    ("00 10", (8, 24)),
    ("10 20", (8, -24)),
    ("01 10 11", (24, 24)),
    ("10 11 21", (24, -24)),
    ("10 11 12", (48, 0)),
    ("02 10 11 12", (40, 24)),
    ("10 11 12 22", (40, -24)),
    ("00 01 10", (32, 16)),
    ("10 20 21", (32, -16)),
    ("00 01 02 10", (40, 24)),  # this and those below are FAMP's
    ("10 20 21 22", (40, -24)),
    ("01 02 10 11", (40, 24)),
    ("10 11 21 22", (40, -24)),
)


def build_maze() -> mujoco.MjModel:
    """Build a maze in which all nine blocks are closed."""
    spec = heavy_ant_with_walls(OUTER_WALLS)
    for name, (x, y) in BLOCKS.items():
        add_obstacle(spec, (x, y, 5), (7.6, 7.6, 5), name=name, rgba=RED)
    # open_maze moves the goal. At the origin MuJoCo would compile it as sharing its body's frame, and ignore the move.
    spec.worldbody.add_geom(name="goal", type=BOX, pos=(24, 0, 0.1), size=(3, 3, 0.1), rgba=GREEN, **NO_COLLISION)
    return spec.compile()


def open_maze(model: mujoco.MjModel, task: int) -> mujoco.MjModel:
    """Return a copy of the closed maze in which the task's blocks are open and its goal is in place."""
    model, (blocks, goal) = copy.copy(model), MAZES[task]
    for name in blocks.split():
        model.geom(name).conaffinity = 0
        model.geom(name).rgba[3] = 0
    model.geom("goal").pos[:2] = goal
    return model


class AntMazesVector(HeavyAnts):
    """
    ## Description
    The paper's ant mazes, after the original's `AntObstaclesGen-v1`. A square of 48 m holds nine blocks, and in each
    task those that lead to the goal are open. Tasks 0 to 8 are the original's. Tasks 9 to 12 are FAMP's, and are held
    out of training. The ant is that of `AntMovement-v1`; the original's weighs 37.6 kg, has a round torso and starts at
    a height of 0.6 m. Every 200 steps the ant is put upright where it is, as in the original but not in FAMP.

    These faults of the original are not reproduced:

    - Every task is overwritten with 6.
    - The reward follows a new task at once, but the walls only at the next reset.
    - The count of steps between two upright resets continues across episodes.
    - Blocks slide without damping and start with random velocities, so that only friction holds them.
    - The goal's plate drifts, and collides.

    ## Action Space
    `Box(-1, 1, (8,))`, as in AntMovement.

    ## Observation Space
    `Box(31)`, as in AntMovement: absolute x and y first, then x and y relative to where the ant was last put upright.
    Neither walls nor goal are observed.

    ## Rewards
    sgn(X − x) Δx / dt + sgn(Y − y) Δy / dt − 0.1 Σa², where (X, Y) is the goal, the signs are taken before the step, dt
    is 25 ms, and a are the actions before clipping. `info["distance"]` is the distance to the goal in metres;
    `info["reached"]` says whether the ant has been on the goal's plate, within 3 m in x and in y, in this episode.

    ## Starting State
    The ant is at (2, 0). qpos is uniform within ±0.1 of the model's, with the quaternion normalised. qvel is normal
    with standard deviation 0.1.

    ## Episode End
    Truncated after 1000 steps of 25 ms. Terminated only if the simulation diverges.

    ## Arguments
    As in AntMovement.
    """

    train_tasks, test_tasks = list(range(9)), list(range(9, 13))
    upright_interval: int = 200
    camera = {"distance": 75.0, "elevation": -90.0, "azimuth": 90.0, "lookat": np.array((24.0, 0.0, 0.0))}

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        device: str | torch.device = "cpu",
        sim_threads: int | None = None,
    ) -> None:
        super().__init__(build_maze(), num_envs, max_episode_steps, render_mode, device, sim_threads)
        self._mazes = [open_maze(self.model, task) for task in range(len(MAZES))]
        self._goals = np.array([goal for _, goal in MAZES])

    def _start_xy(self, slots: np.ndarray) -> tuple[int, int]:
        return 2, 0

    def world(self, task: int) -> mujoco.MjModel:
        return self._mazes[task]

    def _models(self) -> list[mujoco.MjModel]:
        return [self.world(task) for task in self._episode_task]

    def _reward(
        self, qpos_before: np.ndarray, actions: np.ndarray, qpos: np.ndarray, sensors: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        xy_before, xy, goal = qpos_before[:, :2], qpos[:, :2], self._goals[self._episode_task]
        direction = np.where(xy_before < goal, 1, -1)
        reward = (direction * (xy - xy_before)).sum(1) / self.dt - 0.1 * (actions**2).sum(1)
        self._reached_goal |= (np.abs(xy - goal) <= 3).all(1)
        return reward, {"distance": np.linalg.norm(xy - goal, axis=1), "reached": self._reached_goal}

    def _render_episode(self, e: int) -> Any:
        maze = self.world(self._episode_task[e])
        self.model.geom_rgba[:], self.model.geom_pos[:] = maze.geom_rgba, maze.geom_pos
        return super()._render_episode(e)


class AntMazes(SingleEnv):
    __doc__ = AntMazesVector.__doc__
    vector_class = AntMazesVector


PRESET: dict[str, Any] = {
    "N": 2,
    "W": 14,
    "U": 36,
    "tasks": 17,
    "epochs": 4,
    # three decisions per episode, not five: an ant that is not yet fast would spend much of a longer one at a wall
    "T": 600,
    "high_len": 200,
    "num_sub_policies": 5,
    "groups": 9,
    "sub_minibatches": 21,
    "target_kl": 0.03,
    "explore": 0.3,
    "fade": 14,
    "blind": 2,
    "log_std": -0.5,
    "reward_scale": 0.1,
    "test_episodes": 20,
}
register("AntMaze-v1", AntMazes, 1000, PRESET)
