"""MovementBanditsConv: MovementBandits seen as a small image."""

import numpy as np
import torch
from gymnasium.spaces import Box

from mlsh.envs.base import SingleEnv
from mlsh.envs.movement_bandits import PRESET as OF_BANDITS
from mlsh.envs.movement_bandits import MovementBanditsVector
from mlsh.envs.point_world import WORLD, near
from mlsh.envs.registry import register

CELL = 25.0  # pixels, the side of a cell
SIDE = int(WORLD / CELL)  # of the image
WALLS = 27.0, 350.0  # between which the agent stays, both coordinates
GOALS = 26, 350  # from … to below …
BEST_RETURN = 45.59  # the best possible mean return in 50 steps, by exact shortest paths to every goal, positions known


class MovementBanditsConvVector(MovementBanditsVector):
    """
    ## Description
    The original's `MovementBanditsConv`, which it does not register: `MovementBandits-v0` as an image of 16 × 16 cells
    of 25 pixels, and within walls. Standing near the right one of two goals pays; which one is right is the task, and
    hidden.

    ## Action Space
    `Discrete(5)`: stay, +x, −x, +y, −y, 20 pixels a step, or up to the wall.

    ## Observation Space
    `Box(0, 1, (16, 16, 3), uint8)`: 1 in the cell [x // 25, y // 25] of the agent in plane 0, of goal 0 in plane 1, of
    goal 1 in plane 2; else 0. (The original's is these numbers as a vector of floats.)

    ## Rewards
    1 if, after the move, the squared distance to the task's goal is below 2500, else 0. (The original pays before its
    walls stop the agent.)

    ## Starting State
    The agent at (200, 200), each goal's coordinates whole numbers, uniform in 26 … 349.

    ## Episode End
    Truncated after 50 steps, never terminated.

    ## Arguments
    `num_envs` and `device` (batched view only); `max_episode_steps`; `render_mode`, as of `MovementBandits-v0`.
    """

    def __init__(self, num_envs=1, max_episode_steps=None, render_mode=None, device="cpu"):
        super().__init__(num_envs, 2, max_episode_steps, render_mode, device)

    def _space(self):
        return Box(0, 1, (SIDE, SIDE, 3), np.uint8)

    def _new_goals(self, rng, n):
        return rng.integers(*GOALS, (n, 2, 2))

    def _observation(self):
        x, y = (torch.cat((self.agent[:, None], self.goals), 1) / CELL).long().unbind(2)  # [E, 3]
        image = torch.zeros(self.num_envs, SIDE, SIDE, 3, dtype=torch.uint8, device=self.device)
        image[torch.arange(self.num_envs)[:, None], x, y, torch.arange(3)] = 1
        return image

    def _step(self, actions):
        self.agent = (self.agent + self._moves[actions]).clamp(*WALLS)
        return self._observation(), near(self.agent, self._right).float(), self._never, {}


class MovementBanditsConv(SingleEnv):
    __doc__ = MovementBanditsConvVector.__doc__
    vector_class = MovementBanditsConvVector


PRESET = OF_BANDITS | {
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
