"""MovementBandits: a point, a few goals, and no word about which of them is the right one."""

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete

from mlsh.envs.base import SingleEnv
from mlsh.envs.point_world import AGENT, BLACK, COLOURS, GOAL, MOVES, NEAR, START, WORLD, PointWorld, near
from mlsh.envs.registry import register

BEST_RETURN = 43.80  # the best possible mean return in 50 steps, by exact shortest paths


class MovementBanditsVector(PointWorld):
    """
    ## Description
    Paper, section 6.1, with the constants of the original's `test_envs`. A point walks on a plane with two goals
    (four in `MovementBandits4-v0`). Standing near the right one pays; which one is right is the task, and hidden.

    ## Action Space
    `Discrete(5)`: stay, +x, −x, +y, −y, 20 pixels a step.

    ## Observation Space
    `Box(6)` (`Box(10)` with four goals), pixels ÷ 400: agent x, y, then x, y of each goal.

    ## Rewards
    1 if, after the move, the squared distance to the task's goal is below 2500, else 0.

    ## Starting State
    The agent at (200, 200), each goal uniform in [0, 400]².

    ## Episode End
    Truncated after 50 steps, never terminated.

    ## Arguments
    `num_goals`; `num_envs` and `device` (batched view only); `max_episode_steps`; `render_mode`, "human" or
    "rgb_array": 520 × 520, y upwards, with a border around [0, 400]². The agent is black; goals 0, 1, 2 and 3 are
    orange, blue, yellow and pink. Within the black circle around the right goal a step pays.
    """

    terminates = False

    def __init__(self, num_envs=1, num_goals=2, max_episode_steps=None, render_mode=None, device="cpu"):
        self.train_tasks = list(range(num_goals))
        self.single_observation_space = self._space()
        self.single_action_space = Discrete(len(MOVES))
        super().__init__(num_envs, max_episode_steps, render_mode, device)
        self._moves = torch.tensor(MOVES, device=self.device)
        self._never = torch.zeros(num_envs, dtype=torch.bool, device=self.device)
        self.goals = torch.zeros(num_envs, num_goals, 2, device=self.device)
        self.agent, self._right = self.goals[:, 0].clone(), self.goals[:, 0].clone()  # [E, 2]

    def task_label(self, task):
        """The task's name for people: the colour of its goal."""
        return list(COLOURS)[task]

    def _space(self):
        return Box(-np.inf, np.inf, (2 + 2 * len(self.train_tasks),), np.float32)

    def _new_goals(self, rng, n):
        return rng.uniform(0, WORLD, (n, len(self.train_tasks), 2))

    def _reset(self, which):
        goals = self._tensor(self._draw(self._new_goals, which))
        self.goals[which], self.agent[which] = goals, START
        self._right[which] = goals[range(len(which)), [self.task[e] for e in which]]
        self._seen = self.goals.flatten(1) / WORLD
        return self._observation()

    def _observation(self):
        return torch.cat((self.agent / WORLD, self._seen), 1)

    def _step(self, actions):
        self.agent = self.agent + self._moves[actions]
        return self._observation(), near(self.agent, self._right).float(), self._never, {}

    def _circles(self, e):
        for goal, colour in zip(self.goals[e], COLOURS.values(), strict=False):
            yield goal, GOAL, colour, 0
        yield self._right[e], NEAR**0.5, BLACK, 2
        yield self.agent[e], AGENT, BLACK, 0


class MovementBandits(SingleEnv):
    __doc__ = MovementBanditsVector.__doc__
    vector_class = MovementBanditsVector


PRESET = {
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
