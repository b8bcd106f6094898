"""The returns of masters that plan over fixed sub-policies: how much better learned masters could get."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlsh.envs import make_env
from mlsh.envs.ant_mazes import BLOCKS, MAZES, AntMazesVector
from mlsh.envs.base import VectorTasks
from mlsh.envs.grid_world import Dynamics, GridWorld, solve_over
from mlsh.envs.point_world import PointWorld
from mlsh.models import Hierarchy
from mlsh.outcome import Outcome
from mlsh.rollout import HierarchyActor, PolicyStep, RolloutSettings, Trace
from mlsh.sampling import Streams
from mlsh.slots import SlotRecord, Slots, draw_seeds, play_episodes

Choose = Callable[[Slots], Tensor]  # the sub-policy [E] that a plan selects where a decision is due

MOST_PLANS = 2000  # sequences of decisions that a search tries
STARTS = 50  # episodes for which a search plans, and which a plan for a maze plays
SIDE = 48.0  # m, of the square of the mazes, which begins at x = 0 and y = −24
CELL = 16.0  # m, the side of what a block closes
CLEARANCE = 1.2  # m between a wall and the middle of an ant
GRID = 1.0  # m between the places for which a plan is made
PATHS = 20  # measured paths of each sub-policy
SLIDE = 0.5  # of its speed that an ant has along a wall
PARTS = 10  # of a way, after each of which the model looks for walls


class PlannedActor(HierarchyActor):
    """Sub-policies act as always, but a plan decides which."""

    def __init__(
        self, agent: Hierarchy, rngs: Any, slots_per_group: int, settings: RolloutSettings, choose: Choose
    ) -> None:
        super().__init__(agent, rngs, slots_per_group, settings)
        self._plan = choose

    def _choose(self, obs: Tensor, slots: Slots) -> PolicyStep:
        z = self._plan(slots)
        return PolicyStep(torch.zeros(len(z), 1), z)


@torch.no_grad()
def play_plan(
    env: VectorTasks, agent: Hierarchy, rngs: Any, settings: RolloutSettings, choose: Choose, seeds: Any = None
) -> tuple[SlotRecord, Trace]:
    """Play one episode in each slot by a plan. `seeds` of the environment, if not from `rngs`."""
    with env.rollout_context():
        seeds = seeds or draw_seeds(rngs)
        actor = PlannedActor(agent, rngs, env.num_envs // len(rngs), settings, choose)
        record = play_episodes(env, actor, seeds, settings.T)
        return record, actor.trace()


def ceilings(agent: Hierarchy, cfg: Any, tasks: Sequence[Any]) -> list[float] | None:
    """The mean return on each task of a master that knows the task and plans, or None where no plan is known.

    In grid worlds it is exact, and the best possible return. In worlds of points a search tries all sequences of
    decisions for each start, if there are at most `MOST_PLANS`; a plan does not react to what happens. In the mazes of
    ants, a plan is made by dynamic programming over x and y from measured ways of the sub-policies, and ants play it.
    Decisions must divide the steps between two upright resets.
    """
    env = make_env(cfg, 1)
    if isinstance(env, GridWorld):
        return of_grid_world(agent, env, cfg, tasks)
    if isinstance(env, PointWorld) and agent.sub_policies.n ** math.ceil(cfg.T / cfg.high_len) <= MOST_PLANS:
        return [of_point_world(agent, cfg, task) for task in tasks]
    if isinstance(env, AntMazesVector) and env.upright_interval % cfg.high_len == 0:
        return of_mazes(agent, cfg, tasks)["return"].tolist()
    return None


@torch.no_grad()
def of_grid_world(agent: Hierarchy, env: GridWorld, cfg: Any, tasks: Sequence[int]) -> list[float]:
    dynamics = Dynamics(*(x.cpu() for x in env.dynamics))
    K, states = agent.sub_policies.n, dynamics.next.shape[1]
    obs = agent.normaliser(torch.eye(states, device=env.device)).expand(K, -1, -1)
    policies = agent.sub_policies.params(obs).softmax(-1).cpu()
    return solve_over(dynamics, policies, cfg.T, cfg.high_len)[list(tasks)].tolist()


def of_point_world(agent: Hierarchy, cfg: Any, task: Any) -> float:
    K, M = agent.sub_policies.n, math.ceil(cfg.T / cfg.high_len)
    plans = torch.tensor([*itertools.product(range(K), repeat=M)], device=agent.master.device)  # [plans, M]
    env = make_env(cfg, len(plans) * STARTS)
    env.set_task(task)
    seed = draw_seeds(Streams(cfg.seed, range(1))(0, "ceiling"))
    every = plans.repeat_interleave(STARTS, 0)  # [E, M]
    rngs = Streams(cfg.seed, range(len(plans)))(0, "ceiling: search")
    record, _ = play_plan(env, agent, rngs, cfg.rollout, lambda x: every[:, x.t // cfg.high_len], seed * len(plans))
    best = plans[record.reward.sum(0).view(len(plans), STARTS).argmax(0)]  # [STARTS, M]
    env = make_env(cfg, STARTS)
    env.set_task(task)
    rngs = Streams(cfg.seed, range(1))(0, "ceiling: play")
    record, _ = play_plan(env, agent, rngs, cfg.rollout, lambda x: best[:, x.t // cfg.high_len], seed)
    return record.reward.sum(0).mean().item()


class Ways(NamedTuple):
    """How K sub-policies move an ant on open ground, in each of the decisions between two upright resets."""

    moved: np.ndarray  # [decisions, K, PATHS, 2], metres
    effort: np.ndarray  # [K], paid for each step


def measure(agent: Hierarchy, cfg: Any, interval: int) -> Ways:
    """Let each sub-policy run alone on open ground until the ant would be put upright."""
    K = agent.sub_policies.n
    open_cfg = dataclasses.replace(cfg, env="AntMovement-v1", T=interval + 1)
    env = make_env(open_cfg, K * PATHS)
    rngs = Streams(cfg.seed, range(K))(0, "ceiling: ways")
    alone = torch.arange(K).repeat_interleave(PATHS)
    record, trace = play_plan(env, agent, rngs, open_cfg.rollout, lambda _: alone)
    assert trace.actions is not None
    xy = record.obs[: interval + 1 : cfg.high_len, :, :2].double().numpy(force=True)
    effort = 0.1 * trace.actions.action.square().sum(-1).mean(0).view(K, PATHS).mean(1)
    return Ways(np.diff(xy, axis=0).reshape(-1, K, PATHS, 2), effort.double().numpy(force=True))


def is_free(task: int) -> np.ndarray:
    """Which places of a maze an ant can be at: bool on a grid of 0.25 m that reaches one block beyond the walls."""
    open_blocks = [BLOCKS[name] for name in MAZES[task][0].split()]
    along = (np.arange(round(4 * (SIDE + 2 * CELL))) + 0.5) / 4 - CELL
    x, y = np.meshgrid(along, along - SIDE / 2, indexing="ij")

    def is_open(x: np.ndarray, y: np.ndarray) -> Any:
        return sum((abs(x - a) < CELL / 2) & (abs(y - b) < CELL / 2) for a, b in open_blocks) > 0

    corners = itertools.product((-CLEARANCE, CLEARANCE), repeat=2)
    return np.logical_and.reduce([is_open(x + dx, y + dy) for dx, dy in corners])


def at(free: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Whether places xy [n, 2] are free, by the grid that `is_free` returns."""
    i = ((xy + (CELL, SIDE / 2 + CELL)) * 4).astype(int)
    return free[i[:, 0], i[:, 1]]


