"""Allwalk: a point must walk to a place that it does not observe, anywhere in a square."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete

from mlsh.envs.base import Info, SingleEnv
from mlsh.envs.movement_bandits import PRESET as BANDITS_PRESET
from mlsh.envs.point_world import AGENT_RADIUS, BLACK, COLOURS, GOAL_RADIUS, MOVES, START, WORLD, Circle, PointWorld
from mlsh.envs.registry import register

REWARD_DISTANCE = 5000.0  # pixels: the distance at which a step pays −1
BEST_RETURN = -0.2953  # in 50 steps: straight to the goal, the moves that gain most first


class AllwalkVector(PointWorld):
    """
    ## Description
    The original's `Allwalk-v0`. A point walks on a plane, and pays for its distance to a goal that it does not observe.
    The goal is the task, a list [x, y] in pixels. So the family is continuous.

    ## Action Space
    `Discrete(5)`: stay, +x, −x, +y, −y, by 20 pixels.

    ## Observation Space
    `Box(2)`: x and y of the agent in pixels, divided by 400; the original does not divide.

    ## Rewards
    −(|Δx| + |Δy|) / 5000, where Δx and Δy are the differences in pixels between agent and goal after the move.

    ## Starting State
    The agent is at (200, 200). Tasks are drawn uniformly from [0, 400]².

    ## Episode End
    Truncated after 50 steps, never terminated.

    ## Arguments
    `max_episode_steps`; `render_mode`, "human" or "rgb_array". Single view only: `task`. Batched view only:
    `num_envs` and `device`.

    Pictures are 520 × 520 pixels, y upwards, with a border around [0, 400]². The agent is black, the goal orange.
    """

    single_observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    single_action_space = Discrete(len(MOVES))
    terminates = False
    task_shape = (2,)

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(num_envs, max_episode_steps, render_mode, device)
        self._moves = torch.tensor(MOVES, device=self.device)
        self._never_terminated = torch.zeros(num_envs, dtype=torch.bool, device=self.device)
        self.agent, self.goal = torch.zeros(2, num_envs, 2, device=self.device)

    def sample_task(self, rng: np.random.Generator) -> list[float]:
        return rng.uniform(0, WORLD, 2).tolist()

    def task_label(self, task: Any) -> str:
        """Return the place of the goal, in whole pixels."""
        return "({:.0f}, {:.0f})".format(*task)

    def _reset(self, slots: np.ndarray) -> torch.Tensor:
        self.goal[slots] = self._tensor([self.task[e] for e in slots])
        self.agent[slots] = START
        return self.agent / WORLD

    def _step(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Info]:
        self.agent = self.agent + self._moves[actions]
        reward = -(self.agent - self.goal).abs().sum(1) / REWARD_DISTANCE
        return self.agent / WORLD, reward, self._never_terminated, {}

    def _circles(self, e: int) -> Iterable[Circle]:
        yield self.goal[e], GOAL_RADIUS, COLOURS["orange"], 0
        yield self.agent[e], AGENT_RADIUS, BLACK, 0


class Allwalk(SingleEnv):
    __doc__ = AllwalkVector.__doc__
    vector_class = AllwalkVector


PRESET = BANDITS_PRESET | {
    "N": 10,
    "W": 10,
    "tasks": 60,
    "fade": 40,
    "num_sub_policies": 4,
    "groups": 32,  # so many goals at a time
    "gamma": 0.95,
    "dual_clip": 3.0,
    "reward_scale": 5.0,
}
register("Allwalk-v0", Allwalk, 50, PRESET, BEST_RETURN)
