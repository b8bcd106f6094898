"""Options that learn (Bacon, Harb and Precup 2017): how they play, their objective, and a gradient step by it."""

import copy
import math
from typing import NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Discrete

from mlsh.models import ActorCritic
from mlsh.normaliser import Normaliser
from mlsh.play import Played, Step, check_finite, stacked
from mlsh.ppo import gae
from mlsh.rollout import outcome


class OptionCritic(NamedTuple):
    """The agent: sets of K options, the values of options, the normaliser before them all.

    The E slots fall into equal blocks of neighbours, one a set of options, and so they do for the critics; of either
    there may be only one, for all slots. Below, L is any number of time steps.
    """

    options: ActorCritic  # K members a set: intra-option policies π, and as value the logit of their terminations β
    critic: ActorCritic  # its params are the option values Q(s, ·), [..., K]; its value part lies idle
    normaliser: Normaliser

    @classmethod
    def build(cls, cfg, env):
        """The agent of an `OptionCriticConfig` for a batched environment, all parameters zero: reset both networks."""
        obs_size, networks = math.prod(env.single_observation_space.shape), cfg.only("hidden", "log_std")
        sets, critics = (cfg.groups if part in cfg.anew else 1 for part in ("options", "critic"))
        options = ActorCritic(sets * cfg.num_options, obs_size, env.single_action_space, name="option", **networks)
        critic = ActorCritic(critics, obs_size, Discrete(cfg.num_options), name="critic", **networks)
        return cls(*(part.to(cfg.device) for part in (options, critic, Normaliser(obs_size, cfg.normalise))))

    @property
    def K(self):
        return self.critic.action_size

    def copies(self, n):
        """A new agent with n sets of options and n critics, each a copy of the first; the normaliser is a copy, too."""
        options, critic = self.options.only([*range(self.K)] * n), self.critic.only([0] * n)
        return OptionCritic(options, critic, copy.deepcopy(self.normaliser))

    def policy(self, x, z):
        """Params [L, E, A or 2A] of what the options z [L, E] do at normalised observations x [L, E, obs]."""
        return self._of(self.options.params, x, z)

    def termination(self, x, z):
        """β [L, E], the probability that the options z [L, E] terminate on coming to x [L, E, obs]."""
        return self._of(self.options.value, x, z).sigmoid()

    def values(self, x):
        """Q(s, ·), [L, E, K], at x [L, E, obs]."""
        return by_time(self.critic.params(by_block(self.critic.n, x)), len(x))

    def choose(self, x, z, begins, uniform, explore):
        """The options [E] at x [E, obs]: z [E], or ε-greedy ones where an episode begins or those terminate.

        `uniform` [E, 3]: random numbers: for terminating, for whether to explore, and for what then.
        """
        ends, strays, which = uniform.unbind(-1)
        random = (which * self.K).long()
        new = torch.where(strays < explore, random, self.values(x[None])[0].argmax(-1))
        return torch.where(begins | (ends < self.termination(x[None], z[None])[0]), new, z)

    def _of(self, head, x, z):
        K, L, sets = self.K, len(x), self.options.n // self.K
        x, z = by_block(sets, x), by_block(sets, z)
        out = head(x[:, None].expand(-1, K, -1, -1).flatten(0, 1)).unflatten(0, (sets, K))  # [sets, K, L·E/sets, …]
        which = torch.arange(sets, device=z.device)[:, None], z, torch.arange(z.shape[1], device=z.device)
        return by_time(out[which], L)


def by_block(n, x):
    """[L, E, …] -> [n, L·E/n, …]: what n blocks of neighbouring slots have, each its own."""
    return x.unflatten(1, (n, -1)).transpose(0, 1).flatten(1, 2)


def by_time(x, L):
    """The inverse of `by_block`: [n, L·E/n, …] -> [L, E, …]."""
    return x.unflatten(1, (L, -1)).transpose(0, 1).flatten(1, 2)


class Transition(NamedTuple):
    """An env step of E slots side by side; stacked, [L, E, …]."""

    obs: torch.Tensor  # [E, obs]
    z: torch.Tensor  # [E], the option under way
    action: torch.Tensor  # [E] or [E, A]
    reward: torch.Tensor  # [E]
    following: torch.Tensor  # [E, obs], what followed; where the episode terminated, `obs` again
    terminated: torch.Tensor  # [E]
    truncated: torch.Tensor  # [E]


class Losses(NamedTuple):
    """What is minimised, and how often options would terminate; step by step, [L, E]."""

    policy_loss: torch.Tensor
    termination_loss: torch.Tensor
    value_loss: torch.Tensor
    entropy: torch.Tensor
    termination: torch.Tensor  # β of the options on what followed


