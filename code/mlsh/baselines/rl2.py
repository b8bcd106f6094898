"""RL² (Duan et al. 2016), the paper's recurrent baseline: it learns a task in its hidden state, by playing on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from gymnasium import Space
from torch import Tensor, nn

from mlsh import parallel
from mlsh.envs import find_preset, make_env
from mlsh.envs.base import VectorTasks
from mlsh.envs.pool import EnvPool
from mlsh.errors import UserError
from mlsh.models import Policy
from mlsh.normaliser import Normaliser
from mlsh.optim import all_finite
from mlsh.outcome import Outcome
from mlsh.ppo import PPOSettings, Samples, figure_sums, figures_of, gae, samples_of, surrogate, total_loss
from mlsh.runs import checkpoint
from mlsh.runs.log import LOSSES, Log, means_by_task
from mlsh.runs.run import Run
from mlsh.sampling import Streams, Task, balanced_tasks
from mlsh.settings import (
    COMMON_GROUPS,
    AdaptationSettings,
    ClippedSettings,
    Count,
    CountOrZero,
    NonNegative,
    Positive,
    RunSettings,
    Settings,
    TaskSettings,
    alias,
)
from mlsh.slots import Actor, Slots, Transition, draw_seeds, play_episodes


@dataclass
class TrialSettings(Settings):
    N: Annotated[Count, alias("-N")] = 100
    """Trials per rollout. Each draws a task."""
    episodes: Count = 4
    """Episodes per trial."""
    iterations: Count = 250
    """Rollouts, with an update after each."""


@dataclass
class RL2PPOSettings(ClippedSettings):
    lr: Positive = 1e-2
    """Adam's learning rate."""
    minibatches: Count = 4
    """Minibatches per epoch; each holds whole trials."""
    entropy_coef: NonNegative = 0.01
    """Entropy coefficient."""


@dataclass
class RL2Config(TrialSettings, RL2PPOSettings, RunSettings):
    """Train RL², a recurrent policy that plays trials of several episodes on one task.

    Examples:
        python train_rl2.py
        python train_rl2.py --env KeyDoor-v0 --iterations 500 --out runs/rl2

    The defaults are for MovementBandits. -T and --normalise come from the environment that --env names.
    """

    seed: CountOrZero = 0
    epochs: Annotated[Count, alias("-K")] = 5
    reward_scale: Positive = 0.1

    KIND: ClassVar[str] = "rl2"
    LENGTH: ClassVar[str] = "iterations"
    GROUPS: ClassVar[dict[str, type[Settings]]] = {
        "Task": TaskSettings,
        "Trials": TrialSettings,
        "PPO": RL2PPOSettings,
        **COMMON_GROUPS,
    }
    RENAMED: ClassVar[dict[str, str]] = {
        "K": "epochs",
        "parts": "minibatches",
        "epsilon": "clip",
        "c1": "value_coef",
        "c2": "entropy_coef",
    }

    @classmethod
    def defaults(cls, env: str) -> Self:
        known = find_preset(env)
        return cls(env=env, **{name: known[name] for name in ("T", "normalise") if name in known})

    def episodes_at_once(self, processes: int) -> int:
        return self.N

    def check(self) -> None:
        super().check()
        if self.minibatches > self.N:
            raise UserError(
                f"--minibatches is {self.minibatches}: there are only {self.N} trials to split; "
                f"use --minibatches {self.N}"
            )

    @property
    def env_steps(self) -> int:
        return self.iterations * self.N * self.episodes * self.T

    @property
    def ppo(self) -> PPOSettings:
        return PPOSettings(**self.only("minibatches", "epochs", "clip", "value_coef", "entropy_coef"))

    def build(self, env: VectorTasks) -> "RecurrentPolicy":
        """The policy for a batched environment; call `reset`."""
        obs_size = math.prod(env.single_observation_space.shape or ())
        networks = self.only("hidden", "log_std", "normalise")
        return RecurrentPolicy(obs_size, env.single_action_space, **networks).to(self.device)


