"""What the grid worlds share: transition tables, the best possible return by value iteration, and rendering."""

from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete

from mlsh.envs.base import Info
from mlsh.envs.point_world import GREY, WHITE, FlatWorld

Cell = tuple[int, int]  # row and column
Mark = tuple[Any, str, float | None]  # state, colour, and diameter in cells; None colours the whole cell
UP, DOWN, LEFT, RIGHT = (-1, 0), (1, 0), (0, -1), (0, 1)  # changes of row and column
PICTURE_SIDE = 400  # pixels


class Dynamics(NamedTuple):
    """The complete dynamics of a finite family of tasks on S states. Each action has B equally likely outcomes."""

    start: torch.Tensor  # [tasks], the state in which episodes begin
    next: torch.Tensor  # [tasks, S, A, B], the state that an outcome leads to
    reward: torch.Tensor  # [tasks, S, A, B], the reward of an outcome
    ends: torch.Tensor  # [tasks, S, A, B], whether an outcome terminates the episode

    @classmethod
    def broadcast(cls, start: torch.Tensor, next: torch.Tensor, reward: torch.Tensor, ends: torch.Tensor) -> "Dynamics":
        """Make the dynamics from tensors that may lack leading dimensions in which they do not vary."""
        shape = torch.broadcast_shapes(next.shape, reward.shape, ends.shape)
        return cls(start.expand(shape[0]), *(x.expand(shape) for x in (next, reward, ends)))


def move_table(states_of_cells: Mapping[Cell, int], num_states: int, moves: Sequence[Cell]) -> torch.Tensor:
    """Return the state after each move, [num_states, A]. A move into a wall or over the edge leaves the state.

    `states_of_cells` maps each free cell to its state. `moves` are changes of row and column.
    """
    table = torch.arange(num_states)[:, None].repeat(1, len(moves))
    for (row, column), state in states_of_cells.items():
        for a, (down, right) in enumerate(moves):
            table[state, a] = states_of_cells.get((row + down, column + right), state)
    return table


