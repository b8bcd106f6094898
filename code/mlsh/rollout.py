"""Play at two timescales and hand back one batch for the masters and one for the sub-policies."""

from typing import NamedTuple

import numpy as np
import torch

from mlsh.ppo import Batch, gae

AT_ONCE = 2**15  # observations whose values all sub-policies compute at a time


class Decision(NamedTuple):
    """What a policy did in E slots side by side; stacked, [T, E, ...] at every step or [D, E, ...] at some."""

    params: torch.Tensor  # [E, A or 2A], of the distribution it drew from
    action: torch.Tensor  # [E] or [E, A]


class Step(NamedTuple):
    """One env step of E slots side by side; stacked, [T, E, ...]."""

    reward: torch.Tensor  # [E], 0 where no episode is under way any more
    terminated: torch.Tensor  # [E]
    truncated: torch.Tensor  # [E]
    alive: torch.Tensor  # [E], whether an episode was under way; of what is learned from, always


class Played(NamedTuple):
    """What happened in E = G × N slots within T steps."""

    steps: Step  # [T, E, ...]
    obs: torch.Tensor  # [T + 1, E, obs], before each step and after the last
    choices: Decision  # [D, E, ...], of the masters, at the D steps at which any slot was due
    at: torch.Tensor  # [D], those steps
    due: torch.Tensor  # [D, E], whether the slot was
    acts: Decision | None  # [T, E, ...], of the sub-policies chosen; flat policies have none
    active: torch.Tensor  # [T, E], which they were
    cuts: tuple  # of the episodes truncated before step T: their last step [F], slot [F], and what followed [F, obs]
    final: dict  # the tensors [E] of the environment's info at each slot's last step, by name
    diverged: torch.Tensor  # [E], episodes whose simulation diverged


class Outcome(NamedTuple):
    """What there is to report of N slots in each of G groups."""

    episode_return: torch.Tensor  # [G, N], undiscounted, unscaled; the mean of a slot's complete episodes
    share: torch.Tensor  # [G, K], of the steps; [G, 0] without sub-policies
    steps: int  # env steps
    diverged: torch.Tensor  # [G], episodes
    final: dict  # as in `Played`, [G, N] each


class Rollout(NamedTuple):
    """What `collect` gives."""

    master: Batch  # members are groups
    low: Batch | None  # members are sub-policies
    obs: torch.Tensor | None  # [S, obs], as the environment gave them, for the normaliser
    outcome: Outcome


@torch.no_grad()
def collect(
    env, agent, rngs, *, T, high_len, gamma, lam, explore=0.0, reward_scale=1.0, bootstrap=True, low=True, on_step=None
):
    """Play `T` steps in each of the env's E = G × N slots, group by group neighbours, to learn from all of them.

    A slot whose episode ends begins another. Every `high_len` steps of an episode its group's master picks a
    sub-policy; with probability `explore` a uniformly random one, stored as if it were the master's own, as in the
    original. Without sub-policies (K = 0) the masters act themselves: G flat policies, for which `high_len` has to be
    1. Where an episode is truncated, or the rollout ends, the value is bootstrapped (the master's only if `bootstrap`),
    where it terminates not.

    `rngs`: one NumPy generator a group. `low`: also make what the sub-policies and the normaliser learn from.
    `on_step()` is called after the reset and after each step. Returns a `Rollout`. Raises FloatingPointError if the
    environment gives a reward or an observation that is NaN or infinite.
    """
    with env.simulating():
        played = play(env, agent, rngs, T, high_len, explore, on_step=on_step)
        inputs = agent.normaliser(played.obs)  # [T + 1, E, obs]
        cuts = agent.normaliser(played.cuts[2])
        credit = {"gamma": gamma, "lam": lam, "reward_scale": reward_scale}
        master = master_batch(played, inputs, cuts, agent.master, bootstrap, **credit)
        if not (low and agent.subs.n):
            return Rollout(master, None, None, outcome(played, agent))
        batch = low_batch(played, inputs, cuts, agent, **credit)
        return Rollout(master, batch, played.obs[:-1].flatten(0, 1), outcome(played, agent))