class RecurrentPolicy(Policy):
    """A GRU that sees observation, last action, last reward and whether an episode begins, but not the task."""

    def __init__(
        self, obs_size: int, action_space: Space[Any], hidden: int = 64, log_std: float = 0.0, normalise: bool = False
    ) -> None:
        super().__init__(action_space)
        self.normaliser = Normaliser(obs_size) if normalise else nn.Identity()
        self.obs_size = obs_size
        self.gru = nn.GRU(obs_size + self.action_size + 2, hidden)
        self.heads = nn.Linear(hidden, self.action_size + 1)
        if not self.discrete:
            self.log_std = nn.Parameter(torch.full((self.action_size,), log_std))

    @torch.no_grad()
    def reset(self, rng: np.random.Generator) -> None:
        """Draw new parameters: orthogonal weights, zero biases."""
        generator = torch.Generator().manual_seed(int(rng.integers(2**32)))
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                gain = 0.01 if name == "heads.weight" else 1.0
                parameter.copy_(nn.init.orthogonal_(torch.empty(parameter.shape), gain, generator=generator))
            elif name != "log_std":
                parameter.zero_()

    def forward(self, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Params [S, E, A or 2A], value [S, E] and hidden state [1, E, hidden] after inputs x [S, E, …]."""
        x = torch.cat((self.normaliser(x[..., : self.obs_size]), x[..., self.obs_size :]), -1)
        x, hidden = self.gru(x, h)
        params, value = self.heads(x).split((self.action_size, 1), -1)
        if not self.discrete:
            params = torch.cat((params, self.log_std.expand_as(params)), -1)
        return params, value[..., 0], hidden

    def input(self, obs: Tensor, action: Tensor | None, reward: Tensor, begins: bool) -> Tensor:
        """What the GRU sees, [E, …]; `action` is None before the first."""
        if action is None:
            action = torch.zeros(len(obs), self.action_size, device=obs.device)
        elif self.discrete:
            action = nn.functional.one_hot(action, self.action_size)
        return torch.cat((obs, action, reward[:, None], torch.full_like(reward, float(begins))[:, None]), 1)


class TrialActor(Actor):
    """Plays trials of several episodes. The hidden state lives as long as the trial.

    Once a slot's episode has ended, its hidden state, last action and last reward stay as they are until the next
    episode begins. So a trial does not depend on how long the episodes of the other slots are.
    """

    def __init__(self, policy: RecurrentPolicy, reward_scale: float) -> None:
        self._policy, self._scale = policy, reward_scale
        self._hidden: Tensor | None = None
        self._action: Tensor | None = None
        self._reward = torch.zeros(0)
        self.steps: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # input, action, log probability and value

    def begin_episode(self, noise: Tensor) -> None:
        """Use `noise` [T, E, A] from here on."""
        self._noise = noise
        if not len(self._reward):
            self._reward = torch.zeros(noise.shape[1], device=noise.device)

    def act(self, slots: Slots) -> Tensor:
        x = self._policy.input(slots.obs, self._action, self._reward * self._scale, slots.t == 0)
        params, value, hidden = self._policy(x[None], self._hidden)
        action = self._policy.sample(params[0], self._noise[slots.t])
        self.steps.append((x, action, self._policy.distribution(params[0]).log_prob(action), value[0]))
        if self._hidden is not None and self._action is not None:
            hidden = torch.where(slots.alive[:, None], hidden, self._hidden)
            self._action = torch.where(slots.alive.view(-1, *[1] * (action.dim() - 1)), action, self._action)
        else:
            self._action = action
        self._hidden = hidden
        return action

    def observe(self, transition: Transition) -> None:
        self._reward = torch.where(transition.alive, transition.reward, self._reward)


class Trials(NamedTuple):
    """E trials of several episodes of one task each. The env steps of a trial follow each other without gaps.

    S is the number of steps of the longest trial. The others are padded with steps of weight 0.
    """

    obs: Tensor  # [S, E, in], the policy's inputs
    action: Tensor  # [S, E] or [S, E, A]
    log_prob: Tensor  # [S, E]
    advantage: Tensor  # [S, E]
    value_target: Tensor  # [S, E]
    weight: Tensor  # [S, E]; they sum to 1
    episode_return: Tensor  # [episodes, E], undiscounted and unscaled
    steps: int  # env steps

    def observed(self, size: int) -> Tensor:
        """The first `size` inputs of all env steps, [steps, size], for the normaliser."""
        return self.obs[self.weight > 0][:, :size]


@torch.no_grad()
def play_trials(env: VectorTasks, policy: RecurrentPolicy, rng: np.random.Generator, cfg: RL2Config) -> Trials:
    """Play a trial in each of the env's E slots, on the tasks that it has."""
    actor = TrialActor(policy, cfg.reward_scale)
    records = []
    with env.rollout_context():
        for _ in range(cfg.episodes):
            seeds = draw_seeds([rng])
            actor.begin_episode(torch.from_numpy(policy.noise(rng, cfg.T, env.num_envs)).to(env.device))
            records.append(play_episodes(env, actor, seeds, cfg.T))
    inputs, action, log_prob, value = (torch.stack(x) for x in zip(*actor.steps, strict=True))
    reward, alive = (torch.cat([getattr(record, name) for record in records]) for name in ("reward", "alive"))
    if not alive.all():  # the steps of each trial first, in their order, then the padding
        order = (~alive).to(torch.uint8).argsort(dim=0, stable=True)[: alive.sum(0).max()]
        columns = torch.arange(env.num_envs, device=alive.device)
        fields = (inputs, action, log_prob, value, reward, alive)
        inputs, action, log_prob, value, reward, alive = (x[order, columns] for x in fields)
    # Credit crosses the episodes of a trial; nothing follows its end.
    goes_on = torch.cat((alive[1:], torch.zeros_like(alive[:1])))
    following = torch.where(goes_on, torch.cat((value[1:], value[:1])), 0)
    advantage = gae(reward * cfg.reward_scale, value, following, goes_on, cfg.gamma, cfg.lam)
    returns = torch.stack([record.reward.sum(0) for record in records])
    weight, target = alive.float() / alive.sum(), value + advantage
    return Trials(inputs, action, log_prob, advantage, target, weight, returns, int(alive.sum()))


def learn(
    policy: RecurrentPolicy,
    optimizer: torch.optim.Optimizer,
    trials: Trials,
    rng: np.random.Generator,
    settings: PPOSettings,
) -> dict[str, Tensor]:
    """PPO as in `ppo.update`, over whole trials: the gradient goes back to the start of each trial.

    Returns `ppo.FIGURES` over all trials after the update, [1] each.
    """
    mean = (trials.advantage * trials.weight).sum()
    std = ((trials.advantage - mean).square() * trials.weight).sum().sqrt()
    trials = trials._replace(advantage=(trials.advantage - mean) / (std + 1e-8))
    for _ in range(settings.epochs):
        for minibatch in np.array_split(rng.permutation(trials.weight.shape[1]), settings.minibatches):
            samples = Samples(*(getattr(trials, name)[:, minibatch] for name in Samples._fields))
            params, value, _ = policy(samples.obs)
            new = policy.distribution(params)
            objective = surrogate(new, value, samples, settings.clip)
            loss = total_loss(objective, new, settings.value_coef, settings.entropy_coef)
            weight = trials.weight[:, minibatch]
            optimizer.zero_grad()
            (loss * weight).sum().div(weight.sum()).backward()
            nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
            optimizer.step()
    if not all_finite(policy):
        raise FloatingPointError("the policy is not finite after an update")
    samples = samples_of(trials, slice(None))
    with torch.no_grad():
        params, value, _ = policy(samples.obs)
        new = policy.distribution(params)
        sums = figure_sums(new, value, samples, trials.weight.double(), settings.clip)  # [8, S]
    return figures_of(sums.sum(1, keepdim=True))


class RL2Log(Log[RL2Config]):
    """The log of an RL² run: one row per iteration and task, with the return of each episode of its trials."""

    def __init__(self, run: Run[RL2Config]) -> None:
        self._episodes = [f"episode_{e}" for e in range(run.cfg.episodes)]
        columns = ["iteration", "task", "env_steps", "train_env_steps", "seconds", *self._episodes, *LOSSES]
        super().__init__(run, columns, {name: name.replace("_", " ") for name in self._episodes})

    def iteration_done(self, i: int, tasks: Sequence[Task], trials: Trials, figures: dict[str, Tensor]) -> None:
        """After iteration `i`, with the task of each trial and what `learn` returned."""
        losses = {name: x.item() for name, x in figures.items()}
        self.env_steps += trials.steps
        self.train_env_steps += trials.steps
        rows = []
        for task in {str(t): t for t in tasks}.values():
            returns = trials.episode_return[:, [t == task for t in tasks]].mean(1).tolist()
            rows.append({"task": task, **dict(zip(self._episodes, returns, strict=True)), **losses})
        of_tasks = means_by_task(rows, self._episodes)
        first, last = (trials.episode_return[e].mean().item() for e in (0, -1))
        charts = {"trained_reward": last, "untrained_reward": first}
        self._log_training_episodes(trials.episode_return.mean().item(), trials.steps / trials.episode_return.numel())
        self._advance_bar(f"iteration {i + 1}/{self.run.length}")
        sections = {"charts": charts, "losses": losses, "tasks": of_tasks}
        self._end_outer_iteration(i, rows, f"last episode {last:.2f}", of_tasks, **sections)


def train(
    cfg: RL2Config,
    env: VectorTasks,
    policy: RecurrentPolicy,
    optimizer: torch.optim.Optimizer,
    streams: Streams,
    log: RL2Log,
    start: int = 0,
) -> None:
    """The iterations from `start` on."""
    normaliser = policy.normaliser if isinstance(policy.normaliser, Normaliser) else None
    if normaliser and not start:
        env.set_task(balanced_tasks(env, streams, 0, cfg.N))
        trials = play_trials(env, policy, streams.of(0, "normaliser"), cfg)
        normaliser.update(trials.observed(policy.obs_size))
        log.env_steps += trials.steps
    for i in range(start, cfg.iterations):
        tasks = balanced_tasks(env, streams, i, cfg.N)
        env.set_task(tasks)
        rng = streams.of(i, "rl2")
        trials = play_trials(env, policy, rng, cfg)
        figures = learn(policy, optimizer, trials, rng, cfg.ppo)
        if normaliser:
            normaliser.update(trials.observed(policy.obs_size))
        log.iteration_done(i, tasks, trials, figures)


class RL2Learner:
    """Lets an RL² policy play on, with one episode instead of each update (see `meta_test.Learner`)."""

    def __init__(
        self, data: dict[str, Any], cfg: RL2Config, env: VectorTasks, learners: int, settings: AdaptationSettings
    ) -> None:
        self._policy, self._seed = cfg.build(env), settings.seed
        checkpoint.restore(data | {"config": cfg}, policy=self._policy)
        self.cfg = cfg
        self.slots = settings.N or 10
        self.env_steps = self.slots * cfg.episodes * cfg.T

    def learn(self, tasks: list[Task], chunk: range, pool: EnvPool) -> tuple[np.ndarray, list[Outcome]]:
        env = pool.env(self.slots * len(tasks), tasks)
        trials = play_trials(env, self._policy, Streams(self._seed, ()).of(0, "evaluate: rl2", chunk[0]), self.cfg)
        pool.advance(len(tasks) * self.env_steps)
        returns = trials.episode_return.view(self.cfg.episodes, len(tasks), self.slots)
        per_episode = trials.steps / (self.slots * self.cfg.episodes)  # of all these learners together
        return np.arange(self.cfg.episodes) * per_episode, [Outcome.of_returns(x) for x in returns]


def main() -> None:
    if parallel.SIZE > 1:
        raise UserError("RL² learns in one process; start it without torchrun")
    run = Run(RL2Config)
    cfg, streams = run.cfg, Streams(run.cfg.seed, range(run.cfg.N))
    env = make_env(cfg, cfg.N)
    policy = cfg.build(env)
    policy.reset(streams.of(0, "rl2: weights"))
    optimizer = torch.optim.Adam(policy.parameters(), cfg.lr, eps=1e-5)
    with run.training(RL2Log, policy=policy, optimizer=optimizer, **env.components) as log:
        train(cfg, env, policy, optimizer, streams, log, run.progress["iteration"])
        run.finish()
