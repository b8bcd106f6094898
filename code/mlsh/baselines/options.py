"""Options that are learned (Bacon, Harb and Precup 2017): how they play, their objective, and a gradient step."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Discrete
from torch import Tensor

from mlsh.envs.base import VectorTasks
from mlsh.models import ActorCritic, HasSpaces
from mlsh.normaliser import Normaliser
from mlsh.optim import Adam
from mlsh.outcome import Outcome
from mlsh.ppo import gae
from mlsh.slots import Actor, Slots, Transition, draw_seeds, play_rollout


@dataclass(frozen=True)
class OptionSettings:
    """How options play and learn."""

    T: int  # env steps per slot and rollout
    n_steps: int  # env steps between two gradient steps, and the largest number of rewards in a target
    gamma: float
    lam: float  # λ with which targets of 1 to n_steps rewards are mixed
    explore: float  # ε of the policy over options
    margin: float  # ξ, the termination regulariser
    entropy_coef: float
    reward_scale: float


class OptionCritic(NamedTuple):
    """The agent: sets of K options, the values of options, and the normaliser before them all.

    The E slots fall into equal blocks of neighbours, one per set of options, and likewise one per critic. There may be
    a single set, or a single critic, for all slots. Below, L is any number of time steps.
    """

    options: ActorCritic  # K members per set: intra-option policies π; the value is the logit of the termination β
    critic: ActorCritic  # its params are the option values Q(s, ·), [..., K]; its value network is not used
    normaliser: Normaliser

    @classmethod
    def build(
        cls, env: HasSpaces, K: int, sets: int, critics: int, hidden: int, log_std: float, normalise: bool, device: str
    ) -> "OptionCritic":
        """The agent for a batched environment. All parameters are zero: reset both networks."""
        obs_size = math.prod(env.single_observation_space.shape)
        networks: dict[str, Any] = {"hidden": hidden, "log_std": log_std}
        options = ActorCritic(sets * K, obs_size, env.single_action_space, name="option", **networks)
        critic = ActorCritic(critics, obs_size, Discrete(K), name="critic", **networks)
        return cls(options.to(device), critic.to(device), Normaliser(obs_size, normalise).to(device))

    @property
    def K(self) -> int:
        return self.critic.action_size

    def copies(self, n: int) -> "OptionCritic":
        """A new agent with n sets of options and n critics, all copies of the first, and a copy of the normaliser."""
        options, critic = self.options.copies_of([*range(self.K)] * n), self.critic.copies_of([0] * n)
        return OptionCritic(options, critic, self.normaliser.copy())

    def policy(self, x: Tensor, z: Tensor) -> Tensor:
        """Params [L, E, A or 2A] of the options z [L, E] at normalised observations [L, E, obs]."""
        return self._of_options(self.options.params, x, z)

    def termination(self, x: Tensor, z: Tensor) -> Tensor:
        """β [L, E], the probability that the options z [L, E] terminate on arriving at x [L, E, obs]."""
        return self._of_options(self.options.value, x, z).sigmoid()

    def values(self, x: Tensor) -> Tensor:
        """Q(s, ·), [L, E, K], at x [L, E, obs]."""
        return by_time(self.critic.params(by_block(self.critic.n, x)), len(x))

    def choose(self, x: Tensor, z: Tensor, begins: Tensor, uniform: Tensor, explore: float) -> Tensor:
        """The option of each slot, [E]. It stays the current one, z [E], unless the episode begins or z terminates at
        the observation x [E, obs]; then it is chosen ε-greedily.

        `uniform` [E, 3] holds random numbers: whether z terminates, whether to explore, and which option then.
        """
        terminates, explores, which = uniform.unbind(-1)
        random = (which * self.K).long()
        new = torch.where(explores < explore, random, self.values(x[None])[0].argmax(-1))
        return torch.where(begins | (terminates < self.termination(x[None], z[None])[0]), new, z)

    def _of_options(self, head: Callable[[Tensor], Tensor], x: Tensor, z: Tensor) -> Tensor:
        K, L, sets = self.K, len(x), self.options.n // self.K
        x, z = by_block(sets, x), by_block(sets, z)
        out = head(x[:, None].expand(-1, K, -1, -1).flatten(0, 1)).unflatten(0, (sets, K))  # [sets, K, L·E/sets, …]
        which = torch.arange(sets, device=z.device)[:, None], z, torch.arange(z.shape[1], device=z.device)
        return by_time(out[which], L)


def by_block(n: int, x: Tensor) -> Tensor:
    """[L, E, …] -> [n, L·E/n, …], with one row per block of neighbouring slots."""
    return x.unflatten(1, (n, -1)).transpose(0, 1).flatten(1, 2)


def by_time(x: Tensor, L: int) -> Tensor:
    """The inverse of `by_block`: [n, L·E/n, …] -> [L, E, …]."""
    return x.unflatten(1, (L, -1)).transpose(0, 1).flatten(1, 2)


class OptionSteps(NamedTuple):
    """L consecutive env steps of E slots, [L, E, …]."""

    obs: Tensor  # [L, E, obs]
    z: Tensor  # [L, E], the option that acted
    action: Tensor  # [L, E] or [L, E, A]
    reward: Tensor  # [L, E]
    following: Tensor  # [L, E, obs], what the step led to; `obs` again where the episode terminated
    terminated: Tensor  # [L, E]
    truncated: Tensor  # [L, E]


class OptionActor(Actor):
    """Plays an agent's options. It passes the steps to `learn` after every `n_steps` steps and at the rollout's end."""

    def __init__(
        self,
        agent: OptionCritic,
        rngs: Sequence[np.random.Generator],
        E: int,
        settings: OptionSettings,
        learn: Callable[[OptionSteps], None] | None,
    ) -> None:
        self._agent, self._settings, self._learn = agent, settings, learn
        T, N, device = settings.T, E // len(rngs), agent.options.device
        drawn = [(agent.options.noise(rng, T, N), rng.random((T, N, 3), np.float32)) for rng in rngs]
        noise, uniform = (np.concatenate(x, 1) for x in zip(*drawn, strict=True))
        self._noise, self._uniform = torch.from_numpy(noise).to(device), torch.from_numpy(uniform).to(device)
        self._normalise = agent.normaliser.frozen()
        self._z = torch.zeros(E, dtype=torch.long, device=device)
        self.active: list[Tensor] = []  # z at each step
        self._pending: list[tuple[Tensor, ...]] = []  # steps that were not passed on yet

    def act(self, slots: Slots) -> Tensor:
        obs, begins = self._normalise(slots.obs), slots.begun == slots.t
        self._z = self._agent.choose(obs, self._z, begins, self._uniform[slots.t], self._settings.explore)
        self.active.append(self._z)
        params = self._agent.policy(obs[None], self._z[None])[0]
        return self._agent.options.sample(params, self._noise[slots.t])

    def observe(self, transition: Transition) -> None:
        if self._learn is None:
            return
        obs, action, reward, following, terminated, truncated, _ = transition
        self._pending.append((obs, self._z, action, reward, following, terminated, truncated))
        if len(self.active) == self._settings.T or len(self._pending) == self._settings.n_steps:
            self._learn(OptionSteps(*(torch.stack(x) for x in zip(*self._pending, strict=True))))
            self._pending = []


def play_options(
    env: VectorTasks,
    agent: OptionCritic,
    rngs: Sequence[np.random.Generator],
    settings: OptionSettings,
    learn: Callable[[OptionSteps], None] | None = None,
) -> tuple[Outcome, Tensor]:
    """Play a rollout. Returns its `Outcome` and all observations [T·E, obs].

    `rngs`: one generator per group. During the rollout, `learn` is called
    repeatedly, each time with the steps since its last call.
    """
    seeds = draw_seeds(rngs)
    actor = OptionActor(agent, rngs, env.num_envs, settings, learn)
    with env.rollout_context():
        record = play_rollout(env, actor, seeds, settings.T)
    return Outcome.of(record, torch.stack(actor.active), len(rngs), agent.K), record.obs[:-1].flatten(0, 1)


class Losses(NamedTuple):
    """What is minimised at each step, and how often options would terminate, [L, E]."""

    policy_loss: Tensor
    termination_loss: Tensor
    value_loss: Tensor
    entropy: Tensor
    termination: Tensor  # β of the active options where the steps led


def objective(agent: OptionCritic, steps: OptionSteps, settings: OptionSettings) -> Losses:
    """The `Losses` of consecutive steps, by the theorems of Bacon, Harb and Precup.

    After every step follows the value upon arrival U(ω, s') = (1 − β) Q(s', ω) + β V(s'). V is the mean of Q under the
    ε-greedy policy over options. With λ = 0 this is the one-step target of intra-option Q-learning, except for V.
    """
    x, following, z = agent.normaliser(steps.obs), agent.normaliser(steps.following), steps.z[..., None]
    new = agent.options.distribution(agent.policy(x, steps.z))
    value, beta = agent.values(x).gather(-1, z)[..., 0], agent.termination(following, steps.z)
    with torch.no_grad():
        next_values = agent.values(following)
        stay = next_values.gather(-1, z)[..., 0]
        leave = torch.lerp(next_values.max(-1).values, next_values.mean(-1), settings.explore)
        arrival = torch.where(steps.terminated, 0, torch.lerp(stay, leave, beta))
        goes_on = ~(steps.terminated | steps.truncated)
        goes_on[-1] = False
        advantage = gae(steps.reward * settings.reward_scale, value, arrival, goes_on, settings.gamma, settings.lam)
        target = value + advantage
        gain_of_staying = torch.where(steps.terminated, 0, stay - leave + settings.margin)
    policy_loss = -new.log_prob(steps.action) * advantage
    return Losses(policy_loss, beta * gain_of_staying, (value - target).square(), new.entropy(), beta.detach())


def update_options(
    agent: OptionCritic, optimizers: Sequence[Adam], steps: OptionSteps, settings: OptionSettings
) -> Tensor:
    """A gradient step from consecutive steps; each set of options, and each critic, learns from its own slots' mean.

    Returns the means of the `Losses`, [5].
    """
    with torch.enable_grad():
        losses = objective(agent, steps, settings)
        of_options = losses.policy_loss + losses.termination_loss - settings.entropy_coef * losses.entropy
        per_set = by_block(agent.options.n // agent.K, of_options).mean(1).sum()
        per_critic = by_block(agent.critic.n, losses.value_loss).mean(1).sum()
        for optimizer in optimizers:
            optimizer.zero_grad()
        (per_set + per_critic).backward()
    for optimizer in optimizers:
        optimizer.step()
    return torch.stack([x.detach().mean() for x in losses])
