"""What is learned from: a rollout, as one batch for the masters and one for the sub-policies; and what is measured."""

from typing import NamedTuple

import numpy as np
import torch

from mlsh.play import Decision, play
from mlsh.ppo import Batch, gae

AT_ONCE = 2**15  # observations whose values all sub-policies compute at a time
LEFT = 0.1  # of the random decisions, in what the sub-policies learn


class Outcome(NamedTuple):
    """What there is to report of N slots in each of G groups."""

    episode_return: torch.Tensor  # [G, N], undiscounted, unscaled; the mean of a slot's complete episodes
    episode_length: torch.Tensor  # [G, N], likewise
    share: torch.Tensor  # [G, K], of the steps; [G, 0] without sub-policies
    steps: int  # env steps
    diverged: torch.Tensor  # [G], episodes
    final: dict  # as in `Played`, [G, N] each; NaN where an episode ended without it; of what is learned from, nothing

    def final_means(self):
        """`final_NAME` -> its mean over each group's episodes [G], a list; None where none has it."""
        reported = {name: [group[~group.isnan()] for group in x] for name, x in self.final.items()}
        return {f"final_{n}": [x.float().mean().item() if len(x) else None for x in xs] for n, xs in reported.items()}

    def means(self):
        """Each group's mean return, as `return`, and its `final_means`: float64 arrays [G] by name, NaN for None."""
        finals = {name: np.array(means, float) for name, means in self.final_means().items()}
        return {"return": self.episode_return.mean(1).numpy(force=True).astype(float)} | finals


class Rollout(NamedTuple):
    """What `collect` gives."""

    master: Batch  # members are groups
    low: Batch | None  # members are sub-policies
    obs: torch.Tensor  # [S, obs], as the environment gave them, for the normaliser
    outcome: Outcome


@torch.no_grad()
def collect(
    env, agent, rngs, *, T, high_len, gamma, lam, explore=0.0, reward_scale=1.0, bootstrap=True, low=True, on_step=None
):
    """Play `T` steps in each of the env's E = G × N slots, group by group neighbours, to learn from all of them.

    A slot whose episode ends begins another. Every `high_len` steps of an episode its group's master picks a
    sub-policy; with probability `explore` a uniformly random one, stored as if it were the master's own, as in the
    original. Without sub-policies (K = 0) the masters act themselves: G flat policies, for which `high_len` has to be
    1. Where an episode terminates nothing follows; where it is truncated the value is bootstrapped (the master's only
    if `bootstrap`), and where the rollout ends within it always.

    `rngs`: one NumPy generator a group. `low`: also make what the sub-policies learn from.
    `on_step()` is called after the reset and after each step. Returns a `Rollout`. Raises FloatingPointError if the
    environment gives a reward or an observation that is NaN or infinite.
    """
    with env.rollout_context():
        played = play(env, agent, rngs, T, high_len, explore, on_step=on_step)
        inputs = agent.normaliser(played.obs)  # [T + 1, E, obs]
        cuts = agent.normaliser(played.cuts[2])
        credit = {"gamma": gamma, "lam": lam, "reward_scale": reward_scale}
        master = master_batch(played, inputs, cuts, agent.master, bootstrap, **credit)
        low = low_batch(played, inputs, cuts, agent, explore, **credit) if low and agent.sub_policies.n else None
        return Rollout(
            master, low, played.obs[:-1].flatten(0, 1), outcome(played, agent.master.n, agent.sub_policies.n)
        )


def settle(env, agent, rngs, **settings):
    """Give the normaliser its first statistics, by a rollout of the untrained agent. `settings` as of `collect`.

    Returns the env steps that this took.
    """
    if not agent.normaliser.enabled:
        return 0
    rollout = collect(env, agent, rngs, low=False, **settings)
    agent.normaliser.update(rollout.obs)
    return rollout.outcome.steps


@torch.no_grad()
def measure(env, agent, rngs, *, T, high_len, on_step=None):
    """Play one episode of at most `T` steps in each slot, without random decisions. Arguments as of `collect`.

    Returns an `Outcome`. One episode a slot: of several within a time the short ones would be too many.
    """
    with env.rollout_context():
        played = play(env, agent, rngs, T, high_len, again=False, on_step=on_step)
        return outcome(played, agent.master.n, agent.sub_policies.n)


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
    following = torch.where(steps.terminated[end, slot] | ended & (not bootstrap), 0, following)
    advantage = gae(reward * reward_scale, value[:-1], following, ~(ended | last), gamma, lam)
    params, action = (x[row, slot] for x in played.choices)
    return batch_of(master, obs[:-1], Decision(params, action), advantage, value[:-1], group, group, real)


