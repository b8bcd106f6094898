"""RL² (Duan et al. 2016), the paper's recurrent baseline: it learns a task in its hidden state, by playing on."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
import torch
from torch import nn

from mlsh import parallel
from mlsh.envs import find_preset, make_env
from mlsh.envs.pool import Stage
from mlsh.errors import UserError, run_command
from mlsh.meta_test import LEARNERS
from mlsh.models import RecurrentPolicy
from mlsh.play import check_finite
from mlsh.ppo import Samples, figures, named, samples_of, surrogate, total_loss
from mlsh.runs import checkpoint
from mlsh.runs.log import RL2Logger
from mlsh.runs.run import Run
from mlsh.sampling import Streams, balanced_tasks
from mlsh.settings import Count, CountOrNone, Finite, Fraction, NotNegative, Positive, RunSettings, short


@dataclass
class RL2Config(RunSettings):
    """Train RL², a recurrent policy over trials of several episodes of a task.

    The defaults are for MovementBandits, but for -T, which is the environment's own limit.
    """

    kind: ClassVar[str] = "rl2"
    length: ClassVar[str] = "iterations"

    seed: CountOrNone = 0
    """Seed of everything random."""
    N: Annotated[Count, short("-N")] = 100
    """Trials a rollout; each draws a task."""
    episodes: Count = 4
    """Episodes in a trial."""
    iterations: Count = 250
    """Rollouts, with an update after each."""
    T: Annotated[Count, short("-T")] = 50
    """Horizon: env steps after which an episode is truncated; by default the environment's own limit."""
    epochs: Annotated[Count, short("-K", "--K")] = 5
    """PPO epochs an iteration."""
    parts: Count = 4
    """Minibatches into which an epoch splits the trials."""
    lr: Positive = 1e-2
    """Adam's learning rate."""
    gamma: Fraction = 0.99
    """Discount γ of a step."""
    lam: Fraction = 0.95
    """λ of generalised advantage estimation, over the whole trial."""
    epsilon: Positive = 0.2
    """ε of PPO's clipped ratio."""
    c1: NotNegative = 0.5
    """Weight of the value loss."""
    c2: NotNegative = 0.01
    """Weight of the entropy bonus."""
    hidden: Count = 64
    """Units of the GRU."""
    log_std: Finite = 0.0
    """Initial log standard deviation of continuous actions."""
    reward_scale: Positive = 0.1
    """Factor on rewards inside the learner; reported returns are without it."""
    normalise: bool = True
    """Normalise observations by their running mean and variance, clipped to ±5; by default where train.py does."""

    @classmethod
    def defaults(cls, env):
        known = find_preset(env)
        return cls(env=env, **{name: known[name] for name in ("T", "normalise") if name in known})

    def validate(self):
        super().validate()
        if self.parts > self.N:
            raise UserError(f"--parts is {self.parts}: there are only {self.N} trials to split; use --parts {self.N}")

    @property
    def trial(self):
        """Keyword arguments of `play`."""
        return self.only("episodes", "T", "gamma", "lam", "reward_scale")

    @property
    def ppo(self):
        """Keyword arguments of `learn`."""
        return self.only("epochs", "parts", "epsilon", "c1", "c2")


def build(cfg, env):
    """The policy of an `RL2Config` for a batched environment, not yet `reset`."""
    obs_size = math.prod(env.single_observation_space.shape)
    settings = cfg.only("hidden", "log_std", "normalise")
    return RecurrentPolicy(obs_size, env.single_action_space, **settings).to(cfg.device)


class Trials(NamedTuple):
    """E trials, each of several episodes of one task, S steps in all. A step after an episode's end weighs 0."""

    obs: torch.Tensor  # [S, E, in], the policy's inputs
    action: torch.Tensor  # [S, E] or [S, E, A]
    log_prob: torch.Tensor  # [S, E]
    advantage: torch.Tensor  # [S, E]
    value_target: torch.Tensor  # [S, E]
    weight: torch.Tensor  # [S, E]
    episode_return: torch.Tensor  # [episodes, E], undiscounted, unscaled
    steps: int

    def observed(self, size):
        """What the environment showed of the first `size` inputs while episodes lived, for the normaliser."""
        return self.obs[self.weight > 0][:, :size]


@torch.no_grad()
def play(env, policy, rng, *, episodes, T, gamma, lam, reward_scale):
    """A trial in each of the env's E slots, on the tasks it has: the hidden state lives as long as the trial."""
    E, device = env.num_envs, env.device
    h, action, reward = None, None, torch.zeros(E, device=device)
    steps, rewards, returns = [], [], []
    with env.rollout_context():
        for _ in range(episodes):
            obs = env.reset(seed=int(rng.integers(2**63)))[0].flatten(1)  # images, too: the GRU sees vectors
            noise = torch.from_numpy(policy.noise(rng, T, E)).to(device)
            alive, begun = torch.ones(E, dtype=torch.bool, device=device), len(steps)
            for t in range(T):
                x = policy.input(obs, action, reward * reward_scale, float(t == 0))
                params, value, h = policy(x[None], h)
                action = policy.sample(params[0], noise[t])
                steps.append((x, action, policy.distribution(params[0]).log_prob(action), value[0], alive))
                new_obs, reward, terminated, truncated, _ = env.step(action)
                reward = torch.where(alive, reward, 0)
                rewards.append(reward)
                alive = alive & ~terminated & ~truncated
                obs = torch.where(alive[:, None], new_obs.flatten(1), obs)
                if not alive.any():
                    break
            returns.append(torch.stack(rewards[begun:]).sum(0))
    x, action, log_prob, value, alive = (torch.stack(field) for field in zip(*steps, strict=True))
    reward = torch.stack(rewards)
    check_finite(env, reward, x)
    advantage = torch.zeros_like(reward)
    last = next_value = torch.zeros(E, device=device)  # a trial ends for good; an episode does not
    for s in reversed(range(len(reward))):  # GAE over the steps in which the episode lives
        ahead = reward[s] * reward_scale + gamma * (next_value + lam * last) - value[s]
        last, next_value = torch.where(alive[s], ahead, last), torch.where(alive[s], value[s], next_value)
        advantage[s] = last
    weight, returns = alive.float() / alive.sum(), torch.stack(returns)
    return Trials(x, action, log_prob, advantage, value + advantage, weight, returns, int(alive.sum()))


