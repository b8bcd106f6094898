"""Option-critic (Bacon, Harb and Precup 2017), a baseline of the paper; with one option it is an actor-critic."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch

from mlsh import parallel
from mlsh.baselines.options import Losses, OptionCritic, play, update
from mlsh.envs import find_preset, make_env
from mlsh.envs.pool import Stage
from mlsh.errors import UserError, run_command
from mlsh.meta_test import LEARNERS, measures
from mlsh.normaliser import Normaliser
from mlsh.ppo import Adam
from mlsh.runs import checkpoint
from mlsh.runs.log import Log, has_curves
from mlsh.runs.metrics import means_of
from mlsh.runs.run import Run
from mlsh.sampling import Streams, balanced_tasks
from mlsh.settings import Count, Finite, Fraction, NotNegative, Positive, RunSettings, short


@dataclass
class OptionCriticConfig(RunSettings):
    """Train option-critic on one task after another; with --num_options 1 it is an actor-critic.

    -N, --groups, --tasks, --rollouts (W + U there), -T, --normalise and --reward_scale are by default train.py's.
    """

    kind: ClassVar[str] = "option-critic"
    length: ClassVar[str] = "tasks"

    N: Annotated[Count, short("-N")] = 20
    """Slots a task group, in which episodes are played side by side."""
    groups: Count = 4
    """Task groups in step, each with its own task."""
    tasks: Count = 10
    """Outer iterations; each draws a task for every group."""
    rollouts: Count = 50
    """Rollouts a task, of -T env steps in every slot; learning goes on within them."""
    T: Annotated[Count, short("-T")] = 50
    """Horizon: env steps after which an episode is truncated; by default the environment's own limit."""
    n_steps: Count = 10
    """Env steps between two gradient steps, and at most so many rewards in a target."""
    num_options: Count = 4
    """Number of options; with 1 terminations play no role."""
    shared: Literal["options", "all", "nothing"] = "options"
    """What a new task begins with: the options, while their values begin anew; all; or nothing (from scratch)."""
    lr: Positive = 1e-3
    """Adam's learning rate for the options: policies and terminations."""
    lr_critic: Positive = 3e-3
    """Adam's learning rate for the option values Q."""
    gamma: Fraction = 0.99
    """Discount γ of a step."""
    lam: Fraction = 0.95
    """λ with which targets of 1 to --n_steps rewards are mixed; 1 for the longest alone, 0 for one reward."""
    explore: Fraction = 0.05
    """ε: probability that the policy over options draws a uniformly random one, not the one of the greatest value."""
    margin: NotNegative = 0.01
    """ξ: termination regulariser, by which another option has to be better before terminating is encouraged."""
    c2: NotNegative = 0.01
    """Weight of the entropy bonus of the options' policies."""
    hidden: Count = 64
    """Units in each of the two hidden layers of every network."""
    log_std: Finite = 0.0
    """Initial log standard deviation of continuous actions."""
    reward_scale: Positive = 1.0
    """Factor on rewards inside the learner; reported returns are without it."""
    normalise: bool = True
    """Normalise observations by their running mean and variance, clipped to ±5."""

    @classmethod
    def defaults(cls, env):
        known = find_preset(env)
        names = ("N", "groups", "tasks", "T", "normalise", "reward_scale")
        same = {name: known[name] for name in names if name in known}
        return cls(env=env, **same | ({"rollouts": known["W"] + known["U"]} if {"W", "U"} <= known.keys() else {}))

    def most_at_once(self, processes):
        return self.N * self.groups

    @property
    def anew(self):
        """Which parts of the agent begin anew with every task; each group has its own."""
        return {"options": ("critic",), "all": (), "nothing": ("options", "critic")}[self.shared]

    @property
    def playing(self):
        """Keyword arguments of `play`."""
        return self.only("T", "explore")

    @property
    def learning(self):
        """Keyword arguments of `update`."""
        return self.only("gamma", "lam", "explore", "margin", "reward_scale", "c2")


