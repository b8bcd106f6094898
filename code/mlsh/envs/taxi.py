"""Taxi: fetch a passenger at one of four places and take them to another; which is not told."""

import torch

from mlsh.envs.base import SingleEnv
from mlsh.envs.grid_world import DOWN, LEFT, RIGHT, UP, Dynamics, GridWorld, move_table
from mlsh.envs.point_world import BLACK, COLOURS
from mlsh.envs.registry import register

PLAN = """\
wwwwwwww
w  w   w
w  w   w
w      w
w      w
w w w  w
w w w  w
wwwwwwww""".splitlines()
SIDE = len(PLAN) - 2
PLACES = {"R": (1, 1), "Y": (6, 1), "B": (6, 5), "G": (1, 6)}  # row and column
HELD_OUT = [0, 4, 8, 13, 17, 21, 26, 30, 34, 39, 43, 47]
STAY = (0, 0)
MOVES = (STAY, LEFT, RIGHT, DOWN, UP, STAY)  # of the six actions
HAND = 5  # the action that lets the passenger in or out
STEP, DELIVERED = -0.1, 2.0  # rewards


def number_of(cell, on_board=False):
    """The state of the taxi on a cell (row, column): FAMP's, which counts down the columns."""
    return SIDE**2 * on_board + SIDE * (cell[1] - 1) + cell[0] - 1


def trip(task):
    """Where a task begins, where the passenger waits (None: is on board) and wants to go, letters of PLACES."""
    names, on_board = list(PLACES), task >= 48
    others, goal = divmod(task - 48 * on_board, 4)
    start, other = (None, others) if on_board else divmod(others, 3)
    place = names[(goal + other + 1) % 4]  # not the goal
    return (place, None, names[goal]) if on_board else (names[start], place, names[goal])


TRIPS = [trip(task) for task in range(60)]


def build_dynamics():
    """The family of all TRIPS."""
    free = {(i, j): number_of((i, j)) for i, row in enumerate(PLAN) for j, sign in enumerate(row) if sign == " "}
    moves = move_table(free, SIDE**2, MOVES)
    following = torch.cat((moves, moves + SIDE**2)).repeat(len(TRIPS), 1, 1)  # [tasks, S, A]
    reward, ends = torch.full(following.shape, STEP), torch.zeros(following.shape, dtype=torch.bool)
    start = torch.zeros(len(TRIPS), dtype=torch.long)
    for task, (begins, waits, goal) in enumerate(TRIPS):
        start[task] = number_of(PLACES[begins], not waits)
        if waits:
            following[task, number_of(PLACES[waits]), HAND] = number_of(PLACES[waits], True)
        there = task, number_of(PLACES[goal], True), HAND
        reward[there], ends[there] = DELIVERED, True
    return Dynamics.of(start, following[..., None], reward[..., None], ends[..., None])


class TaxiVector(GridWorld):
    """
    ## Description
    The taxi of FAMP (Kuroo/FAMP, "Reusable Options through Gradient-based Meta Learning", `envs/taxi.py`). It is to
    fetch a passenger at one of the places R, Y, B and G and take them to another, or has them on board. Where it
    starts, fetches and goes is the task, and hidden. Gymnasium's own `Taxi` is another: 5 × 5 cells, passenger and goal
    observed, and a fine for a wrong pick-up. (Under that name Gymnasium would advise to upgrade to its own.)

    The 60 tasks have FAMP's numbers: of 0 … 47 the remainder by 4 is the goal, that of the next digit (by 3) the
    pick-up place among the other three, the last digit the start; in 48 … 59 the passenger is on board at the start,
    which is one of the other three. FAMP's twelve are held out: 0, 4, 8, 13, 17, 21, 26, 30, 34, 39, 43, 47.

    ## Action Space
    `Discrete(6)`: stay, left, right, down, up, pick up or drop off. A wall means stay.

    ## Observation Space
    `Box(0, 1, (72,))`: one-hot, 36 times whether the passenger is on board, plus the cell of the 6 × 6 grid, counted
    down the columns; six cells are walls.

    ## Rewards
    2 for the drop-off at the goal, −0.1 for every other step. In FAMP the last of 1500 steps without a drop-off gives
    −2, which is −0.1 a step for ever after at its γ of 0.95; here the learner bootstraps at the limit instead.

    ## Starting State
    The taxi on the task's start, without its passenger or with them.

    ## Episode End
    Terminated by the drop-off, truncated after 1500 steps. `info["delivered"]` tells which.

    ## Arguments
    `num_envs` and `device` (batched view only); `max_episode_steps`; `render_mode`, "human" or "rgb_array":
    400 × 400, walls grey, the taxi a black disc, the goal orange, the pick-up place blue, and so is the passenger on
    board.
    """

    plan = PLAN
    train_tasks = [task for task in range(len(TRIPS)) if task not in HELD_OUT]
    test_tasks = HELD_OUT

    def __init__(self, num_envs=1, max_episode_steps=None, render_mode=None, device="cpu"):
        cells = [(s % SIDE + 1, s // SIDE % SIDE + 1) for s in range(2 * SIDE**2)]
        super().__init__(build_dynamics(), cells, num_envs, max_episode_steps, render_mode, device)

    def task_label(self, task):
        """The task's name for people: start, pick-up place, goal, or start and goal."""
        return "".join(filter(None, TRIPS[task]))

    def _step(self, actions):
        observation, reward, terminated, _ = super()._step(actions)
        return observation, reward, terminated, {"delivered": terminated}

    def _marks(self, e):
        _, waits, goal = TRIPS[self._playing[e]]
        on_board = self.state[e] >= SIDE**2
        if waits and not on_board:
            yield number_of(PLACES[waits]), COLOURS["blue"], None
        yield number_of(PLACES[goal]), COLOURS["orange"], None
        yield self.state[e], BLACK, 0.7
        if on_board:
            yield self.state[e], COLOURS["blue"], 0.3


class Taxi(SingleEnv):
    __doc__ = TaxiVector.__doc__
    vector_class = TaxiVector


PRESET = {
    "N": 10,
    "W": 10,
    "U": 10,
    "tasks": 12,
    "epochs": 3,
    "T": 500,
    "high_len": 4,
    "num_sub_policies": 4,
    "groups": 8,
    "master_minibatch": 80,
    "sub_lr": 1e-3,
    "explore": 0.1,
    "sub_entropy": 0.02,
    "fade": 8,
    "normalise": False,
}
register("TaxiFAMP-v0", Taxi, 1500, PRESET, 0.75)
