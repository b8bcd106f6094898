"""Fourrooms: a walk through four rooms to a goal that is not observed, on a floor where the agent slides."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch

from mlsh.envs.base import SingleEnv
from mlsh.envs.grid_world import DOWN, LEFT, RIGHT, UP, Dynamics, GridWorld, Mark, move_table
from mlsh.envs.point_world import BLACK, COLOURS
from mlsh.envs.registry import register

PLAN = """\
wwwwwwwwwwwww
w     w     w
w     w     w
w           w
w     w     w
w     w     w
ww wwww     w
w     www www
w     w     w
w     w     w
w           w
w     w     w
wwwwwwwwwwwww""".splitlines()
CELLS = [(i, j) for i, row in enumerate(PLAN) for j, character in enumerate(row) if character == " "]  # of each state
START = 62  # the doorway above the lower right room
GOALS = (68, 80, 90, 103)
ROOM = (*range(68, 73), *range(78, 83), *range(88, 94), *range(99, 104))  # the lower right room, its western doorway
HELD_OUT = tuple(s for s in ROOM if (CELLS[s][1] - 2 * CELLS[s][0]) % 5 == 1)
# A move has 36 equally likely outcomes. In 24 the agent stays where the move led; in 12 it slides to a neighbour. 12 is
# divisible by the number of free neighbours, which is 1 to 4.
OUTCOMES_WITHOUT_SLIDE, OUTCOMES_WITH_SLIDE = 24, 12


def build_dynamics(goals: Sequence[int]) -> Dynamics:
    """Build the family that has one task for each state in `goals`."""
    moves = move_table({cell: s for s, cell in enumerate(CELLS)}, len(CELLS), (UP, DOWN, LEFT, RIGHT))  # [S, A]
    states = torch.arange(len(CELLS))[:, None]
    neighbours = [[n for n in reached if n != s] for s, reached in enumerate(moves.tolist())]
    slides = torch.tensor([[n for n in near for _ in range(OUTCOMES_WITH_SLIDE // len(near))] for near in neighbours])
    outcomes = torch.cat((states.expand(-1, OUTCOMES_WITHOUT_SLIDE), slides), 1)  # [S, 36], after a move to a state
    following = torch.where((moves == states)[..., None], moves[..., None], outcomes[moves])  # [S, A, 36]
    pays = following == torch.tensor(goals)[:, None, None, None]
    return Dynamics.broadcast(torch.tensor(START), following, pays.float(), torch.tensor(False))


class FourroomsVector(GridWorld):
    """
    ## Description
    The paper's four rooms, with the constants of the original's `Fourrooms`. An agent walks through four rooms. The
    goal cell is the task, and it is not observed. (The original always overwrites its goal with cell 103.)

    The tasks of `Fourrooms-v0` are the original's four goals, in the lower right room. Those of `FourroomsUnseen-v0`
    are the 21 goals that the original has in a comment: the cells of that room and its western doorway. Five of these
    are held out of training, those where column − 2·row leaves the remainder 1 when divided by 5. It is the only
    remainder that selects five of the 21; the others select four. The five are a knight's move apart, and each row of
    the room has one or two of them, if the doorway is counted.

    ## Action Space
    `Discrete(4)`: up, down, left, right. A move into a wall leaves the agent where it is.

    ## Observation Space
    `Box(0, 1, (104,))`: the agent's cell, one-hot. The free cells of the 13 × 13 grid are counted in reading order.

    ## Transition Dynamics
    After a step that moves the agent, it slides on with probability 1/3: to one of the free neighbours (up, down,
    left, right; also back) of the cell that it came to, all equally likely.

    ## Rewards
    1 if the step ends on the goal cell, otherwise 0.

    ## Starting State
    Cell 62, the doorway above the lower right room.

    ## Episode End
    Truncated after 100 steps, never terminated.

    ## Arguments
    `goals`, one cell per task; `held_out`, those goals that are held out of training; `max_episode_steps`;
    `render_mode`, "human" or "rgb_array". Single view only: `task`. Batched view only: `num_envs` and `device`.

    Pictures are 400 × 400 pixels. Walls are grey, the agent is a black disc, the goal orange.
    """

    plan = PLAN

    def __init__(
        self,
        num_envs: int = 1,
        goals: Sequence[int] = GOALS,
        held_out: Collection[int] = (),
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.goals = goals
        self.train_tasks = [task for task, goal in enumerate(goals) if goal not in held_out]
        self.test_tasks = [task for task, goal in enumerate(goals) if goal in held_out] or None
        super().__init__(build_dynamics(goals), CELLS, num_envs, max_episode_steps, render_mode, device)

    def task_label(self, task: int) -> str:
        """Return the cell of the task's goal."""
        return f"cell {self.goals[task]}"

    def _marks(self, e: int) -> Iterable[Mark]:
        yield self.goals[int(self._episode_task[e])], COLOURS["orange"], None
        yield int(self.state[e]), BLACK, 0.6


class Fourrooms(SingleEnv):
    __doc__ = FourroomsVector.__doc__
    vector_class = FourroomsVector


PRESET: dict[str, Any] = {
    "N": 20,
    "W": 20,
    "U": 30,
    "tasks": 4,
    "T": 100,
    "high_len": 25,
    "num_sub_policies": 4,
    "groups": 4,
    "sub_lr": 1e-3,
    "explore": 0.1,
    "sub_entropy": 0.02,
    "fade": 3,
    "normalise": False,
}
register("Fourrooms-v0", Fourrooms, 100, PRESET, 66.73)
UNSEEN = PRESET | {"N": 10, "groups": 16}  # one group for each of the 16 goals of training
register("FourroomsUnseen-v0", Fourrooms, 100, UNSEEN, 71.27, goals=ROOM, held_out=HELD_OUT)
