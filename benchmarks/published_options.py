"""Option-critic in Four rooms with the rules of its authors, to compare with the results of their code.

    python benchmarks/published_options.py --num_options 4

An episode begins on any free cell except the goal's. It pays 1 on reaching the goal and ends there, or after 1,000
steps. The goal is cell 62 first, and then a cell of the lower right room. The authors' tabular code, with 4 options,
gets from hundreds of steps to a few tens within some hundred episodes. Here a learner plays several slots side by side,
and its episodes are counted over all of them.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mlsh.baselines.option_critic import OptionCriticConfig, begin_task, make_optimizers
from mlsh.baselines.options import OptionCritic, play_options, update_options
from mlsh.envs.fourrooms import CELLS, ROOM, FourroomsVector, build_dynamics
from mlsh.envs.grid_world import GridWorld
from mlsh.sampling import Streams

GOALS = (62, *ROOM)


class WalkToGoal(FourroomsVector):
    """Four rooms in which an episode begins anywhere and ends at the goal."""

    def __init__(self, num_envs: int) -> None:
        self.goals, self.train_tasks = GOALS, list(range(len(GOALS)))
        dynamics = build_dynamics(GOALS)
        dynamics = dynamics._replace(ends=dynamics.reward > 0)
        GridWorld.__init__(self, dynamics, CELLS, num_envs, 1000, None, "cpu")

    def _reset(self, which):
        super()._reset(which)
        drawn = torch.from_numpy(self._sample(lambda rng, n: rng.integers(len(CELLS) - 1, size=n), which))
        goal = torch.tensor(self.goals)[self._episode_task[which]]
        self.state[which] = drawn + (drawn >= goal)
        return self._observation()


def best_mean_steps(env: WalkToGoal, task: int) -> float:
    """The mean number of steps to the goal under the best policy, over all first cells, by value iteration."""
    dynamics, goal = env.dynamics, env.goals[task]
    steps = torch.zeros(len(CELLS), dtype=torch.float64)
    for _ in range(2000):
        after = torch.where(dynamics.ends[task], 0, steps[dynamics.next[task]]).mean(-1)
        steps = (1 + after.min(-1).values).index_fill(0, torch.tensor(goal), 0)
    return (steps.sum() / (len(CELLS) - 1)).item()


def episode_lengths(
    env: WalkToGoal,
    agent: OptionCritic,
    optimizers: Any,
    rngs: Sequence[np.random.Generator],
    cfg: OptionCriticConfig,
    T: int,
) -> list[list[int]]:
    """Play and learn for `T` steps per slot. Returns the lengths of each group's episodes, in the order of their ends.

    A group is one learner.
    """
    begun, lengths, now = torch.zeros(env.num_envs, dtype=torch.long), [[] for _ in rngs], 0

    def learn(steps):
        nonlocal now
        for ended in steps.terminated | steps.truncated:
            now += 1
            for e in ended.nonzero()[:, 0].tolist():
                lengths[e * len(rngs) // env.num_envs].append(now - begun[e].item())
                begun[e] = now
        update_options(agent, optimizers, steps, cfg.settings)

    play_options(env, agent, rngs, dataclasses.replace(cfg.settings, T=T), learn)
    return lengths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, default in (("seeds", 5), ("slots", 4), ("steps", 2500), ("n_steps", 5), ("num_options", 4)):
        parser.add_argument(f"--{flag}", type=int, default=default)
    for flag, default in (("lr", 1e-3), ("lr_critic", 3e-3), ("entropy_coef", 0.01)):
        parser.add_argument(f"--{flag}", type=float, default=default)
    args = parser.parse_args()
    shown = {name: getattr(args, name) for name in ("num_options", "n_steps", "lr", "lr_critic", "entropy_coef")}
    cfg = OptionCriticConfig(groups=args.seeds, shared="nothing", normalise=False, T=1000, **shown)
    env, streams = WalkToGoal(args.seeds * args.slots), Streams(0, range(args.seeds))
    agent = cfg.build(env)
    optimizers = make_optimizers(agent, cfg)
    begin_task(agent, optimizers, streams, 0, cfg)
    moved_goals = [5 + 3 * seed for seed in range(args.seeds)]
    for i, tasks in enumerate(([0] * args.seeds, moved_goals)):
        env.set_task(tasks)
        best_steps = np.mean([best_mean_steps(env, task) for task in tasks])
        print(f"goals {', '.join(str(GOALS[task]) for task in dict.fromkeys(tasks))}: best possible {best_steps:.1f}")
        found = episode_lengths(env, agent, optimizers, streams(i, "published"), cfg, args.steps)
        for first in (0, 25, 50, 100, 200, 300, 400, 600, 800):
            means = [np.mean(x[first : first + 25]) for x in found if len(x) >= first + 25]
            if means:
                steps = f"{np.mean(means):6.1f} steps (from {min(means):.1f} to {max(means):.1f})"
                print(f"  episodes {first + 1:3} to {first + 25}: {steps}, {len(means)} learners", flush=True)


if __name__ == "__main__":
    main()