def learn(policy, optimizer, trials, rng, *, parts, epochs, epsilon, c1, c2):
    """PPO as `ppo.update`, over whole trials: `epochs` passes in `parts` minibatches, through time from the start.

    Returns `LOSSES` over all trials after the update, a dict of [1] tensors.
    """
    mean = (trials.advantage * trials.weight).sum()
    std = ((trials.advantage - mean).square() * trials.weight).sum().sqrt()
    trials = trials._replace(advantage=(trials.advantage - mean) / (std + 1e-8))
    for _ in range(epochs):
        for part in np.array_split(rng.permutation(trials.weight.shape[1]), parts):
            samples = Samples(*(getattr(trials, name)[:, part] for name in Samples._fields))
            params, value, _ = policy(samples.obs)
            new = policy.distribution(params)
            loss = total_loss(surrogate(new, value, samples, epsilon), new, c1, c2)
            optimizer.zero_grad()
            (loss * trials.weight[:, part]).sum().div(trials.weight[:, part].sum()).backward()
            nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
            optimizer.step()
    if not all(p.isfinite().all() for p in policy.parameters()):
        raise FloatingPointError("the policy is not finite after an update")
    of_steps = figures(policy, samples_of(trials, slice(None)), trials.weight.double(), epsilon)  # [8, S]
    return named(of_steps.sum(1, keepdim=True))


def train(cfg, env, policy, optimizer, streams, log, start=0):
    """The iterations from `start` on."""
    if cfg.normalise and not start:
        env.set_task(balanced_tasks(env, streams, 0, cfg.N))
        trials = play(env, policy, streams.of(0, "normaliser"), **cfg.trial)
        policy.normaliser.update(trials.observed(policy.obs_size))
        log.env_steps += trials.steps
    for i in range(start, cfg.iterations):
        tasks = balanced_tasks(env, streams, i, cfg.N)
        env.set_task(tasks)
        rng = streams.of(i, "rl2")
        trials = play(env, policy, rng, **cfg.trial)
        stats = learn(policy, optimizer, trials, rng, **cfg.ppo)
        if cfg.normalise:
            policy.normaliser.update(trials.observed(policy.obs_size))
        log.iteration_done(i, tasks, trials, stats)


def play_on(data, cfg, env, tasks, ev):
    """As `adapt.learn_anew`, of a checkpoint's policy: it learns by playing on, an episode in place of an update."""
    policy = build(cfg, env)
    checkpoint.restore(data | {"config": cfg}, policy=policy)
    trials_a_seed = ev.N or 10
    blocks, returns, steps = [task for task in tasks for _ in range(ev.seeds)], [], 0
    with Stage(cfg, "evaluate", len(blocks) * trials_a_seed * cfg.episodes * cfg.T) as stage:
        for some in stage.parts(len(blocks), trials_a_seed):
            env = stage.env(trials_a_seed * len(some), [blocks[j] for j in some])
            trials = play(env, policy, Streams(ev.seed, ()).of(0, "evaluate: rl2", some[0]), **cfg.trial)
            stage.played(env.num_envs * cfg.episodes * cfg.T)
            returns.append(trials.episode_return.view(cfg.episodes, len(some), trials_a_seed).mean(-1))
            steps += trials.steps
    steps /= len(blocks) * trials_a_seed * cfg.episodes
    returns = torch.cat(returns, 1).view(cfg.episodes, len(tasks), ev.seeds)
    return np.arange(cfg.episodes) * steps, {"return": returns.numpy(force=True)}


LEARNERS[RL2Config] = play_on


def main():
    if parallel.SIZE > 1:
        raise UserError("RL² learns in one process; start it without torchrun")
    run = Run(RL2Config)
    cfg, streams = run.cfg, Streams(run.cfg.seed, range(run.cfg.N))
    env = make_env(cfg, cfg.N)
    policy = build(cfg, env)
    policy.reset(streams.of(0, "rl2: weights"))
    optimizer = torch.optim.Adam(policy.parameters(), cfg.lr, eps=1e-5)
    with run.alive(RL2Logger, policy=policy, optimizer=optimizer) as log:
        train(cfg, env, policy, optimizer, streams, log, run.progress["iteration"])
        run.finish()


if __name__ == "__main__":
    run_command(main)