@torch.no_grad()
def play(env, agent, rngs, *, T, explore, n_steps=1, learn=None):
    """Play `T` steps in each slot, a slot whose episode ends beginning another; returns an `Outcome` and all
    observations [T·E, obs].

    `rngs`: one NumPy generator a group. `learn(transitions)` is called after every `n_steps` steps, and with the rest.
    """
    G, E = len(rngs), env.num_envs
    obs = env.reset(seed=[int(rng.integers(2**63)) for rng in rngs])[0].flatten(1)  # images, too
    drawn = [(agent.options.noise(rng, T, E // G), rng.random((T, E // G, 3), np.float32)) for rng in rngs]
    noise, uniform = (torch.from_numpy(np.concatenate(x, 1)).to(env.device) for x in zip(*drawn, strict=True))
    z = diverged = torch.zeros(E, dtype=torch.long, device=env.device)
    begins, alive, steps = torch.ones_like(z, dtype=torch.bool), torch.ones_like(z, dtype=torch.bool), []
    normalise = agent.normaliser.frozen()
    with env.rollout_context():
        for t in range(T):
            x = normalise(obs)
            z = agent.choose(x, z, begins, uniform[t], explore)
            action = agent.options.sample(agent.policy(x[None], z[None])[0], noise[t])
            new_obs, reward, terminated, truncated, info = env.step(action)
            following = torch.where(
                terminated[:, None], obs, new_obs.flatten(1)
            )  # what comes after a termination stays out
            steps.append(Transition(obs, z, action, reward, following, terminated, truncated))
            if learn and (t + 1 == T or (t + 1) % n_steps == 0):
                learn(stacked(steps[-(t % n_steps + 1) :]))
            if "diverged" in info:
                diverged = diverged + (info["diverged"] > 0)
            obs, begins = following, terminated | truncated
            if begins.any() and t + 1 < T:
                obs = env.reset(options={"reset_mask": begins})[0].flatten(1)
    steps = stacked(steps)
    check_finite(env, steps.reward, steps.following)
    lived = Step(steps.reward, steps.terminated, steps.truncated, alive.expand_as(steps.z))
    played = Played(lived, steps.obs, None, None, None, None, steps.z, (), {}, diverged)
    return outcome(played, G, agent.K), steps.obs.flatten(0, 1)


def objective(agent, steps, *, gamma, lam, explore, margin, reward_scale):
    """The `Losses` of consecutive `Transition`s [L, E], by the theorems of Bacon, Harb and Precup.

    The value upon arrival U(ω, s') = (1 − β) Q(s', ω) + β V(s') follows every step: V is the mean of Q under the
    ε-greedy policy over options. With λ = 0 this is intra-option Q-learning's target of one step, but for V.
    """
    x, following, z = agent.normaliser(steps.obs), agent.normaliser(steps.following), steps.z[..., None]
    new = agent.options.distribution(agent.policy(x, steps.z))
    value, beta = agent.values(x).gather(-1, z)[..., 0], agent.termination(following, steps.z)
    with torch.no_grad():
        then = agent.values(following)
        stay, leave = then.gather(-1, z)[..., 0], torch.lerp(then.max(-1).values, then.mean(-1), explore)
        arrival = torch.where(steps.terminated, 0, torch.lerp(stay, leave, beta))
        goes_on = ~(steps.terminated | steps.truncated)
        goes_on[-1] = False
        advantage = gae(steps.reward * reward_scale, value, arrival, goes_on, gamma, lam)
        target = value + advantage
        worth = torch.where(steps.terminated, 0, stay - leave + margin)  # of not terminating
    policy_loss = -new.log_prob(steps.action) * advantage
    return Losses(policy_loss, beta * worth, (value - target).square(), new.entropy(), beta.detach())


def update(agent, optimizers, steps, *, c2, **settings):
    """A gradient step by consecutive `Transition`s: each set of options, and each critic, by its own slots' mean.

    Returns the means of the `Losses`, [5]. `settings` as of `objective`.
    """
    with torch.enable_grad():
        losses = objective(agent, steps, **settings)
        of_options = losses.policy_loss + losses.termination_loss - c2 * losses.entropy
        blocks = ((of_options, agent.options.n // agent.K), (losses.value_loss, agent.critic.n))
        loss = sum(by_block(n, x).mean(1).sum() for x, n in blocks)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    return torch.stack([x.detach().mean() for x in losses])
