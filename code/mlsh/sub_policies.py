"""A report on the sub-policies of a run: which are used, how they differ, and what better masters could reach."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlsh.ceiling import ceilings
from mlsh.config import Config
from mlsh.envs import make_env, max_parallel_episodes
from mlsh.meta_test import load_agent, test_tasks, with_constant_masters
from mlsh.models import ActorCritic, Hierarchy
from mlsh.outcome import USED, information
from mlsh.rollout import play
from mlsh.sampling import Streams
from mlsh.slots import play_episodes

TASKS, EPISODES = 20, 10  # tasks at most on which sub-policies run alone, and episodes of each
OBSERVATIONS = 5000  # at which sub-policies are compared
MOVES = 0.1  # a sub-policy whose way is below this part of the longest stands still


class SubPolicyReport(NamedTuple):
    """What is known about K sub-policies on some tasks."""

    share: np.ndarray  # [tasks, K], of the env steps, with the masters of the final test
    information: float  # bits that a choice tells about the task; at most log2 of the number of tasks or of K
    difference: np.ndarray  # [K, K], the total variation distance of the actions: 0 the same, 1 never the same action
    way: np.ndarray | None  # [K, 2], mean way in one decision, for environments that know positions
    distance: np.ndarray | None  # [K], its mean length
    returned: np.ndarray  # [tasks], by the masters of the final test
    without: np.ndarray  # [K, tasks], by new masters without this sub-policy
    ceiling: np.ndarray | None  # [tasks], see `ceiling.ceilings`

    def state(self, k: int) -> str:
        """Whether a sub-policy is dead: never chosen, or standing still."""
        if self.share[:, k].max() < USED:
            return "never chosen"
        if self.distance is not None and self.distance[k] < MOVES * self.distance.max():
            return "stands still"
        return ""


def report_sub_policies(data: dict[str, Any], rows: Sequence[dict[str, Any]]) -> SubPolicyReport:
    """Examine the sub-policies of a checkpoint, on the CPU. `rows` are those of its final test."""
    cfg: Config = dataclasses.replace(data["config"], device="cpu")
    agent, tasks = load_agent(data | {"config": cfg}, make_env(cfg, 1)), [row["task"] for row in rows]
    share = np.array([row["share"] for row in rows])
    obs, ways = play_alone(agent, cfg, tasks)
    without = [
        [row["return"] for row in test_tasks(smaller, make_env(reduced, 1), tasks, reduced)[0]]
        for smaller, reduced in (without_sub_policy(agent, cfg, k) for k in range(agent.sub_policies.n))
    ]
    ceiling = ceilings(agent, cfg, tasks)
    return SubPolicyReport(
        share,
        information(share),
        differences(agent.sub_policies, obs, Streams(cfg.seed, range(1))(0, "report: actions")[0]),
        None if ways is None else np.nanmean(ways, 1),
        None if ways is None else np.nanmean(np.linalg.norm(ways, axis=-1), 1),
        np.array([row["return"] for row in rows]),
        np.array(without),
        None if ceiling is None else np.array(ceiling),
    )


@torch.no_grad()
def differences(sub_policies: ActorCritic, obs: Tensor, rng: np.random.Generator) -> np.ndarray:
    """The total variation distance between the actions of any two sub-policies [K, K], a mean over obs [S, obs].

    It is estimated from one action a ~ p of each sub-policy at each observation, as the mean of max(0, 1 − q(a)/p(a)).
    """
    K = sub_policies.n
    params = sub_policies.params(obs.expand(K, *obs.shape))  # [K, S, A or 2A]
    noise = torch.from_numpy(sub_policies.noise(rng, *params.shape[:2])).to(obs.device)
    action = sub_policies.sample(params, noise)
    log_prob = [sub_policies.distribution(params[j]).log_prob(action) for j in range(K)]  # [K, S] each
    ratio = torch.stack(log_prob, 1) - torch.stack([log_prob[k][k] for k in range(K)])[:, None]  # log q/p [K, K, S]
    one_way = (1 - ratio.exp()).clamp(min=0).mean(-1)
    return ((one_way + one_way.T) / 2).numpy(force=True)


def play_alone(agent: Hierarchy, cfg: Config, tasks: Sequence[Any]) -> tuple[Tensor, np.ndarray | None]:
    """Let each sub-policy run alone, on as many of the tasks as can be played at once.

    Returns normalised observations [S, obs], and how each sub-policy moves in one decision [K, n, 2], if the
    environment knows positions; NaN after an episode's end.
    """
    K = agent.sub_policies.n
    at_once = max(1, min(TASKS, max_parallel_episodes(cfg) // (K * EPISODES)))
    tasks = tasks[:: math.ceil(len(tasks) / at_once)]
    alone = with_constant_masters(agent, len(tasks))
    env = make_env(cfg, len(tasks) * K * EPISODES)
    env.set_task([task for task in tasks for _ in range(K)])
    positions: list[Tensor] = []

    def note() -> None:
        position = env.position()
        if position is not None:
            positions.append(position)

    rngs = Streams(cfg.seed, range(len(tasks) * K))(0, "report: alone")
    record, _ = play(play_episodes, env, alone, rngs, cfg.rollout, note)
    obs = record.obs[:-1][record.alive]
    obs = agent.normaliser(obs[:: math.ceil(len(obs) / OBSERVATIONS)])
    if not positions:
        return obs, None
    stride = min(cfg.high_len, len(positions) - 1)
    at_decisions = torch.stack(positions).double()[::stride]  # [decisions + 1, E, 2]
    alive = record.alive[::stride][: len(at_decisions) - 1]
    moved = (at_decisions[1:] - at_decisions[:-1]).view(-1, len(tasks), K, EPISODES, at_decisions.shape[-1])
    moved = torch.where(alive.view(moved.shape[:-1])[..., None], moved, torch.nan)
    ways = moved.movedim(2, 0).flatten(1, 3).numpy(force=True)
    return obs, ways


def without_sub_policy(agent: Hierarchy, cfg: Config, k: int) -> tuple[Hierarchy, Config]:
    """The agent without one of its sub-policies, and settings for it."""
    others = [j for j in range(agent.sub_policies.n) if j != k]
    reduced = dataclasses.replace(cfg, num_sub_policies=len(others))
    agent = agent._replace(sub_policies=agent.sub_policies.copies_of(others))
    master = Hierarchy.build(reduced, make_env(reduced, 1)).master
    return agent._replace(master=master), reduced


def tabulate_sub_policies(report: SubPolicyReport, labels: Sequence[str]) -> list[tuple[list[str], list[list[str]]]]:
    """A table with one row per sub-policy, and one with one row per task: header and rows."""
    K, mean = report.share.shape[1], report.returned.mean()
    rows = []
    for k in range(K):
        others = np.where(np.arange(K) == k, np.inf, report.difference[k])
        nearest = f"{others.min():.2f} (to {others.argmin()})" if K > 1 else ""
        cells = [str(k), f"{report.share[:, k].mean():.2f}", f"{(report.share.argmax(1) == k).sum()}", nearest]
        if report.way is not None and report.distance is not None:
            cells += [", ".join(f"{x:.3g}" for x in report.way[k]), f"{report.distance[k]:.3g}"]
        rows.append([*cells, f"{mean - report.without[k].mean():.4g}", report.state(k)])
    way = [] if report.way is None else ["mean way in a decision", "its mean length"]
    header = ["sub-policy", "share", "tasks that use it most", "difference to the nearest", *way]
    of_tasks = []
    for j, label in enumerate(labels):
        cells = [label, f"{report.returned[j]:.4g}", *(f"{x:.4g}" for x in report.without[:, j])]
        if report.ceiling is not None:
            cells.append(f"{report.ceiling[j]:.4g}")
        of_tasks.append(cells)
    best = [] if report.ceiling is None else ["planned master"]
    return [
        ([*header, "return lost without it", "dead"], rows),
        (["task", "new master", *(f"without {k}" for k in range(K)), *best], of_tasks),
    ]
