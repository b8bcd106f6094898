"""RL² (Duan et al. 2016), the paper's recurrent baseline: it learns a task in its hidden state, by playing on."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from mlsh.errors import NotFinite
from mlsh.models import Policy
from mlsh.rollout import leaving_the_cores


class RecurrentPolicy(Policy):
    """A GRU that sees observation, last action, last reward and whether an episode begins; it is nowhere told the task.

    `log_std` is the initial log standard deviation of continuous actions.
    """

    def __init__(self, obs_size, action_space, hidden=64, log_std=0.0):
        super().__init__(action_space)
        self.gru = nn.GRU(obs_size + self.action_size + 2, hidden)
        self.heads = nn.Linear(hidden, self.action_size + 1)
        if not self.discrete:
            self.log_std = nn.Parameter(torch.full((self.action_size,), log_std))

    @torch.no_grad()
    def reset(self, rng):
        """Draw all parameters anew with the NumPy generator `rng`: orthogonal weights, zero biases."""
        generator = torch.Generator().manual_seed(int(rng.integers(2**32)))
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                gain = 0.01 if name == "heads.weight" else 1.0
                parameter.copy_(nn.init.orthogonal_(torch.empty(parameter.shape), gain, generator=generator))
            elif name != "log_std":
                parameter.zero_()

    def forward(self, x, h=None):
        """Params [S, E, A or 2A], value [S, E] and hidden state [1, E, hidden] after inputs x [S, E, …]."""
        x, h = self.gru(x, h)
        params, value = self.heads(x).split((self.action_size, 1), -1)
        if not self.discrete:
            params = torch.cat((params, self.log_std.expand_as(params)), -1)
        return params, value[..., 0], h

    def input(self, obs, action, reward, begins):
        """What the GRU sees, [E, …]; `action` is None before the first."""
        if action is None:
            action = torch.zeros(len(obs), self.action_size, device=obs.device)
        elif self.discrete:
            action = nn.functional.one_hot(action, self.action_size)
        return torch.cat((obs, action, reward[:, None], torch.full_like(reward, begins)[:, None]), 1)


def build(cfg, env):
    """The policy of an `RL2Config` for a batched environment, not yet `reset`."""
    obs_size = math.prod(env.single_observation_space.shape)
    return RecurrentPolicy(obs_size, env.single_action_space, cfg.hidden, cfg.log_std).to(cfg.device)


class Trials(NamedTuple):
    """E trials, each of several episodes of one task, S steps in all. A step after an episode's end weighs 0."""

    x: torch.Tensor  # [S, E, in], the policy's inputs
    action: torch.Tensor  # [S, E] or [S, E, A]
    log_prob: torch.Tensor  # [S, E]
    advantage: torch.Tensor  # [S, E]
    value_target: torch.Tensor  # [S, E]
    weight: torch.Tensor  # [S, E]
    episode_return: torch.Tensor  # [episodes, E], undiscounted, unscaled
    steps: int


@leaving_the_cores
@torch.no_grad()
def play(env, policy, rng, *, episodes, T, gamma, lam, reward_scale):
    """A trial in each of the env's E slots, on the tasks it has: the hidden state lives as long as the trial."""
    E, device = env.num_envs, env.device
    h, action, reward = None, None, torch.zeros(E, device=device)
    steps, rewards = [], []
    for _ in range(episodes):
        obs, _ = env.reset(seed=int(rng.integers(2**63)))
        noise = torch.from_numpy(policy.noise(rng, T, E)).to(device)
        alive = torch.ones(E, dtype=torch.bool, device=device)
        for t in range(T):
            x = policy.input(obs, action, reward * reward_scale, float(t == 0))
            params, value, h = policy(x[None], h)
            action = policy.sample(params[0], noise[t])
            steps.append((x, action, policy.distribution(params[0]).log_prob(action), value[0], alive))
            new_obs, reward, terminated, truncated, _ = env.step(action)
            reward = torch.where(alive, reward, 0)
            rewards.append(reward)
            alive = alive & ~terminated & ~truncated
            obs = torch.where(alive[:, None], new_obs, obs)
    x, action, log_prob, value, alive = (torch.stack(field) for field in zip(*steps, strict=True))
    reward = torch.stack(rewards)
    for name, finite in (("a reward", reward), ("an observation", x)):
        if not finite.isfinite().all():
            raise NotFinite(f"the environment gave {name} that is not finite")
    advantage, last = torch.zeros_like(reward), torch.zeros(E, device=device)
    next_value = torch.zeros(E, device=device)  # a trial ends for good; an episode does not
    for s in reversed(range(len(reward))):  # GAE over the steps in which the episode lives
        ahead = reward[s] * reward_scale + gamma * (next_value + lam * last) - value[s]
        last, next_value = torch.where(alive[s], ahead, last), torch.where(alive[s], value[s], next_value)
        advantage[s] = last
    weight = alive.float() / alive.sum()
    returns = reward.view(episodes, T, E).sum(1)
    return Trials(x, action, log_prob, advantage, value + advantage, weight, returns, int(alive.sum()))


def learn(policy, optimizer, trials, rng, *, parts, epochs, epsilon, c1, c2):
    """PPO over whole trials: `epochs` passes in `parts` minibatches of trials, through time from their first step.

    Raises NotFinite if a parameter is not finite any more.
    """
    mean = (trials.advantage * trials.weight).sum()
    std = ((trials.advantage - mean).square() * trials.weight).sum().sqrt()
    trials = trials._replace(advantage=(trials.advantage - mean) / (std + 1e-8))
    E = trials.weight.shape[1]
    for _ in range(epochs):
        for part in np.array_split(rng.permutation(E), parts):
            x, action, log_prob, advantage, value_target, weight = (field[:, part] for field in trials[:6])
            params, value, _ = policy(x)
            new = policy.distribution(params)
            ratio = torch.exp(new.log_prob(action) - log_prob)
            loss = -torch.min(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage)
            loss = loss + c1 * (value - value_target).square() - c2 * new.entropy()
            optimizer.zero_grad()
            (loss * weight).sum().div(weight.sum()).backward()
            nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
            optimizer.step()
    if not all(p.isfinite().all() for p in policy.parameters()):
        raise NotFinite("the policy is not finite after an update")
