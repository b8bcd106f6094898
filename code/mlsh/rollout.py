"""Play whole episodes at two timescales and hand back one batch for the masters and one for the sub-policies."""

import functools
import zlib
from typing import NamedTuple

import numpy as np
import torch

from mlsh.errors import NotFinite
from mlsh.ppo import Batch, gae


def streams(seed, iteration, purpose, groups):
    """A NumPy generator for each group index in `groups`, a function of these four alone.

    So an iteration can be repeated without the ones before it, and a group does not depend on where the others run.
    """
    return [np.random.default_rng((seed, iteration, zlib.crc32(purpose.encode()), g)) for g in groups]


def balanced_tasks(env, seed, iteration, groups):
    """A task for each of `groups` groups: of a finite family all equally often, as far as that divides."""
    if env.train_tasks is None:
        return [env.sample_task(rng) for rng in streams(seed, iteration, "task", range(groups))]
    (rng,) = streams(seed, iteration, "task", [0])
    rounds = -(-groups // len(env.train_tasks))
    return [env.train_tasks[t] for _ in range(rounds) for t in rng.permutation(len(env.train_tasks))][:groups]


class Rollout(NamedTuple):
    master: Batch  # members are groups
    low: Batch | None  # members are sub-policies
    episode_return: torch.Tensor  # [G, N], undiscounted, unscaled
    share: torch.Tensor  # [G, K], of the steps; [G, 0] without sub-policies
    obs: torch.Tensor  # [S, obs], as the environment gave them, for the normaliser
    steps: int  # env steps, up to the end of each episode
    diverged: torch.Tensor  # [G], episodes whose simulation diverged
    final: dict  # the tensors [E] of the environment's info at each episode's last step, by name: [G, N] each


def leaving_the_cores(collect):
    """While a simulator steps on threads of its own, torch's would spin in their way: `collect` with one of them."""

    @functools.wraps(collect)
    def wrapped(env, *args, **kwargs):
        threads = torch.get_num_threads()
        if getattr(env, "own_threads", False):
            torch.set_num_threads(1)
        try:
            return collect(env, *args, **kwargs)
        finally:
            torch.set_num_threads(threads)

    return wrapped


@leaving_the_cores
@torch.no_grad()
def collect(
    env, agent, rngs, *, T, high_len, gamma, lam, explore=0.0, reward_scale=1.0, bootstrap=True, low=True, on_step=None
):
    """Play one episode of at most `T` steps in each of the env's E = G × N slots, group by group neighbours.

    Every `high_len` steps a group's master picks a sub-policy (with probability `explore` a uniformly random one,
    stored as if it were the master's own, as in the original); its rewards of these steps are summed to one reward.
    GAE runs over both time-ordered grids before anything is sorted by sub-policy; low-level GAE runs across
    switches, as in the original. Where an episode is truncated the value is bootstrapped (the master's at step `T`
    only if `bootstrap`), where it terminates not.

    Without sub-policies (K = 0) the masters act themselves, at every step: G flat policies.

    Raises NotFinite if the environment gives a reward or an observation that is NaN or infinite.

    `rngs`: one NumPy generator a group. `low`: also make the sub-policies' batch. `on_step()` is called after the
    reset and after each step (for filming). Returns a `Rollout`; its batches hold the real samples only.
    """
    G, K, E = agent.master.n, agent.subs.n, env.num_envs
    N, device, flat = E // G, env.device, agent.subs.n == 0
    high_len = 1 if flat else high_len
    M = -(-T // high_len)

    def draw(sample):  # sample(rng) [steps, N, ...] of each group -> [steps, E, ...]
        return torch.from_numpy(np.concatenate([sample(rng) for rng in rngs], 1)).to(device)

    obs, _ = env.reset(seed=[int(rng.integers(2**63)) for rng in rngs])
    if not flat:
        low_noise = draw(lambda rng: agent.subs.noise(rng, T, N))  # [T, E, A]
    master_noise = draw(lambda rng: agent.master.noise(rng, M, N))  # [M, E, K]
    if explore and not flat:
        explores = draw(lambda rng: rng.random((M, N)) < explore)  # [M, E]
        uniform = draw(lambda rng: rng.integers(K, size=(M, N)))
    episode = torch.arange(E, device=device)
    alive = torch.ones(E, dtype=torch.bool, device=device)
    diverged = torch.zeros(E, dtype=torch.bool, device=device)
    seen, valid, unterminated, rewards, low_params, actions = [], [], [], [], [], []  # [T] of [E, ...]
    choices, master_params, final = [], [], {}  # [M] of [E, ...], twice; name -> [E]
    if on_step:
        on_step()
    for t in range(T):
        x = agent.normaliser(obs)  # [E, obs]
        if t % high_len == 0:
            params = agent.master.params(x.view(G, N, -1)).view(E, -1)  # [E, K]
            z = agent.master.sample(params, master_noise[t // high_len])  # [E]
            if explore and not flat:
                z = torch.where(explores[t // high_len], uniform[t // high_len], z)
            master_params.append(params)
            choices.append(z)
        if not flat:
            params = agent.subs.params(x.expand(K, E, -1))[z, episode]  # [E, A]
            low_params.append(params)
            actions.append(agent.subs.sample(params, low_noise[t]))
        seen.append(obs)
        valid.append(alive)
        new_obs, reward, terminated, truncated, info = env.step(z if flat else actions[-1])
        for name, x in info.items():
            if isinstance(x, torch.Tensor) and x.shape == (E,):
                final[name] = torch.where(alive, x, final.get(name, x))
        if "diverged" in info:
            diverged = diverged | (info["diverged"] & alive)
        rewards.append(torch.where(alive, reward, 0))
        obs = torch.where((alive & ~terminated)[:, None], new_obs, obs)  # whatever comes after an end stays out
        unterminated.append(~(alive & terminated))
        alive = alive & ~terminated & ~truncated
        if on_step:
            on_step()
    seen = torch.stack([*seen, obs])  # [T + 1, E, obs]
    inputs = agent.normaliser(seen)
    valid, reward, z = torch.stack(valid), torch.stack(rewards), torch.stack(choices)  # [T, E], [T, E], [M, E]
    unterminated = torch.stack(unterminated).cumprod(0).bool()  # [T, E], up to and with this step
    alive = torch.zeros_like(alive)  # after the last step, every episode has ended
    group = episode.div(N, rounding_mode="floor")
    for name, finite in (("a reward", reward.isfinite()), ("an observation", seen.isfinite().all(-1))):
        if not finite.all():
            t, e = (~finite).nonzero()[0].tolist()
            raise NotFinite(f"the environment gave {name} that is not finite at step {t}, task {env.task[e]}")

    # the masters: one transition is up to high_len steps; it is real if its first step is
    starts = torch.arange(0, T, high_len, device=device)
    macro = torch.zeros(M, E, device=device).index_add(0, torch.arange(T, device=device) // high_len, reward)
    at = inputs[[*range(0, T, high_len), T]]  # [M + 1, E, obs]
    value = agent.master.value(at.transpose(0, 1).reshape(G, N * (M + 1), -1)).view(E, M + 1).T  # [M + 1, E]
    bootstraps = unterminated[[*range(high_len - 1, T - 1, high_len), T - 1]]  # [M, E]
    bootstraps[-1] &= bootstrap | ~valid[-1]
    goes_on = torch.cat((valid[starts[1:]], alive[None]))
    advantage = gae(macro * reward_scale, value, bootstraps, goes_on, gamma, lam)
    params = torch.stack(master_params)
    master = flat_batch(valid[starts], at[:-1], z, params, agent.master, advantage, value[:-1], group, group)
    share, low_batch = torch.zeros(G, 0, device=device), None
    if not flat:
        z = z.repeat_interleave(high_len, 0)[:T]  # [T, E]
        used = torch.nn.functional.one_hot(z, K) * valid[..., None]  # [T, E, K]
        share = used.view(T, G, N, K).sum((0, 2), dtype=torch.float32)
        share /= share.sum(1, keepdim=True)
    if low and not flat:
        values = agent.subs.value(inputs.view(1, (T + 1) * E, -1).expand(K, -1, -1)).view(K, T + 1, E)
        z_after = torch.cat((z, z[-1:]))
        value = values.gather(0, z_after[None])[0]  # [T + 1, E], each by the sub-policy then active
        goes_on = torch.cat((valid[1:], alive[None]))
        advantage = gae(reward * reward_scale, value, unterminated, goes_on, gamma, lam)
        params, action = torch.stack(low_params), torch.stack(actions)
        low_batch = flat_batch(valid, inputs[:-1], action, params, agent.subs, advantage, value[:-1], z, group)
    diverged = diverged.view(G, N).sum(1)
    final = {name: x.view(G, N) for name, x in final.items() if name != "diverged"}
    total = reward.sum(0).view(G, N)
    return Rollout(master, low_batch, total, share, seen[:-1][valid], int(valid.sum()), diverged, final)


def joined(rollouts):
    """Rollouts of different groups as one, without what is learned from."""
    returns, share, diverged = (
        torch.cat([getattr(r, name) for r in rollouts]) for name in ("episode_return", "share", "diverged")
    )
    final = {name: torch.cat([r.final[name] for r in rollouts]) for name in rollouts[0].final}
    return Rollout(None, None, returns, share, None, sum(r.steps for r in rollouts), diverged, final)


def summary(rollout, gather):
    """The `joined` rollouts of every process's groups; `gather` makes `x` a list of everyone's."""
    return joined(gather(rollout._replace(master=None, low=None, obs=None)))


def flat_batch(valid, obs, action, params, policy, advantage, value, member, group):
    """The valid ones of the [steps, E] samples, one after the other; `member` and `group` [E] or [steps, E]."""
    log_prob = policy.distribution(params).log_prob(action)
    fields = (obs, action, log_prob, advantage, value, value + advantage)
    indices = (member.expand_as(valid), group.expand_as(valid))
    return Batch(*(x[valid] for x in (*fields, *indices)))