def low_batch(played, inputs, cuts, agent, explore, gamma, lam, reward_scale):
    """What the sub-policies learn from: a transition is a step, and belongs to the one active at it.

    GAE runs over the time-ordered grid of all steps, across switches, as in the original. Where decisions were random
    with probability `explore`, each step has the weight of the one it was taken under, see `importance`.
    """
    steps, active, (T, E) = played.steps, played.active, played.active.shape
    group, members = groups_of(E, agent.master.n, inputs.device), torch.cat((active, active[-1:]))
    value = values(agent.sub_policies, inputs.flatten(0, 1), members.flatten()).view(
        T + 1, E
    )  # each by the one then active
    following = value[1:].clone()
    t, e, _ = played.cuts
    following[t, e] = values(agent.sub_policies, cuts, active[t, e])
    following = torch.where(steps.terminated, 0, following)
    goes_on = ~(steps.terminated | steps.truncated)
    goes_on[-1] = False
    advantage = gae(steps.reward * reward_scale, value[:-1], following, goes_on, gamma, lam)
    batch = batch_of(agent.sub_policies, inputs[:-1], played.acts, advantage, value[:-1], active, group)
    return batch._replace(weight=importance(played, explore).gather(0, played.under).flatten()) if explore else batch


def importance(played, explore):
    """The importance weights [D, E] of the masters' decisions, where one in 1/`explore` was random.

    What is learned is what would be if a tenth as many had been: δ = ε/10 in ((1 − δ) π(z) + δ/K) / ((1 − ε) π(z) +
    ε/K), π(z) the probability under the master. Thus a sub-policy learns what the tasks whose masters want it ask of
    it, and not the one into which it was thrown; one that no master wants learns from all alike. (With δ = 0 that one
    would learn from the few samples, or the single one, that its masters found least unlikely, and be spoilt.)
    """
    params, z = played.choices
    chosen, K = params.softmax(-1).gather(-1, z[..., None])[..., 0], params.shape[-1]
    believed = LEFT * explore
    return ((1 - believed) * chosen + believed / K) / ((1 - explore) * chosen + explore / K)


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


def outcome(played, G, K):
    """The `Outcome` of what was played by G groups, with K sub-policies or options."""
    steps, E = played.steps, played.steps.reward.shape[1]
    of_sub = played.active[..., None] == torch.arange(K, device=steps.alive.device)  # [T, E, K]
    used = of_sub & steps.alive[..., None]
    share = used.view(len(used), G, E // G, K).sum((0, 2), dtype=torch.float32)
    share /= share.sum(1, keepdim=True)
    ended = (steps.terminated | steps.truncated) & steps.alive
    complete = ended.flip(0).cumsum(0).flip(0) > 0  # steps of episodes that come to their end
    counts = torch.where(complete.any(0), complete, True)  # if none does, those of the last
    episodes = ended.sum(0).clamp(min=1)
    of_slots = ((steps.reward * counts).sum(0) / episodes, (counts & steps.alive).sum(0) / episodes)
    final = {name: x.view(G, -1) for name, x in played.final.items() if name != "diverged"}
    diverged = played.diverged.view(G, -1).sum(1)
    return Outcome(*(x.view(G, -1) for x in of_slots), share, int(steps.alive.sum()), diverged, final)


def joined(outcomes):
    """Outcomes of different groups as one, the groups in order; not all need have the same in `final`."""
    returns, lengths, share, steps, diverged, _ = zip(*outcomes, strict=True)
    of_slots = torch.cat(returns), torch.cat(lengths)
    return Outcome(*of_slots, torch.cat(share), sum(steps), torch.cat(diverged), finals(outcomes, 0))


def extended(outcomes):
    """Outcomes of further slots of the same groups as one; shares weigh by slots."""
    if len(outcomes) == 1:
        return outcomes[0]
    returns, lengths, share, steps, diverged, _ = zip(*outcomes, strict=True)
    slots = [x.shape[1] for x in returns]
    share = sum(x * n for x, n in zip(share, slots, strict=True)) / sum(slots)
    return Outcome(torch.cat(returns, 1), torch.cat(lengths, 1), share, sum(steps), sum(diverged), finals(outcomes, 1))


def finals(outcomes, dim):
    """What the environments reported, one after the other along `dim`."""
    names = dict.fromkeys(name for x in outcomes for name in x.final)
    missing = [torch.full_like(x.episode_return, torch.nan) for x in outcomes]
    return {
        name: torch.cat([x.final.get(name, none) for x, none in zip(outcomes, missing, strict=True)], dim)
        for name in names
    }