def slide(free: np.ndarray, goal: np.ndarray, xy: np.ndarray, moved: np.ndarray, dt: float) -> tuple[Any, Any]:
    """Move points xy [n, 2] by `moved` [n, 2] along walls. Returns where they come to, and what the progress pays."""
    paid = np.zeros(len(xy))
    for _ in range(PARTS):
        step = moved / PARTS
        freely = np.stack([at(free, xy + step * axis) for axis in np.eye(2)], 1)  # [n, 2], along x and along y
        freely[freely.all(1) & ~at(free, xy + step)] = False  # into the edge of a block
        new = xy + step * freely * np.where(freely.all(1), 1, SLIDE)[:, None]
        paid += (np.where(xy < goal, 1, -1) * (new - xy)).sum(1) / dt
        xy = new
    return xy, paid


def plan_maze(ways: Ways, task: int, T: int, high_len: int, dt: float) -> np.ndarray:
    """The best decisions by the model, [decisions, cells]; `cell_of` numbers the cells."""
    free, goal = is_free(task), np.array(MAZES[task][1], float)
    side = round(SIDE / GRID)
    place = (np.stack(np.meshgrid(*[np.arange(side)] * 2, indexing="ij"), -1).reshape(-1, 2) + 0.5) * GRID
    place[:, 1] -= SIDE / 2
    is_place_free = at(free, place)
    away = np.linalg.norm(place[:, None] - place[None, is_place_free], axis=-1)
    from_place = place[is_place_free][away.argmin(1)]  # an ant may be nearer to a wall than the model allows
    outcomes = []  # per decision within an interval and sub-policy: cells and pay, [cells, PATHS] each
    for of_decision in ways.moved:
        of_each = []
        for k, moved in enumerate(of_decision):
            xy, paid = slide(free, goal, from_place.repeat(PATHS, 0), np.tile(moved, (len(place), 1)), dt)
            cell = cell_of(xy)
            of_each.append((cell.reshape(-1, PATHS), paid.reshape(-1, PATHS) - ways.effort[k] * high_len))
        outcomes.append(of_each)
    value, plan = np.zeros(len(place)), []
    for d in reversed(range(math.ceil(T / high_len))):
        of_each = [(paid + value[cell]).mean(1) for cell, paid in outcomes[d % len(outcomes)]]
        plan.append(np.argmax(of_each, 0))
        value = np.max(of_each, 0)
    return np.stack(plan[::-1])


def cell_of(xy: np.ndarray) -> np.ndarray:
    """The number of the cell of the plan that each place xy [n, 2] is in."""
    side = round(SIDE / GRID)
    i = np.clip(((xy + (0, SIDE / 2)) / GRID).astype(int), 0, side - 1)
    return i[:, 0] * side + i[:, 1]


def of_mazes(agent: Hierarchy, cfg: Any, tasks: Sequence[int], starts: int = STARTS) -> dict[str, np.ndarray]:
    """What planned masters reach in each maze, means over so many episodes: the return and final values by name."""
    env = make_env(cfg, len(tasks) * starts)
    assert isinstance(env, AntMazesVector)
    ways = measure(agent, cfg, env.upright_interval)
    plans = np.stack([plan_maze(ways, task, cfg.T, cfg.high_len, env.dt) for task in tasks])
    of_slot = np.arange(len(tasks)).repeat(starts)

    def choose(slots: Slots) -> Tensor:
        cells = cell_of(slots.obs[:, :2].double().numpy(force=True))
        return torch.from_numpy(plans[of_slot, slots.t // cfg.high_len, cells])

    env.set_task(list(tasks))
    rngs = Streams(cfg.seed, range(len(tasks)))(0, "ceiling: play")
    record, trace = play_plan(env, agent, rngs, cfg.rollout, choose)
    return Outcome.of(record, trace.active, len(tasks), agent.sub_policies.n).means()
