"""MovementBandits: a point and a few goals, of which only one pays."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete

from mlsh.envs.base import Info, SingleEnv
from mlsh.envs.point_world import (
    AGENT_RADIUS,
    BLACK,
    COLOURS,
    GOAL_RADIUS,
    MOVES,
    NEAR,
    START,
    WORLD,
    Circle,
    PointWorld,
    near,
)
from mlsh.envs.registry import register

BEST_RETURN = 43.806  # in 50 steps: shortest paths, averaged over the position of the goal by quadrature


class MovementBanditsVector(PointWorld):
    """
    ## Description
    The paper's section 6.1, with the constants of the original's `test_envs`. A point walks on a plane with two goals
    (four in `MovementBandits4-v0`). Standing near the right one pays. Which one is right is the task, and it is not
    observed.

    ## Action Space
    `Discrete(5)`: stay, +x, −x, +y, −y, by 20 pixels.

    ## Observation Space
    `Box(6)`, or `Box(10)` with four goals, in pixels divided by 400.

    | index | observation |
    |--|--|
    | 0, 1 | x and y of the agent |
    | 2, 3 | x and y of goal 0 |
    | 4, 5 | x and y of goal 1 |
    | 6–9 | x and y of goals 2 and 3 (`MovementBandits4-v0` only) |

    ## Rewards
    1 if, after the move, the squared distance between the agent and the task's goal is below 2500; otherwise 0.

    ## Starting State
    The agent is at (200, 200). Each goal is uniform in [0, 400]².

    ## Episode End
    Truncated after 50 steps, never terminated.

    ## Arguments
    `num_goals`; `max_episode_steps`; `render_mode`, "human" or "rgb_array". Single view only: `task`. Batched view
    only: `num_envs` and `device`.

    Pictures are 520 × 520 pixels, y upwards, with a border around [0, 400]². The agent is black. Goals 0, 1, 2 and 3
    are orange, blue, yellow and pink. A step pays within the black circle around the right goal.
    """

    terminates = False

    def __init__(
        self,
        num_envs: int = 1,
        num_goals: int = 2,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.num_goals = num_goals
        self.train_tasks: list[int] | None = list(range(num_goals))
        self.single_observation_space = self._space()
        self.single_action_space = Discrete(len(MOVES))
        super().__init__(num_envs, max_episode_steps, render_mode, device)
        self._moves = torch.tensor(MOVES, device=self.device)
        self._never_terminated = torch.zeros(num_envs, dtype=torch.bool, device=self.device)
        self.goals = torch.zeros(num_envs, num_goals, 2, device=self.device)
        self.agent, self._right_goal = self.goals[:, 0].clone(), self.goals[:, 0].clone()  # [E, 2]

    def task_label(self, task: int) -> str:
        """Return the colour of the task's goal."""
        return list(COLOURS)[task]

    def _space(self) -> Box:
        return Box(-np.inf, np.inf, (2 + 2 * self.num_goals,), np.float32)

    def _new_goals(self, rng: np.random.Generator, n: int) -> np.ndarray:
        return rng.uniform(0, WORLD, (n, self.num_goals, 2))

    def _reset(self, slots: np.ndarray) -> torch.Tensor:
        goals = self._tensor(self._sample(self._new_goals, slots))
        self.goals[slots], self.agent[slots] = goals, START
        self._right_goal[slots] = goals[np.arange(len(slots)), np.array(self.task)[slots]]
        self._scaled_goals = self.goals.flatten(1) / WORLD
        return self._observation()

    def _observation(self) -> torch.Tensor:
        return torch.cat((self.agent / WORLD, self._scaled_goals), 1)

    def _step(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Info]:
        self.agent = self.agent + self._moves[actions]
        return self._observation(), near(self.agent, self._right_goal).float(), self._never_terminated, {}

    def _circles(self, e: int) -> Iterable[Circle]:
        for goal, colour in zip(self.goals[e], COLOURS.values(), strict=False):
            yield goal, GOAL_RADIUS, colour, 0
        yield self._right_goal[e], NEAR**0.5, BLACK, 2
        yield self.agent[e], AGENT_RADIUS, BLACK, 0


class MovementBandits(SingleEnv):
    __doc__ = MovementBanditsVector.__doc__
    vector_class = MovementBanditsVector


PRESET: dict[str, Any] = {
    "N": 40,
    "W": 60,
    "U": 1,
    "tasks": 24,
    "T": 50,
    "high_len": 10,
    "groups": 8,
    "master_minibatch": 200,
    "sub_minibatches": 30,
    "sub_lr": 1.5e-3,
    "gamma": 0.9,
    "clip": 0.4,
    "explore": 0.1,
    "sub_entropy": 0.02,
    "fade": 16,
    "normalise": False,
    "reward_scale": 0.1,
    "test_episodes": 1000,
}
FOUR_GOALS = PRESET | {
    "W": 20,
    "U": 5,
    "tasks": 20,
    "num_sub_policies": 4,
    "sub_entropy": 0.05,
    "fade": 20,
    "dual_clip": 3.0,
}
register("MovementBandits-v0", MovementBandits, 50, PRESET, BEST_RETURN, num_goals=2)
register("MovementBandits4-v0", MovementBandits, 50, FOUR_GOALS, BEST_RETURN, num_goals=4)
