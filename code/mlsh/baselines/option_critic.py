"""Option-critic (Bacon, Harb and Precup 2017), a baseline of the paper; with one option it is an actor-critic."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from mlsh import parallel
from mlsh.baselines.options import Losses, OptionCritic, OptionSettings, OptionSteps, play_options, update_options
from mlsh.envs import find_preset, make_env
from mlsh.envs.base import VectorTasks
from mlsh.envs.pool import EnvPool
from mlsh.errors import UserError
from mlsh.normaliser import Normaliser
from mlsh.optim import Adam
from mlsh.outcome import Outcome
from mlsh.runs import checkpoint
from mlsh.runs.log import Log, means_by_task
from mlsh.runs.metrics import means_of
from mlsh.runs.run import Run
from mlsh.sampling import Streams, Task, balanced_tasks
from mlsh.settings import (
    COMMON_GROUPS,
    AdaptationSettings,
    Count,
    Fraction,
    NonNegative,
    Positive,
    RewardSettings,
    RunSettings,
    Settings,
    TaskSettings,
    alias,
)


@dataclass
class OptionCriticAlgorithm(Settings):
    N: Annotated[Count, alias("-N")] = 20
    """Slots per task group, in which episodes are played side by side."""
    groups: Count = 4
    """Task groups, each with its own task."""
    tasks: Count = 10
    """Outer iterations. Each draws a task for every group."""
    rollouts: Count = 50
    """Rollouts per task, of -T env steps in every slot. The agent also learns within a rollout."""
    n_steps: Count = 10
    """Env steps between two gradient steps, and the largest number of rewards in a target."""
    num_options: Count = 4
    """Number of options. With 1, terminations play no role."""
    shared: Literal["options", "all", "nothing"] = "options"
    """What a new task starts with: the options, with new values; everything; or nothing (from scratch)."""


@dataclass
class OptionCriticLearning(RewardSettings):
    lr: Positive = 1e-3
    """Adam's learning rate for the options: policies and terminations."""
    lr_critic: Positive = 3e-3
    """Adam's learning rate for the option values Q."""
    explore: Fraction = 0.05
    """ε: probability that the policy over options chooses uniformly at random, and not the option of highest value."""
    margin: NonNegative = 0.01
    """ξ: termination regulariser. Another option must be better by this much before terminating is encouraged."""
    entropy_coef: NonNegative = 0.01
    """Entropy coefficient of the options' policies."""


@dataclass
class OptionCriticConfig(OptionCriticAlgorithm, OptionCriticLearning, RunSettings):
    """Train option-critic on one task after another. With --num_options 1 it is an actor-critic.

    Examples:
        python train_option_critic.py --env FourroomsUnseen-v0 --out runs/oc
        python train_option_critic.py --env FourroomsUnseen-v0 --num_options 1 --shared nothing --out runs/ac

    -N, --groups, --tasks, -T, --normalise and --reward_scale have the defaults of train.py. --rollouts is W + U there.
    """

    KIND: ClassVar[str] = "option-critic"
    LENGTH: ClassVar[str] = "tasks"
    GROUPS: ClassVar[dict[str, type[Settings]]] = {
        "Task": TaskSettings,
        "Algorithm": OptionCriticAlgorithm,
        "Learning": OptionCriticLearning,
        **COMMON_GROUPS,
    }
    RENAMED: ClassVar[dict[str, str]] = {"c2": "entropy_coef"}

    @classmethod
    def defaults(cls, env: str) -> Self:
        known = find_preset(env)
        names = ("N", "groups", "tasks", "T", "normalise", "reward_scale")
        of_env = {name: known[name] for name in names if name in known}
        if {"W", "U"} <= known.keys():
            of_env["rollouts"] = known["W"] + known["U"]
        return cls(env=env, **of_env)

    def episodes_at_once(self, processes: int) -> int:
        return self.N * self.groups

    @property
    def env_steps(self) -> int:
        return self.tasks * self.rollouts * self.groups * self.N * self.T

    @property
    def new_parts(self) -> tuple[str, ...]:
        """The parts of the agent that are new for every task. Each group has its own."""
        return {"options": ("critic",), "all": (), "nothing": ("options", "critic")}[self.shared]

    @property
    def settings(self) -> OptionSettings:
        names = [field.name for field in dataclasses.fields(OptionSettings)]
        return OptionSettings(**self.only(*names))

    def build(self, env: VectorTasks) -> OptionCritic:
        """The agent for a batched environment, its parameters zero."""
        sets, critics = (self.groups if part in self.new_parts else 1 for part in ("options", "critic"))
        networks = self.only("hidden", "log_std", "normalise", "device")
        return OptionCritic.build(env, self.num_options, sets, critics, **networks)


