"""MovementBandits: a point, a few goals, and no word about which of them is the right one."""

import os

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete

from mlsh.envs.base import SingleEnv, VectorTasks

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

START = 200.0  # pixels, both coordinates
WORLD = 400.0  # goals are drawn in [0, 400]²; the agent itself meets no bounds
STEP = 20.0
NEAR = 2500.0  # squared pixels
MOVES = ((0, 0), (STEP, 0), (-STEP, 0), (0, STEP), (0, -STEP))


class MovementBanditsVector(VectorTasks):
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
    "rgb_array": 400 × 400, y upwards, the right goal ringed in red. Goal i of n has the colour (.5, .5, .8·i/(n−1)),
    for two goals the original's.
    """

    def __init__(self, num_envs=1, num_goals=2, max_episode_steps=None, render_mode=None, device="cpu"):
        self.train_tasks = list(range(num_goals))
        self.single_observation_space = Box(-np.inf, np.inf, (2 + 2 * num_goals,), np.float32)
        self.single_action_space = Discrete(len(MOVES))
        super().__init__(num_envs, max_episode_steps, render_mode, device)
        self._moves = torch.tensor(MOVES, device=self.device)
        self._window = None

    def task_label(self, task):
        """The task's name for people: the colour of its goal."""
        return {2: ("yellow", "purple"), 4: ("yellow", "khaki", "grey", "purple")}[len(self.train_tasks)][task]

    def _reset(self):
        goals = len(self.train_tasks)
        self.goals = self._tensor(self._draw(lambda rng, n: rng.uniform(0, WORLD, (n, goals, 2))))  # [E, goals, 2]
        self.agent = torch.full((self.num_envs, 2), START, device=self.device)
        task = torch.tensor(self.task, device=self.device)
        self._right = self.goals[torch.arange(self.num_envs, device=self.device), task]  # [E, 2]
        self._seen = self.goals.flatten(1) / WORLD
        self._never = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        return self._observation()

    def _observation(self):
        return torch.cat((self.agent / WORLD, self._seen), 1)

    def _step(self, actions):
        self.agent = self.agent + self._moves[actions]
        reward = ((self.agent - self._right).square().sum(1) < NEAR).float()
        return self._observation(), reward, self._never, {}

    def render(self):
        """A tuple of E frames, uint8 [400, 400, 3] ("rgb_array"), or the first episode in a window ("human")."""
        import pygame

        if self.render_mode == "human":
            if self._window is None:
                pygame.display.init()
                self._window = pygame.display.set_mode((int(WORLD), int(WORLD)))
                self._clock = pygame.time.Clock()
            self._window.blit(self._draw_episode(pygame, 0), (0, 0))
            pygame.event.pump()
            pygame.display.flip()
            self._clock.tick(self.metadata["render_fps"])
            return None
        surfaces = (self._draw_episode(pygame, e) for e in range(self.num_envs))
        return tuple(pygame.surfarray.array3d(s).swapaxes(0, 1) for s in surfaces)

    def _draw_episode(self, pygame, e):
        surface = pygame.Surface((int(WORLD), int(WORLD)))
        surface.fill((255, 255, 255))

        def circle(xy, radius, colour, width=0):
            x, y = xy.tolist()
            colour = [round(255 * c) for c in colour]
            pygame.draw.circle(surface, colour, (x, WORLD - y), radius, width)

        for i, goal in enumerate(self.goals[e]):
            circle(goal, 20, (0.5, 0.5, 0.8 * i / (len(self.train_tasks) - 1)))
        circle(self.goals[e, self.task[e]], 26, (0.85, 0.1, 0.1), width=3)
        circle(self.agent[e], 10, (0.5, 0.8, 0.5))
        return surface

    def close_extras(self, **kwargs):
        if self._window is not None:
            import pygame

            pygame.display.quit()
            self._window = None


class MovementBandits(SingleEnv):
    __doc__ = MovementBanditsVector.__doc__
    vector_class = MovementBanditsVector
