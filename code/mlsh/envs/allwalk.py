"""Allwalk: a point that must walk to a place it is not shown, anywhere in the square."""

import math

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete

from mlsh.envs.base import SingleEnv
from mlsh.envs.movement_bandits import PRESET as OF_BANDITS
from mlsh.envs.point_world import AGENT, BLACK, COLOURS, GOAL, MOVES, START, WORLD, PointWorld
from mlsh.envs.registry import register
from mlsh.errors import UserError

SCALE = 5000.0  # pixels of distance for a reward of −1
BEST_RETURN = -0.2953  # the best possible mean return in 50 steps: straight to the goal, long steps first


def checked(task):
    """The task. Raises UserError for what is not a list of two finite numbers."""
    if isinstance(task, list) and [type(x) in (int, float) and math.isfinite(x) for x in task] == [True, True]:
        return task
    raise UserError(f"there is no task {task!r}: use [x, y], in pixels")


class AllwalkVector(PointWorld):
    """
    ## Description
    The original's `Allwalk-v0`. A point walks on a plane, and pays for its distance to a goal that it does not see. The
    goal is the task, a list [x, y] in pixels: a continuous family.

    ## Action Space
    `Discrete(5)`: stay, +x, −x, +y, −y, 20 pixels a step.

    ## Observation Space
    `Box(2)`: x, y of the agent, in pixels ÷ 400 (the original does not divide).

    ## Rewards
    −(|Δx| + |Δy|) / 5000, after the move, with the differences between agent and goal in pixels.

    ## Starting State
    The agent at (200, 200). Tasks are drawn uniformly from [0, 400]².

    ## Episode End
    Truncated after 50 steps, never terminated.

    ## Arguments
    `num_envs` and `device` (batched view only); `max_episode_steps`; `render_mode`, "human" or "rgb_array":
    520 × 520, y upwards, with a border around [0, 400]². The agent is black, the goal orange.
    """

    single_observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    single_action_space = Discrete(len(MOVES))

    terminates = False

    def __init__(self, num_envs=1, max_episode_steps=None, render_mode=None, device="cpu"):
        super().__init__(num_envs, max_episode_steps, render_mode, device)
        self._moves = torch.tensor(MOVES, device=self.device)
        self._never = torch.zeros(num_envs, dtype=torch.bool, device=self.device)
        self.agent, self.goal = torch.zeros(2, num_envs, 2, device=self.device)

    def sample_task(self, rng):
        return rng.uniform(0, WORLD, 2).tolist()

    def task_label(self, task):
        """The task's name for people: its place, in whole pixels."""
        return "({:.0f}, {:.0f})".format(*checked(task))

    def set_task(self, task):
        """As `VectorTasks.set_task`; for a single task, too, a list of it. Raises UserError as `checked`."""
        super().set_task(task)
        for t in self.task:
            checked(t)

    def _reset(self, which):
        self.goal[which] = self._tensor([self.task[e] for e in which])
        self.agent[which] = START
        return self.agent / WORLD

    def _step(self, actions):
        self.agent = self.agent + self._moves[actions]
        reward = -(self.agent - self.goal).abs().sum(1) / SCALE
        return self.agent / WORLD, reward, self._never, {}

    def _circles(self, e):
        yield self.goal[e], GOAL, COLOURS["orange"], 0
        yield self.agent[e], AGENT, BLACK, 0


class Allwalk(SingleEnv):
    __doc__ = AllwalkVector.__doc__
    vector_class = AllwalkVector


PRESET = OF_BANDITS | {
    "N": 10,
    "W": 10,
    "tasks": 60,
    "fade": 40,
    "num_sub_policies": 4,
    "groups": 32,  # goals at a time
    "gamma": 0.95,
    "dual_clip": 3.0,
    "reward_scale": 5.0,
}
register("Allwalk-v0", Allwalk, 50, PRESET, BEST_RETURN)