class OptionCriticLog(Log[OptionCriticConfig]):
    """The log of an option-critic run: one row per outer iteration and group.

    `pretrain_reward` and `joint_reward` are the mean returns of the task's first and last rollout.
    """

    def __init__(self, run: Run[OptionCriticConfig]) -> None:
        self._shares = [f"share_{k}" for k in range(run.cfg.num_options)]
        rewards = {"pretrain_reward": "first rollout", "joint_reward": "last rollout"}
        columns = ["iteration", "group", "task", *rewards, "env_steps", "train_env_steps", "seconds", "diverged"]
        super().__init__(run, [*columns, *self._shares, *Losses._fields], rewards, run.cfg.rollouts)
        self._first: Outcome | None = None
        self._last: Outcome | None = None

    def training_iteration_done(self, i: int, outcome: Outcome) -> None:
        """After a rollout of outer iteration `i`."""
        self._first, self._last = self._first or outcome, outcome
        self.env_steps += outcome.steps
        self.train_env_steps += outcome.steps
        self._advance_bar(f"outer iteration {i + 1}/{self.run.length}")
        self._log_training_episodes(outcome.episode_return.mean().item(), outcome.episode_length.mean().item())

    def outer_iteration_done(self, i: int, tasks: Sequence[Task], losses: dict[str, float]) -> None:
        """After outer iteration `i`, whose groups had `tasks`; `losses` are those of its last rollout."""
        first, last = self._first, self._last
        assert first is not None and last is not None
        self._first = self._last = None
        returns = {"pretrain_reward": first.episode_return.mean(1), "joint_reward": last.episode_return.mean(1)}
        values = returns | {"diverged": last.diverged} | dict(zip(self._shares, last.share.T, strict=True))
        rows = [
            {"group": g, "task": task, **{name: x[g].item() for name, x in values.items()}, **losses}
            for g, task in enumerate(tasks)
        ]
        means, of_tasks = means_of(rows, (*returns, *self._shares)), means_by_task(rows, returns)
        charts = {"trained_reward": means.pop("joint_reward"), "untrained_reward": means.pop("pretrain_reward")}
        summary = f"joint reward {charts['trained_reward']:.2f}"
        sections = {"charts": charts, "training": means, "losses": losses, "tasks": of_tasks}
        self._end_outer_iteration(i, rows, summary, of_tasks, **sections)


def make_optimizers(agent: OptionCritic, cfg: OptionCriticConfig) -> tuple[Adam, Adam]:
    return Adam(agent.options, cfg.lr), Adam(agent.critic, cfg.lr_critic)