def solve(dynamics: Dynamics, T: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the best possible mean return of each task in T steps, without discount, by exact value iteration.

    Returns the returns [tasks] and a policy that reaches them: the action at each time and state, [T, tasks, S].
    """
    tasks = torch.arange(len(dynamics.start))
    value, policy = torch.zeros(dynamics.next.shape[:2], dtype=torch.float64), []
    for _ in range(T):
        following = torch.where(dynamics.ends, 0, value[tasks[:, None, None, None], dynamics.next])
        value, action = (dynamics.reward + following).mean(-1).max(-1)
        policy.append(action)
    return value[tasks, dynamics.start], torch.stack(policy[::-1])


def solve_over(dynamics: Dynamics, policies: torch.Tensor, T: int, high_len: int) -> torch.Tensor:
    """Compute the mean return of each task in T steps that the best possible master over fixed sub-policies reaches.

    `policies` are the probabilities of the actions, [K, S, A]. The master knows the task, and decides every `high_len`
    steps. Exact, without discount. Returns the returns [tasks].
    """
    tasks = torch.arange(len(dynamics.start))[:, None, None, None]
    probabilities = policies.double()[:, None]  # [K, 1, S, A]
    reward = (probabilities * dynamics.reward.double().mean(-1)).sum(-1)  # [K, tasks, S]
    value = torch.zeros(dynamics.next.shape[:2], dtype=torch.float64)
    for begin in reversed(range(0, T, high_len)):
        of_each = value.expand(len(policies), *value.shape)
        for _ in range(min(high_len, T - begin)):
            following = torch.where(dynamics.ends, 0, of_each[:, tasks, dynamics.next]).mean(-1)
            of_each = reward + (probabilities * following).sum(-1)
        value = of_each.amax(0)
    return value[tasks[:, 0, 0, 0], dynamics.start]


class GridWorld(FlatWorld):
    """A family of tasks on the cells of a grid. The observation is the state, one-hot.

    `dynamics` are those of all tasks; a task of `train_tasks` or `test_tasks` is an index into them. `cells` is the
    (row, column) of each state.

    A subclass sets `plan`, a square of characters in which a space is a free cell. It defines `_marks(e)`, which yields
    what the picture of episode e shows, from the lowest to the topmost: a state, a colour, and the diameter of a disc
    in cells, or None to colour the whole cell.
    """

    plan: Sequence[str]
    picture = PICTURE_SIDE, PICTURE_SIDE

    def __init__(
        self,
        dynamics: Dynamics,
        cells: Sequence[Cell],
        num_envs: int,
        max_episode_steps: int | None,
        render_mode: str | None,
        device: str | torch.device,
    ) -> None:
        _, states, actions, self._num_outcomes = dynamics.next.shape
        self.single_observation_space = Box(0, 1, (states,), np.float32)
        self.single_action_space = Discrete(actions)
        super().__init__(num_envs, max_episode_steps, render_mode, device)
        self.dynamics = Dynamics(*(x.to(self.device) for x in dynamics))
        self.cells = cells
        # torch's one_hot() would make the CPU wait for a GPU to check that all indices are in range
        self._one_hot = torch.eye(states, device=self.device)
        self._all_slots = np.arange(num_envs)
        self._outcome = torch.zeros(num_envs, dtype=torch.long, device=self.device)
        self._episode_task, self.state = self._outcome.clone(), self._outcome.clone()  # [E]

    def optimal_returns(self, T: int | None = None) -> dict[int, float]:
        """Return the best possible mean return of each task in `T` steps, or in the time limit if T is None."""
        horizon = T or self.max_episode_steps
        if horizon is None:
            raise ValueError("T is None and the environment has no time limit; pass T")
        dynamics = Dynamics(*(x.cpu() for x in self.dynamics))
        best = solve(dynamics, horizon)[0].tolist()
        return {task: best[task] for task in self.all_tasks}

    def position(self) -> torch.Tensor:
        """Return the agents' rows and columns, [E, 2]."""
        return torch.tensor(self.cells, device=self.device)[self.state]

    def _reset(self, slots: np.ndarray) -> torch.Tensor:
        tasks = [self.task[e] for e in slots]
        self._episode_task[slots] = torch.tensor(tasks, dtype=torch.long, device=self.device)
        self.state[slots] = self.dynamics.start[self._episode_task[slots]]
        return self._observation()

    def _observation(self) -> torch.Tensor:
        return self._one_hot[self.state]

    def _step(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Info]:
        if self._num_outcomes > 1:
            # drawn for all slots at every step, so that no slot's outcomes depend on when another slot is reset
            drawn = self._sample(lambda rng, n: rng.integers(self._num_outcomes, size=n), self._all_slots)
            self._outcome = torch.from_numpy(drawn).to(self.device)
        index = self._episode_task, self.state, actions, self._outcome
        self.state = self.dynamics.next[index]
        return self._observation(), self.dynamics.reward[index], self.dynamics.ends[index], {}

    def _marks(self, e: int) -> Iterable[Mark]:
        raise NotImplementedError

    def _render_episode(self, pygame: ModuleType, e: int) -> Any:
        surface = pygame.Surface(self.picture)
        surface.fill(GREY)
        for row, line in enumerate(self.plan):
            for column, character in enumerate(line):
                if character == " ":
                    pygame.draw.rect(surface, WHITE, self._square((row, column)))
        for state, colour, diameter in self._marks(e):
            square = pygame.Rect(self._square(self.cells[state]))
            if diameter is None:
                pygame.draw.rect(surface, colour, square)
            else:
                pygame.draw.circle(surface, colour, square.center, diameter * square.width / 2)
        return surface

    def _square(self, cell: Cell) -> tuple[int, int, int, int]:
        """Return x, y, width and height of a cell in the picture, in pixels. A line of one pixel separates cells."""
        size = PICTURE_SIDE // len(self.plan)
        edge = (PICTURE_SIDE - size * len(self.plan)) // 2
        return edge + size * cell[1], edge + size * cell[0], size - 1, size - 1
