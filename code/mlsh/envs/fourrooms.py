"""Fourrooms: a walk through four rooms to a goal that is not shown, on a floor that makes stumble."""

import torch

from mlsh.envs.base import SingleEnv
from mlsh.envs.grid_world import DOWN, LEFT, RIGHT, UP, Dynamics, GridWorld, move_table
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
CELLS = [(i, j) for i, row in enumerate(PLAN) for j, sign in enumerate(row) if sign == " "]  # states, in reading order
START = 62  # the doorway above the lower right room
GOALS = (68, 80, 90, 103)
ROOM = (*range(68, 73), *range(78, 83), *range(88, 94), *range(99, 104))  # the lower right one and its western doorway
HELD_OUT = tuple(s for s in ROOM if (CELLS[s][1] - 2 * CELLS[s][0]) % 5 == 1)
FLOOR, SLIDES = 24, 12  # of 36 outcomes of a move: it ends where it leads, it slides on to a neighbour


def build_dynamics(goals):
    """The family with a task for each of the states `goals`."""
    moves = move_table({cell: s for s, cell in enumerate(CELLS)}, len(CELLS), (UP, DOWN, LEFT, RIGHT))
    at = torch.arange(len(CELLS))[:, None]
    slides = [[n for n in reached if n != s] for s, reached in enumerate(moves.tolist())]  # 1 to 4 neighbours each
    slides = torch.tensor([[n for n in near for _ in range(SLIDES // len(near))] for near in slides])
    outcomes = torch.cat((at.expand(-1, FLOOR), slides), 1)  # [S, 36], of having moved to a state
    following = torch.where((moves == at)[..., None], moves[..., None], outcomes[moves])  # [S, A, 36]
    pays = following == torch.tensor(goals)[:, None, None, None]
    return Dynamics.of(torch.tensor(START), following, pays.float(), torch.tensor(False))


class FourroomsVector(GridWorld):
    """
    ## Description
    The paper's four rooms, with the constants of the original's `Fourrooms` (which always overwrites its goal with cell
    103; here it is the task's). An agent walks through four rooms. The goal cell is the task, and hidden.

    The tasks of `Fourrooms-v0` are the original's four goals, in the lower right room. Those of `FourroomsUnseen-v0`
    are the 21 that the original has in a comment, the cells of that room and its western doorway. Of these, five are
    held out of training: where column − 2·row leaves 1 when divided by 5, the one remainder that takes five of the 21
    (the others take four). They are a knight's move apart, one or two in each row, with the doorway.

    ## Action Space
    `Discrete(4)`: up, down, left, right. A wall means stay.

    ## Observation Space
    `Box(0, 1, (104,))`: one-hot, the free cells of the 13 × 13 grid in reading order.

    ## Rewards
    1 if the step ends on the goal cell, else 0.

    ## Starting State
    Cell 62, the doorway above the lower right room.

    ## Episode End
    Truncated after 100 steps, never terminated. A step that moves the agent makes it, with probability 1/3, slide on
    to one of the free neighbours (up, down, left, right; also back) of the cell that it came to, all equally likely.

    ## Arguments
    `goals`, a cell a task, and `held_out`, those of them that are kept out of training; `num_envs` and `device`
    (batched view only); `max_episode_steps`; `render_mode`, "human" or "rgb_array": 400 × 400, walls grey, the agent a
    black disc, the goal orange.
    """

    plan = PLAN

    def __init__(self, num_envs=1, goals=GOALS, held_out=(), max_episode_steps=None, render_mode=None, device="cpu"):
        self.goals = goals
        self.train_tasks = [task for task, goal in enumerate(goals) if goal not in held_out]
        self.test_tasks = [task for task, goal in enumerate(goals) if goal in held_out] or None
        super().__init__(build_dynamics(goals), CELLS, num_envs, max_episode_steps, render_mode, device)

    def task_label(self, task):
        """The task's name for people: the cell of its goal."""
        return f"cell {self.goals[task]}"

    def _marks(self, e):
        yield self.goals[self._playing[e]], COLOURS["orange"], None
        yield self.state[e], BLACK, 0.6


class Fourrooms(SingleEnv):
    __doc__ = FourroomsVector.__doc__
    vector_class = FourroomsVector


PRESET = {
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
UNSEEN = PRESET | {"N": 10, "groups": 16}  # a group for each of the 16 goals
register("FourroomsUnseen-v0", Fourrooms, 100, UNSEEN, 71.27, goals=ROOM, held_out=HELD_OUT)