class OptionCriticLogger(Log):
    """What such a run reports: a row a group, with the mean returns of the first and the last rollout of the task."""

    def __init__(self, run):
        self._shares = [f"share_{k}" for k in range(run.cfg.num_options)]
        rewards = {"pretrain_reward": "first rollout", "joint_reward": "last rollout"}
        columns = ["iteration", "group", "task", *rewards, "env_steps", "train_env_steps", "seconds", "diverged"]
        super().__init__(run, [*columns, *self._shares, *Losses._fields], rewards, run.cfg.rollouts)
        self._played_by = []

    def step(self, i, played):
        """After a rollout of outer iteration `i`, an `Outcome`."""
        self._played_by = [*self._played_by[:1], played]
        self.env_steps += played.steps
        self.train_env_steps += played.steps
        self._advance(f"task {i + 1}/{self._length}")
        self._played(played.episode_return.mean().item(), played.episode_length.mean().item())

    def task_done(self, i, tasks, losses):
        """After outer iteration `i`, whose groups had `tasks`; `losses` are of its last rollout."""
        first, last = self._played_by[0], self._played_by[-1]
        self._played_by = []
        returns = {"pretrain_reward": first.episode_return.mean(1), "joint_reward": last.episode_return.mean(1)}
        values = returns | {"diverged": last.diverged} | dict(zip(self._shares, last.share.T, strict=True))
        rows = [
            {"group": g, "task": task, **{name: x[g].item() for name, x in values.items()}, **losses}
            for g, task in enumerate(tasks)
        ]
        charts, of_task = means_of(rows, (*returns, *self._shares)), {}
        for task in dict.fromkeys(filter(has_curves, tasks)):
            mine = means_of([row for row in rows if row["task"] == task], returns)
            of_task |= {f"{task}_{name}": x for name, x in mine.items()}
        last = f"joint reward {charts['joint_reward']:.2f}"
        self._iteration_done(i, rows, last, of_task, charts=charts, losses=losses, tasks=of_task)


def optimisers(agent, cfg):
    return Adam(agent.options, cfg.lr), Adam(agent.critic, cfg.lr_critic)