def reset_part(agent: OptionCritic, streams: Streams, i: int, part: str) -> None:
    """Draw new parameters of the "options" or the "critic", those of each block with its group's stream."""
    networks, members_per_block = (agent.options, agent.K) if part == "options" else (agent.critic, 1)
    rngs = streams(i, f"option-critic: {part}")[: networks.n // members_per_block]
    networks.reset([rng for rng in rngs for _ in range(members_per_block)])


def begin_task(
    agent: OptionCritic, optimizers: Sequence[Adam], streams: Streams, i: int, cfg: OptionCriticConfig
) -> None:
    """Draw new parameters of the parts that tasks do not share, and forget the moments of their optimisers."""
    for part, optimizer in zip(("options", "critic"), optimizers, strict=True):
        if part in cfg.new_parts:
            reset_part(agent, streams, i, part)
            optimizer.state.clear()


def init_normaliser(env: VectorTasks, agent: OptionCritic, streams: Streams, cfg: OptionCriticConfig) -> int:
    """Give the normaliser its first statistics, from a rollout without learning. Returns the env steps taken."""
    if not cfg.normalise:
        return 0
    outcome, obs = play_options(env, agent, streams(0, "normaliser"), cfg.settings)
    agent.normaliser.update(obs)
    return outcome.steps


def learn(
    env: VectorTasks,
    agent: OptionCritic,
    optimizers: Sequence[Adam],
    rngs: Sequence[np.random.Generator],
    cfg: OptionCriticConfig,
) -> tuple[Outcome, Tensor, dict[str, float]]:
    """Play a rollout and learn within it. Returns what `play_options` returns, and the mean `Losses`."""
    means: list[Tensor] = []

    def step(steps: OptionSteps) -> None:
        means.append(update_options(agent, optimizers, steps, cfg.settings))

    outcome, obs = play_options(env, agent, rngs, cfg.settings, step)
    for networks, optimizer in zip((agent.options, agent.critic), optimizers, strict=True):
        optimizer.check_finite(networks.name)
    return outcome, obs, dict(zip(Losses._fields, torch.stack(means).mean(0).tolist(), strict=True))


def train(
    cfg: OptionCriticConfig,
    env: VectorTasks,
    agent: OptionCritic,
    optimizers: Sequence[Adam],
    streams: Streams,
    log: OptionCriticLog,
    start: int = 0,
) -> None:
    """The outer iterations from `start` on."""
    for i in range(start, cfg.tasks):
        tasks = balanced_tasks(env, streams, i, cfg.groups)
        env.set_task(tasks)
        if i:
            begin_task(agent, optimizers, streams, i, cfg)
        else:
            log.env_steps += init_normaliser(env, agent, streams, cfg)
        losses: dict[str, float] = {}
        for j in range(cfg.rollouts):
            outcome, obs, losses = learn(env, agent, optimizers, streams(i, f"option-critic: rollout {j}"), cfg)
            agent.normaliser.update(obs)
            log.training_iteration_done(i, outcome)
        log.outer_iteration_done(i, tasks, losses)


class OptionCriticLearner:
    """Fine-tunes what the tasks of an option-critic run shared, one copy per learner (see `meta_test.Learner`).

    It learns within each rollout, so without evaluation episodes the returns are those of a learning agent.
    """

    def __init__(
        self,
        data: dict[str, Any],
        cfg: OptionCriticConfig,
        env: VectorTasks,
        learners: int,
        settings: AdaptationSettings,
    ) -> None:
        self._agent, self._settings = cfg.build(env), settings
        checkpoint.restore(data | {"config": cfg}, **self._agent._asdict())
        self.cfg = dataclasses.replace(cfg, N=settings.N or cfg.N, lr_critic=settings.master_lr or cfg.lr_critic)
        self.slots = self.cfg.N + settings.eval_episodes
        self.env_steps = cfg.T * self.slots * (settings.updates + 1)

    def learn(self, tasks: list[Task], chunk: range, pool: EnvPool) -> tuple[np.ndarray, list[Outcome]]:
        cfg, settings, streams = self.cfg, self._settings, Streams(self._settings.seed, chunk)
        agent = self._agent.copies(len(tasks))
        optimizers = make_optimizers(agent, cfg)
        env = pool.env(cfg.N * len(tasks), tasks)
        begin_task(agent, optimizers, streams, 0, cfg)
        from_scratch = cfg.shared == "nothing"
        if from_scratch:
            agent.normaliser.load_state_dict(Normaliser(len(agent.normaliser.mean)).state_dict())
            init_normaliser(env, agent, streams, cfg)
        outcomes, env_steps = [], [0]
        for i in range(settings.updates + 1):
            evaluated = None
            if settings.eval_episodes:
                eval_env = pool.env(settings.eval_episodes * len(tasks), tasks, "evaluate")
                evaluated, _ = play_options(eval_env, agent, streams(i, "evaluate: look"), cfg.settings)
            outcome, obs, _ = learn(env, agent, optimizers, streams(i, "evaluate: option-critic"), cfg)
            outcomes.append(evaluated or outcome)
            env_steps.append(env_steps[-1] + outcome.steps)
            if from_scratch:
                agent.normaliser.update(obs)
            pool.advance(len(tasks) * cfg.T * self.slots)
        return np.array(env_steps[:-1]), outcomes


def main() -> None:
    if parallel.SIZE > 1:
        raise UserError("option-critic learns in one process; start it without torchrun")
    run = Run(OptionCriticConfig)
    cfg, streams = run.cfg, Streams(run.cfg.seed, range(run.cfg.groups))
    env = make_env(cfg, cfg.groups * cfg.N)
    agent = cfg.build(env)
    optimizers = make_optimizers(agent, cfg)
    for part in ("options", "critic"):
        reset_part(agent, streams, 0, part)
    saved = {"options_optimizer": optimizers[0], "critic_optimizer": optimizers[1]}
    with run.training(OptionCriticLog, **agent._asdict(), **saved, **env.components) as log:
        train(cfg, env, agent, optimizers, streams, log, run.progress["iteration"])
        run.finish()