@torch.no_grad()
def measure(env, agent, rngs, *, T, high_len, on_step=None):
    """Play one episode of at most `T` steps in each slot, without random decisions. Arguments as of `collect`.

    Returns an `Outcome`. One episode a slot: of several within a time the short ones would be too many.
    """
    with env.simulating():
        return outcome(play(env, agent, rngs, T, high_len, again=False, on_step=on_step), agent)


def play(env, agent, rngs, T, high_len, explore=0.0, again=True, on_step=None):
    """Play `T` steps in each slot, or, without `again`, one episode of at most so many. Returns what was `Played`."""
    obs, _ = env.reset(seed=[int(rng.integers(2**63)) for rng in rngs])
    noise = Noise(agent, rngs, T, env.num_envs // len(rngs), high_len, explore)
    record = obs.new_empty(T + 1, *obs.shape)
    alive = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    taken = left = z = torch.zeros_like(alive, dtype=torch.long)  # decisions, and steps until the slot's next one
    steps, choices, dues, acts, active, cuts, final = [], [], [], [], [], [], {}
    diverged = torch.zeros_like(left)
    if on_step:
        on_step()
    for t in range(T):
        record[t] = obs
        x = agent.normaliser(obs)
        due = left == 0
        if due.any():
            choices.append(choose(agent.master, x, noise.of_decisions(taken, len(choices))))
            dues.append((t, due))
            z = torch.where(due, choices[-1].action, z) if agent.subs.n else z
            taken, left = taken + due, torch.where(due, high_len, left)
        left = left - 1
        if agent.subs.n:
            acts.append(act(agent.subs, x, z, noise.low[t]))
        active.append(z)
        new_obs, reward, terminated, truncated, info = env.step((acts or choices)[-1].action)
        steps.append(Step(torch.where(alive, reward, 0), terminated, truncated, alive))
        for name, x in info.items():
            if isinstance(x, torch.Tensor) and x.shape == alive.shape:
                final[name] = torch.where(alive, x, final.get(name, x))
        diverged = diverged + (alive & final.get("diverged", False))
        ended = terminated | truncated
        obs = torch.where((alive & ~terminated)[:, None], new_obs, obs)  # what comes after a termination stays out
        if not again:
            alive = alive & ~ended
        elif t + 1 < T and ended.any():
            cut = (truncated & ~terminated).nonzero()[:, 0]
            cuts.append((torch.full_like(cut, t), cut, obs[cut]))
            obs, _ = env.reset(options={"reset_mask": ended})
            left = left.masked_fill(ended, 0)
        if on_step:
            on_step()
        if not (again or alive.any()):
            break
    record[t + 1] = obs
    at, due = torch.tensor([t for t, _ in dues], device=env.device), torch.stack([due for _, due in dues])
    steps, none = stacked(steps), (due.new_empty(0, dtype=torch.long),) * 2
    cuts = tuple(map(torch.cat, zip((*none, obs[:0]), *cuts, strict=True)))
    check_finite(env, steps.reward, record[: t + 2])
    acts, active = stacked(acts) if acts else None, torch.stack(active)
    return Played(steps, record, stacked(choices), at, due, acts, active, cuts, final, diverged)


class Noise:
    """All randomness of the policies in a rollout, each group's from its own of the NumPy generators `rngs`."""

    def __init__(self, agent, rngs, T, N, high_len, explore):
        self._agent, self._rngs, self._size, self._explore = agent, rngs, (-(-T // high_len), N), explore
        self.low = self._draw(rngs, lambda rng: agent.subs.noise(rng, T, N)) if agent.subs.n else None  # [T, E, A]
        self._decisions = self._draw_decisions(rngs)

    def _draw(self, rngs, sample):  # sample(rng) [steps, N, ...] of each group -> [steps, E, ...]
        device = self._agent.master.policy_bias.device
        return torch.from_numpy(np.concatenate([sample(rng) for rng in rngs], 1)).to(device)

    def _draw_decisions(self, rngs):
        """For M decisions of each slot: the noise [M, E, K], whether it is random [M, E], and what it is then."""
        drawn = [self._draw(rngs, lambda rng: self._agent.master.noise(rng, *self._size))]
        if self._explore:
            drawn.append(self._draw(rngs, lambda rng: rng.random(self._size) < self._explore))
            drawn.append(self._draw(rngs, lambda rng: rng.integers(self._agent.subs.n, size=self._size)))
        return drawn

    def of_decisions(self, taken, most):
        """What `choose` wants for the slots' next decisions, after `taken` [E], at most `most`, of them."""
        while most >= len(self._decisions[0]):  # whole episodes have M; from generators apart, as others follow
            more = self._draw_decisions([rng.spawn(1)[0] for rng in self._rngs])
            self._decisions = [torch.cat(both) for both in zip(self._decisions, more, strict=True)]
        return [x[taken, torch.arange(len(taken), device=taken.device)] for x in self._decisions]


def choose(master, x, noise):
    """The masters' decisions at normalised observations x [E, obs]; `noise` as of `Noise.of_decisions`."""
    params = master.params(x.view(master.n, -1, x.shape[-1])).flatten(0, 1)  # [E, K]
    gumbel, *random = noise
    z = master.sample(params, gumbel)
    if random:
        explores, uniform = random
        z = torch.where(explores, uniform, z)
    return Decision(params, z)


def act(subs, x, z, noise):
    """What the sub-policies z [E] do at normalised observations x [E, obs]."""
    params = subs.params(x.expand(subs.n, *x.shape))[z, torch.arange(len(z), device=z.device)]  # [E, A or 2A]
    return Decision(params, subs.sample(params, noise))


def check_finite(env, reward, obs):
    """Raise a FloatingPointError that names the first reward [T, E] or observation [T or T + 1, E, …] that is not."""
    for name, finite in (("a reward", reward.isfinite()), ("an observation", obs.isfinite().all(-1))):
        if not finite.all():
            t, e = (~finite).nonzero()[0].tolist()
            raise FloatingPointError(f"the environment gave {name} that is not finite at step {t}, task {env.task[e]}")


def stacked(records):
    """One record of tensors for a list of them, with a new leading dimension."""
    return type(records[0])(*map(torch.stack, zip(*records, strict=True)))


def master_batch(played, inputs, cuts, master, bootstrap, gamma, lam, reward_scale):
    """What the masters learn from: a transition is one decision, the rewards of its up to `high_len` steps summed.

    `inputs` [T + 1, E, obs] and `cuts` [F, obs]: the observations, and what followed the cuts, normalised.
    """
    steps, due, (T, E), G = played.steps, played.due, played.steps.reward.shape, master.n
    slot, group = torch.arange(E, device=due.device), groups_of(E, G, due.device)
    count = due.sum(0)
    row = (~due).to(torch.uint8).argsort(dim=0, stable=True)[: count.max()]  # [M, E], a slot's decisions in order
    number = torch.arange(len(row), device=due.device)[:, None]
    real, last = number < count, number == count - 1  # [M, E]; a slot with fewer decisions is padded
    start = played.at[row]
    end = torch.where(last, T, torch.cat((start[1:], start[-1:]))) - 1  # the last step of each decision
    decision = torch.zeros(T, E, dtype=torch.long, device=due.device).index_copy(0, played.at, due.long()).cumsum(0) - 1
    reward = torch.zeros(start.shape, device=due.device).scatter_add(0, decision, steps.reward)
    obs = torch.cat((inputs[start, slot], inputs[T:]))  # [M + 1, E, obs]
    value = master.value(obs.transpose(0, 1).reshape(G, E // G * len(obs), -1)).view(E, len(obs)).T  # [M + 1, E]
    ended = (steps.terminated | steps.truncated)[end, slot]
    following = torch.where(last, value[-1], value[1:])
    t, e, _ = played.cuts
    following[decision[t, e], e] = values(master, cuts, group[e])
    following = torch.where(steps.terminated[end, slot] | (ended | last) & (not bootstrap), 0, following)
    advantage = gae(reward * reward_scale, value[:-1], following, ~(ended | last), gamma, lam)
    params, action = (x[row, slot] for x in played.choices)
    return batch_of(master, obs[:-1], Decision(params, action), advantage, value[:-1], group, group, real)


def low_batch(played, inputs, cuts, agent, gamma, lam, reward_scale):
    """What the sub-policies learn from: a transition is a step, and belongs to the one active at it.

    GAE runs over the time-ordered grid of all steps, across switches, as in the original.
    """
    steps, active, (T, E) = played.steps, played.active, played.active.shape
    group, members = groups_of(E, agent.master.n, inputs.device), torch.cat((active, active[-1:]))
    value = values(agent.subs, inputs.flatten(0, 1), members.flatten()).view(T + 1, E)  # each by the one then active
    following = value[1:].clone()
    t, e, _ = played.cuts
    following[t, e] = values(agent.subs, cuts, active[t, e])
    following = torch.where(steps.terminated, 0, following)
    goes_on = ~(steps.terminated | steps.truncated)
    goes_on[-1] = False
    advantage = gae(steps.reward * reward_scale, value[:-1], following, goes_on, gamma, lam)
    return batch_of(agent.subs, inputs[:-1], played.acts, advantage, value[:-1], active, group)


def values(policy, obs, member):
    """The value of each of S observations [S, obs] by a member [S] of the policy."""
    found = [
        policy.value(x.expand(policy.n, *x.shape)).gather(0, m[None])[0]
        for x, m in zip(obs.split(AT_ONCE), member.split(AT_ONCE), strict=True)
    ]
    return torch.cat(found)


def groups_of(E, G, device):
    """The group of each of E slots, [E]."""
    return torch.arange(E, device=device).div(E // G, rounding_mode="floor")


def batch_of(policy, obs, decisions, advantage, value, member, group, real=None):
    """The `Batch` of decisions [T or M, E], of those that are `real`; member and group may be [E]."""
    log_prob = policy.distribution(decisions.params).log_prob(decisions.action)
    fields = (obs, decisions.action, log_prob, advantage, value, value + advantage)
    fields = (*fields, member.expand_as(value), group.expand_as(value))
    return Batch(*(x.flatten(0, 1) if real is None or real.all() else x[real] for x in fields))


def outcome(played, agent):
    """The `Outcome` of what was played."""
    steps, G, K = played.steps, agent.master.n, agent.subs.n
    E = steps.reward.shape[1]
    of_sub = played.active[..., None] == torch.arange(K, device=steps.alive.device)  # [T, E, K]
    used = of_sub & steps.alive[..., None]
    share = used.view(len(used), G, E // G, K).sum((0, 2), dtype=torch.float32)
    share /= share.sum(1, keepdim=True)
    ended = (steps.terminated | steps.truncated) & steps.alive
    complete = ended.flip(0).cumsum(0).flip(0) > 0  # steps of episodes that come to their end
    counts = torch.where(complete.any(0), complete, True)  # if none does, those of the last
    episode_return = (steps.reward * counts).sum(0) / ended.sum(0).clamp(min=1)
    final = {name: x.view(G, -1) for name, x in played.final.items() if name != "diverged"}
    diverged = played.diverged.view(G, -1).sum(1)
    return Outcome(episode_return.view(G, -1), share, int(steps.alive.sum()), diverged, final)


def joined(outcomes):
    """Outcomes of different groups as one, the groups in order."""
    episode_return, share, steps, diverged, final = zip(*outcomes, strict=True)
    final = {name: torch.cat([x[name] for x in final]) for name in final[0]}
    return Outcome(torch.cat(episode_return), torch.cat(share), sum(steps), torch.cat(diverged), final)
