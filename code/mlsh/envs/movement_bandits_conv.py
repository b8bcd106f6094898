"""MovementBanditsConv: MovementBandits observed as a small image."""

import numpy as np
import torch
from gymnasium.spaces import Box

from mlsh.envs.base import Info, SingleEnv
from mlsh.envs.movement_bandits import PRESET as BANDITS_PRESET
from mlsh.envs.movement_bandits import MovementBanditsVector
from mlsh.envs.point_world import WORLD, near
from mlsh.envs.registry import register

CELL = 25.0  # pixels, the side of a cell
SIDE = int(WORLD / CELL)  # cells, the side of the image
WALLS = 27.0, 350.0  # pixels, the least and greatest x and y of the agent
GOALS = 26, 350  # pixels; x and y of a goal are drawn from 26 … 349
BEST_RETURN = 45.59  # in 50 steps: exact shortest paths to every goal, where positions are known exactly


class MovementBanditsConvVector(MovementBanditsVector):
    """
    ## Description
    The original's `MovementBanditsConv`, which the original does not register: `MovementBandits-v0` as an image of
    16 × 16 cells of 25 pixels, and within walls. Standing near the right one of two goals pays. Which one is right is
    the task, and it is not observed.

    ## Action Space
    `Discrete(5)`: stay, +x, −x, +y, −y, by 20 pixels, or up to the wall.

    ## Observation Space
    `Box(0, 1, (16, 16, 3), uint8)`, indexed [x // 25, y // 25, plane]. The original has the same numbers as a vector of
    floats.

    | plane | 1 in the cell of |
    |--|--|
    | 0 | the agent |
    | 1 | goal 0 |
    | 2 | goal 1 |

    ## Rewards
    1 if, after the move, the squared distance between the agent and the task's goal is below 2500; otherwise 0. The
    original computes the reward before its walls stop the agent.

    ## Starting State
    The agent is at (200, 200). The coordinates of each goal are whole numbers, uniform in 26 … 349.

    ## Episode End
    Truncated after 50 steps, never terminated.

    ## Arguments
    `max_episode_steps`; `render_mode`, "human" or "rgb_array". Single view only: `task`. Batched view only:
    `num_envs` and `device`.

    Pictures show the world and not the cells, as in `MovementBandits-v0`.
    """

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(num_envs, 2, max_episode_steps, render_mode, device)
        # Indices on the CPU would have to be sent to a GPU at every step.
        self._slots = torch.arange(num_envs, device=self.device)[:, None]
        self._planes = torch.arange(3, device=self.device)

    def _space(self) -> Box:
        return Box(0, 1, (SIDE, SIDE, 3), np.uint8)

    def _new_goals(self, rng: np.random.Generator, n: int) -> np.ndarray:
        return rng.integers(*GOALS, (n, 2, 2))

    def _observation(self) -> torch.Tensor:
        x, y = (torch.cat((self.agent[:, None], self.goals), 1) / CELL).long().unbind(2)  # [E, 3]
        image = torch.zeros(self.num_envs, SIDE, SIDE, 3, dtype=torch.uint8, device=self.device)
        image[self._slots, x, y, self._planes] = 1
        return image

    def _step(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Info]:
        self.agent = (self.agent + self._moves[actions]).clamp(*WALLS)
        return self._observation(), near(self.agent, self._right_goal).float(), self._never_terminated, {}


class MovementBanditsConv(SingleEnv):
    __doc__ = MovementBanditsConvVector.__doc__
    vector_class = MovementBanditsConvVector


PRESET = BANDITS_PRESET | {
    "W": 5,
    "U": 3,
    "tasks": 45,
    "epochs": 2,
    "groups": 4,
    "master_minibatch": 40,
    "sub_minibatches": 100,
    "sub_lr_decay": 0.96,
    "fade": 25,
    "dual_clip": 3.0,
}
register("MovementBanditsConv-v0", MovementBanditsConv, 50, PRESET, BEST_RETURN)
