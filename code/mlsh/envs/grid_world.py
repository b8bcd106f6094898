"""What the grid worlds share: tables of what an action leads to, the best possible return by them, and the picture."""

from typing import NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete

from mlsh.envs.point_world import GREY, WHITE, FlatWorld

UP, DOWN, LEFT, RIGHT = (-1, 0), (1, 0), (0, -1), (0, 1)  # changes of row and column
PICTURE = 400  # pixels a side


class Dynamics(NamedTuple):
    """A finite family of tasks on S states, all there is to know of it: an action has B equally likely outcomes."""

    start: torch.Tensor  # [tasks], the state in which an episode begins
    next: torch.Tensor  # [tasks, S, A, B], the state to which an outcome leads
    reward: torch.Tensor  # [tasks, S, A, B], what it pays
    ends: torch.Tensor  # [tasks, S, A, B], whether it terminates the episode

    @classmethod
    def of(cls, start, next, reward, ends):
        """From tensors that may lack leading dimensions in which they do not vary."""
        shape = torch.broadcast_shapes(next.shape, reward.shape, ends.shape)
        return cls(start.expand(shape[0]), *(x.expand(shape) for x in (next, reward, ends)))


def move_table(number, states, moves):
    """The state after each move, [states, A]: a wall, or the edge, means stay.

    `number`: (row, column) of each free cell -> its state. `moves`: changes of row and column.
    """
    table = torch.arange(states)[:, None].repeat(1, len(moves))
    for (row, column), state in number.items():
        for a, (down, right) in enumerate(moves):
            table[state, a] = number.get((row + down, column + right), state)
    return table


def solve(dynamics, T):
    """Value iteration, exact for T steps: the best possible mean return of each task [tasks], and a policy that has it.

    The policy, [T, tasks, S], gives the action for the time and the state. No discount.
    """
    tasks = torch.arange(len(dynamics.start))
    value, policy = torch.zeros(dynamics.next.shape[:2], dtype=torch.float64), []
    for _ in range(T):
        following = torch.where(dynamics.ends, 0, value[tasks[:, None, None, None], dynamics.next])
        value, action = (dynamics.reward + following).mean(-1).max(-1)
        policy.append(action)
    return value[tasks, dynamics.start], torch.stack(policy[::-1])


class GridWorld(FlatWorld):
    """A family of tasks on the cells of a grid; the observation is the state, one-hot.

    A subclass sets `plan`, as many rows as columns, a space for each free cell. It hands over the family's `dynamics`,
    in which a task of `train_tasks` and `test_tasks` is a number, and its `cells`, (row, column) of each state. It
    defines `_marks(e)` -> what is seen of episode e, from the lowest to the topmost: a state, on whose cell it is, a
    colour, and the diameter of a disc in cells, None for the whole cell.
    """

    plan: list[str]
    picture = PICTURE, PICTURE

    def __init__(self, dynamics, cells, num_envs, max_episode_steps, render_mode, device):
        _, states, actions, self._outcomes = dynamics.next.shape
        self.single_observation_space = Box(0, 1, (states,), np.float32)
        self.single_action_space = Discrete(actions)
        super().__init__(num_envs, max_episode_steps, render_mode, device)
        self.dynamics = Dynamics(*(x.to(self.device) for x in dynamics))
        self.cells = cells
        self._one_hot = torch.eye(states, device=self.device)  # one_hot() has a GPU tell the CPU that all is in range
        self._slots = np.arange(num_envs)
        self._outcome = torch.zeros(num_envs, dtype=torch.long, device=self.device)
        self._playing, self.state = self._outcome.clone(), self._outcome.clone()  # [E], task and state

    def optimal_returns(self, T=None):
        """As `VectorTasks.optimal_returns`, T the limit if it is None; by value iteration, exact."""
        dynamics = Dynamics(*(x.cpu() for x in self.dynamics))
        best = solve(dynamics, T or self.max_episode_steps)[0].tolist()
        return {task: best[task] for task in [*self.train_tasks, *(self.test_tasks or ())]}

    def _reset(self, which):
        self._playing[which] = torch.tensor([self.task[e] for e in which], dtype=torch.long, device=self.device)
        self.state[which] = self.dynamics.start[self._playing[which]]
        return self._observation()

    def _observation(self):
        return self._one_hot[self.state]

    def _step(self, actions):
        if self._outcomes > 1:  # drawn for all slots at every step, so that no slot's depend on when another resets
            drawn = self._draw(lambda rng, n: rng.integers(self._outcomes, size=n), self._slots)
            self._outcome = torch.from_numpy(drawn).to(self.device)
        what = self._playing, self.state, actions, self._outcome
        self.state = self.dynamics.next[what]
        return self._observation(), self.dynamics.reward[what], self.dynamics.ends[what], {}

    def _marks(self, e):
        raise NotImplementedError

    def _draw_episode(self, pygame, e):
        surface = pygame.Surface(self.picture)
        surface.fill(GREY)
        for i, row in enumerate(self.plan):
            for j, sign in enumerate(row):
                if sign == " ":
                    pygame.draw.rect(surface, WHITE, self._square((i, j)))
        for state, colour, diameter in self._marks(e):
            square = pygame.Rect(self._square(self.cells[state]))
            if diameter is None:
                pygame.draw.rect(surface, colour, square)
            else:
                pygame.draw.circle(surface, colour, square.center, diameter * square.width / 2)
        return surface

    def _square(self, cell):
        """x, y, width and height of a cell in the picture, a line of a pixel apart from the next."""
        size = PICTURE // len(self.plan)
        edge = (PICTURE - size * len(self.plan)) // 2
        return edge + size * cell[1], edge + size * cell[0], size - 1, size - 1
