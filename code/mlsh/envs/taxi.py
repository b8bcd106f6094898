"""Taxi: fetch a passenger at one of four places and take them to another; neither place is observed."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from mlsh.envs.base import Info, SingleEnv
from mlsh.envs.grid_world import DOWN, LEFT, RIGHT, UP, Cell, Dynamics, GridWorld, Mark, move_table
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
NUM_TASKS, NUM_PICK_UPS = 60, 48  # the first 48 tasks begin with a pick-up, the others with the passenger on board
HELD_OUT = [0, 4, 8, 13, 17, 21, 26, 30, 34, 39, 43, 47]
STAY = (0, 0)
MOVES = (STAY, LEFT, RIGHT, DOWN, UP, STAY)  # of the six actions; the last is picking up or dropping off
PICK_UP_OR_DROP_OFF = 5
STEP_REWARD, DELIVERY_REWARD = -0.1, 2.0


class Trip(NamedTuple):
    """A task: letters of PLACES."""

    start: str
    pick_up: str | None  # None if the passenger is on board at the start
    goal: str


def state_of(cell: Cell, on_board: bool = False) -> int:
    """Return the state of a taxi on a cell, numbered as in FAMP: down the columns, and 36 more with the passenger."""
    return SIDE**2 * on_board + SIDE * (cell[1] - 1) + cell[0] - 1


def decode_task(task: int) -> Trip:
    """Return the trip with FAMP's number `task`."""
    names = list(PLACES)
    if task < NUM_PICK_UPS:
        rest, goal = divmod(task, 4)
        start, other = divmod(rest, 3)
        return Trip(names[start], names[(goal + other + 1) % 4], names[goal])
    other, goal = divmod(task - NUM_PICK_UPS, 4)
    return Trip(names[(goal + other + 1) % 4], None, names[goal])


TRIPS = [decode_task(task) for task in range(NUM_TASKS)]


def build_dynamics() -> Dynamics:
    """Build the family of all TRIPS."""
    states = {
        (i, j): state_of((i, j)) for i, row in enumerate(PLAN) for j, character in enumerate(row) if character == " "
    }
    moves = move_table(states, SIDE**2, MOVES)
    following = torch.cat((moves, moves + SIDE**2)).repeat(len(TRIPS), 1, 1)  # [tasks, S, A]
    reward, ends = torch.full(following.shape, STEP_REWARD), torch.zeros(following.shape, dtype=torch.bool)
    start = torch.zeros(len(TRIPS), dtype=torch.long)
    for task, trip in enumerate(TRIPS):
        start[task] = state_of(PLACES[trip.start], trip.pick_up is None)
        if trip.pick_up:
            place = PLACES[trip.pick_up]
            following[task, state_of(place), PICK_UP_OR_DROP_OFF] = state_of(place, True)
        delivery = task, state_of(PLACES[trip.goal], True), PICK_UP_OR_DROP_OFF
        reward[delivery], ends[delivery] = DELIVERY_REWARD, True
    return Dynamics.broadcast(start, following[..., None], reward[..., None], ends[..., None])


class TaxiVector(GridWorld):
    """
    ## Description
    The taxi of FAMP (Kuroo/FAMP, "Reusable Options through Gradient-based Meta Learning", `envs/taxi.py`). The taxi
    fetches a passenger at one of the places R, Y, B and G and takes them to another place, or has them on board from
    the start. The task is where the taxi starts, fetches the passenger and drops them off. It is not observed.

    Gymnasium's own `Taxi` is a different environment: it has 5 × 5 cells, observes passenger and goal, and fines a
    wrong pick-up. The id here contains FAMP because Gymnasium would otherwise advise to upgrade to its own.

    The 60 tasks have FAMP's numbers. In 0 … 47 the taxi fetches the passenger: task = 12·start + 4·p + goal, with the
    places numbered in the order R, Y, B, G, and p the number of the pick-up place among the three other than the goal,
    counted from the goal on. In 48 … 59 the passenger is on board: task = 48 + 4·p + goal, and p is likewise the number
    of the start. FAMP's twelve held-out tasks are held out: 0, 4, 8, 13, 17, 21, 26, 30, 34, 39, 43 and 47.

    ## Action Space
    `Discrete(6)`: stay, left, right, down, up, pick up or drop off. A move into a wall leaves the taxi where it is.

    ## Observation Space
    `Box(0, 1, (72,))`, one-hot: the cell of the 6 × 6 grid, counted down the columns, plus 36 if the passenger is on
    board. Six cells are walls.

    ## Rewards
    2 for the drop-off at the goal, −0.1 for every other step. In FAMP the last of 1500 steps without a drop-off gives
    −2, which is −0.1 per step for ever after at its γ of 0.95. Here the learner bootstraps at the time limit instead.

    ## Starting State
    The taxi is at the task's start, with or without its passenger.

    ## Episode End
    Terminated by the drop-off, truncated after 1500 steps. `info["delivered"]` says which.

    ## Arguments
    `max_episode_steps`; `render_mode`, "human" or "rgb_array". Single view only: `task`. Batched view only:
    `num_envs` and `device`.

    Pictures are 400 × 400 pixels. Walls are grey, the taxi is a black disc, the goal orange. The pick-up place is blue,
    and so is the passenger on board.
    """

    plan = PLAN
    train_tasks = [task for task in range(len(TRIPS)) if task not in HELD_OUT]
    test_tasks = HELD_OUT

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        cells = [(s % SIDE + 1, s // SIDE % SIDE + 1) for s in range(2 * SIDE**2)]
        super().__init__(build_dynamics(), cells, num_envs, max_episode_steps, render_mode, device)

    def task_label(self, task: int) -> str:
        """Return the letters of start, pick-up place and goal, or of start and goal if the passenger is on board."""
        return "".join(filter(None, TRIPS[task]))

    def _step(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Info]:
        observation, reward, terminated, _ = super()._step(actions)
        return observation, reward, terminated, {"delivered": terminated}

    def _marks(self, e: int) -> Iterable[Mark]:
        trip, state = TRIPS[int(self._episode_task[e])], int(self.state[e])
        on_board = state >= SIDE**2
        if trip.pick_up and not on_board:
            yield state_of(PLACES[trip.pick_up]), COLOURS["blue"], None
        yield state_of(PLACES[trip.goal]), COLOURS["orange"], None
        yield state, BLACK, 0.7
        if on_board:
            yield state, COLOURS["blue"], 0.3


class Taxi(SingleEnv):
    __doc__ = TaxiVector.__doc__
    vector_class = TaxiVector


PRESET: dict[str, Any] = {
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