def begin(agent, streams, i, what):
    """Draw the parameters of `what`, "options" or "critic", anew: those of a block by the stream of its group."""
    part, members = getattr(agent, what), agent.K if what == "options" else 1  # members a block
    rngs = streams(i, f"option-critic: {what}")[: part.n // members]
    part.reset([rng for rng in rngs for _ in range(members)])


def settle(env, agent, streams, cfg):
    """Give the normaliser its first statistics, by a rollout from which nobody else learns; returns its env steps."""
    if not cfg.normalise:
        return 0
    played, obs = play(env, agent, streams(0, "normaliser"), **cfg.playing)
    agent.normaliser.update(obs)
    return played.steps


def learn(env, agent, optimizers, rngs, cfg):
    """A rollout, with learning on the way. Returns what `play` does and the mean `Losses`, a dict."""
    found, update_by = [], partial(update, agent, optimizers, **cfg.learning)
    played, obs = play(env, agent, rngs, n_steps=cfg.n_steps, learn=lambda x: found.append(update_by(x)), **cfg.playing)
    for part, optimizer in zip(agent, optimizers, strict=False):
        optimizer.check_finite(part.name)
    return played, obs, dict(zip(Losses._fields, torch.stack(found).mean(0).tolist(), strict=True))


def train(cfg, env, agent, optimizers, streams, log, start=0):
    """The outer iterations from `start` on."""
    for i in range(start, cfg.tasks):
        tasks = balanced_tasks(env, streams, i, cfg.groups)
        env.set_task(tasks)
        if i:
            new_task(agent, optimizers, streams, i, cfg)
        else:
            log.env_steps += settle(env, agent, streams, cfg)
        for j in range(cfg.rollouts):
            played, obs, losses = learn(env, agent, optimizers, streams(i, f"option-critic: rollout {j}"), cfg)
            agent.normaliser.update(obs)
            log.step(i, played)
        log.task_done(i, tasks, losses)


def new_task(agent, optimizers, streams, i, cfg):
    """Draw anew what a new task does not begin with, and forget the moments of its optimiser."""
    for what, optimizer in zip(("options", "critic"), optimizers, strict=True):
        if what in cfg.anew:
            begin(agent, streams, i, what)
            optimizer.state.clear()


def learn_anew(data, cfg, env, tasks, ev):
    """As `adapt.learn_anew`: what the tasks shared in training is fine-tuned for each of `tasks`, a copy a seed."""
    agent = OptionCritic.build(cfg, env)
    parts = {name: getattr(agent, name) for name in agent._fields}
    checkpoint.restore(data | {"config": cfg}, **parts)
    cfg = dataclasses.replace(cfg, N=ev.N or cfg.N, lr_critic=ev.master_lr or cfg.lr_critic)
    blocks, episodes = [task for task in tasks for _ in range(ev.seeds)], cfg.N + ev.look
    with Stage(cfg, "evaluate", len(blocks) * cfg.T * episodes * (ev.updates + 1)) as stage:
        parts = [learn_some(agent, blocks, some, stage, ev) for some in stage.parts(len(blocks), episodes)]
    steps, outcomes = zip(*parts, strict=True)
    return sum(steps) / len(blocks), measures(outcomes, len(tasks), ev.seeds)


def learn_some(agent, blocks, some, stage, ev):
    """`learn_anew` of some of the `blocks`: env steps [updates + 1] in all, an `Outcome` an update.

    The returns of a rollout are of what learned within it; with --eval_episodes nobody learns from the episodes measured.
    """
    cfg, tasks, streams = stage.cfg, [blocks[j] for j in some], Streams(ev.seed, some)
    agent = agent.copies(len(some))
    optimizers = optimisers(agent, cfg)
    env = stage.env(cfg.N * len(some), tasks)
    new_task(agent, optimizers, streams, 0, cfg)
    if scratch := cfg.shared == "nothing":
        agent.normaliser.load_state_dict(Normaliser(len(agent.normaliser.mean)).state_dict())
        settle(env, agent, streams, cfg)
    outcomes, steps = [], [0]
    for i in range(ev.updates + 1):  # the last learns for nothing
        if ev.look:
            measured = stage.env(ev.look * len(some), tasks, "look")
            looked, _ = play(measured, agent, streams(i, "evaluate: look"), **cfg.playing)
        played, obs, _ = learn(env, agent, optimizers, streams(i, "evaluate: option-critic"), cfg)
        outcomes.append(looked if ev.look else played)
        steps.append(steps[-1] + played.steps)
        if scratch:
            agent.normaliser.update(obs)
        stage.played(len(some) * cfg.T * (cfg.N + ev.look))
    return np.array(steps[:-1]), outcomes


LEARNERS[OptionCriticConfig] = learn_anew


def main():
    if parallel.SIZE > 1:
        raise UserError("option-critic learns in one process; start it without torchrun")
    run = Run(OptionCriticConfig)
    cfg, streams = run.cfg, Streams(run.cfg.seed, range(run.cfg.groups))
    env = make_env(cfg, cfg.groups * cfg.N)
    agent = OptionCritic.build(cfg, env)
    optimizers = optimisers(agent, cfg)
    for part in ("options", "critic"):
        begin(agent, streams, 0, part)
    names = ("options_optimizer", "critic_optimizer")
    with run.alive(OptionCriticLogger, **agent._asdict(), **dict(zip(names, optimizers, strict=True))) as log:
        train(cfg, env, agent, optimizers, streams, log, run.progress["iteration"])
        run.finish()


if __name__ == "__main__":
    run_command(main)
