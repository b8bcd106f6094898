"""Play the hierarchy at two timescales, and build what the masters and the sub-policies learn from."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlsh.envs.base import VectorTasks
from mlsh.models import ActorCritic, Hierarchy
from mlsh.outcome import Outcome
from mlsh.ppo import Batch, gae
from mlsh.slots import Actor, OnStep, SlotRecord, Slots, draw_seeds, play_episodes, play_rollout

Generators = Sequence[np.random.Generator]
VALUES_AT_ONCE = 2**15  # observations that values are computed for at a time
BELIEVED = 0.1  # δ/ε: the sub-policies learn as if only this part of the random decisions were made, see `importance`


@dataclass(frozen=True)
class RolloutSettings:
    """How episodes are played, and how their steps are credited."""

    T: int  # env steps per slot
    high_len: int  # env steps between two decisions
    gamma: float = 0.99  # discount of the sub-policies, per env step
    master_gamma: float = 0.99  # discount of the masters, per decision
    lam: float = 0.95  # λ of generalised advantage estimation, at both timescales
    reward_scale: float = 1.0
    explore: float = 0.0  # probability that a decision is random
    bootstrap: bool = True  # whether a master's value is bootstrapped where an episode is truncated


class PolicyStep(NamedTuple):
    """What a policy did in E slots; stacked, [T, E, …] for all steps or [D, E, …] for some."""

    params: Tensor  # [E, A or 2A], of the distribution it drew from
    action: Tensor  # [E] or [E, A]


class Trace(NamedTuple):
    """Who decided and acted in E slots within T steps."""

    decisions: PolicyStep  # [D, E, …], of the masters, at the D steps at which a decision was due in any slot
    decided_at: Tensor  # [D], those steps
    due: Tensor  # [D, E], whether a decision was due in the slot
    actions: PolicyStep | None  # [T, E, …], of the sub-policies; None for flat policies
    active: Tensor  # [T, E], the index of the active sub-policy

    def decision_of_steps(self) -> Tensor:
        """The row of `decisions` with the decision that was in force at each step, [T, E]."""
        rows = torch.arange(len(self.decided_at), device=self.due.device)
        latest = torch.where(self.due, rows[:, None], 0).cummax(0).values  # [D, E]
        decided = torch.zeros_like(self.active[:, 0]).index_fill(0, self.decided_at, 1)  # [T]
        return latest[decided.cumsum(0) - 1]


class Rollout(NamedTuple):
    """What `collect` returns."""

    master: Batch  # one sample per decision; its member is the group
    sub_policies: Batch | None  # one sample per env step; its member is the sub-policy
    obs: Tensor  # [S, obs], as the environment gave them, for the normaliser
    outcome: Outcome


@torch.no_grad()
def collect(
    env: VectorTasks,
    agent: Hierarchy,
    rngs: Generators,
    settings: RolloutSettings,
    *,
    for_sub_policies: bool = True,
    on_step: OnStep | None = None,
) -> Rollout:
    """Play `settings.T` training steps in each of the env's E = G × N slots; groups are blocks of neighbours.

    A slot whose episode ends begins another. Every `high_len` steps of an episode its group's master picks a
    sub-policy. With probability `explore` the choice is uniformly random, and is stored as if the master had made it,
    as in the original code. Without sub-policies (K = 0) the masters themselves act: G flat policies with `high_len` 1.

    No value follows a termination. A truncation is bootstrapped (for the masters only with `bootstrap`), and so is the
    end of the rollout.

    `rngs`: one generator per group. `for_sub_policies`: whether to build their batch as well. Raises FloatingPointError
    if the environment gives a reward or an observation that is NaN or infinite.
    """
    with env.rollout_context():
        record, trace = play(play_rollout, env, agent, rngs, settings, on_step)
        obs = agent.normaliser(record.obs)  # [T + 1, E, obs]
        truncations = record.truncations._replace(following=agent.normaliser(record.truncations.following))
        record = record._replace(truncations=truncations)
        master = master_batch(record, trace, obs, agent.master, settings)
        learned = for_sub_policies and agent.sub_policies.n > 0
        sub_policies = sub_policy_batch(record, trace, obs, agent, settings) if learned else None
        outcome = Outcome.of(record, trace.active, agent.master.n, agent.K)
        return Rollout(master, sub_policies, record.obs[:-1].flatten(0, 1), outcome)


@torch.no_grad()
def evaluate(
    env: VectorTasks, agent: Hierarchy, rngs: Generators, settings: RolloutSettings, *, on_step: OnStep | None = None
) -> Outcome:
    """Play one evaluation episode per slot, of at most `settings.T` steps. Arguments as for `collect`."""
    with env.rollout_context():
        record, trace = play(play_episodes, env, agent, rngs, settings, on_step)
        return Outcome.of(record, trace.active, agent.master.n, agent.K)


def init_normaliser(env: VectorTasks, agent: Hierarchy, rngs: Generators, settings: RolloutSettings) -> int:
    """Give the normaliser its first statistics, from a rollout of the untrained agent. Returns the env steps taken."""
    if not agent.normaliser.enabled:
        return 0
    rollout = collect(env, agent, rngs, settings, for_sub_policies=False)
    agent.normaliser.update(rollout.obs)
    return rollout.outcome.steps


def play(
    how: Callable[..., SlotRecord],
    env: VectorTasks,
    agent: Hierarchy,
    rngs: Generators,
    settings: RolloutSettings,
    on_step: OnStep | None = None,
) -> tuple[SlotRecord, Trace]:
    """Let the agent play, `how` being `play_rollout` or `play_episodes`."""
    seeds = draw_seeds(rngs)
    actor = HierarchyActor(agent, rngs, env.num_envs // len(rngs), settings)
    record = how(env, actor, seeds, settings.T, on_step)
    return record, actor.trace()


class HierarchyActor(Actor):
    """The masters decide every `high_len` steps of an episode; the chosen sub-policy acts at every step."""

    def __init__(self, agent: Hierarchy, rngs: Generators, slots_per_group: int, settings: RolloutSettings) -> None:
        self._agent, self._high_len = agent, settings.high_len
        self._noise = Noise(agent, rngs, slots_per_group, settings)
        self._normalise = agent.normaliser.frozen()
        E = slots_per_group * len(rngs)
        self._z = self._decided = torch.zeros(E, dtype=torch.long, device=agent.master.device)  # choices; how many
        self._group = groups_of_slots(E, len(rngs), self._z.device)
        self._params_of: Callable[[Tensor], Tensor]  # from observations to params, by the chosen sub-policies
        self._phases: set[int] = set()  # steps modulo high_len at which a decision is due in any slot
        self._decisions: list[PolicyStep] = []
        self._due: list[tuple[int, Tensor]] = []
        self._actions: list[PolicyStep] = []
        self._active: list[Tensor] = []

    def act(self, slots: Slots) -> Tensor:
        obs = self._normalise(slots.obs)
        if slots.some_begin:
            self._phases.add(slots.t % self._high_len)
        if slots.t % self._high_len in self._phases:
            self._decide(obs, slots)
        self._active.append(self._z)
        if not self._agent.sub_policies.n:
            return self._decisions[-1].action
        params = self._params_of(obs)
        action = self._agent.sub_policies.sample(params, self._noise.of_actions[slots.t])
        self._actions.append(PolicyStep(params, action))
        return action

    def _decide(self, obs: Tensor, slots: Slots) -> None:
        due = (slots.t - slots.begun) % self._high_len == 0
        decision = self._choose(obs, slots)
        self._decisions.append(decision)
        self._due.append((slots.t, due))
        if self._agent.sub_policies.n:
            self._z = torch.where(due, decision.action, self._z)
            self._params_of = self._agent.sub_policies.params_of(self._agent.member(self._z, self._group))
        self._decided = self._decided + due

    def _choose(self, obs: Tensor, slots: Slots) -> PolicyStep:
        """The decision that each slot would make now, at normalised observations [E, obs]."""
        return decide(self._agent.master, obs, *self._noise.of_decisions(self._decided, len(self._decisions)))

    def trace(self) -> Trace:
        decided_at = torch.tensor([t for t, _ in self._due], device=self._z.device)
        due = torch.stack([due for _, due in self._due])
        actions = stacked(self._actions) if self._actions else None
        return Trace(stacked(self._decisions), decided_at, due, actions, torch.stack(self._active))


class Noise:
    """All randomness of the policies in a rollout, each group's from its own generator."""

    def __init__(self, agent: Hierarchy, rngs: Generators, slots_per_group: int, settings: RolloutSettings) -> None:
        self._agent, self._rngs, self._explore = agent, rngs, settings.explore
        self._size = math.ceil(settings.T / settings.high_len), slots_per_group
        sub_policies = agent.sub_policies
        if sub_policies.n:
            self.of_actions = self._draw(
                rngs, lambda rng: sub_policies.noise(rng, settings.T, slots_per_group)
            )  # [T, E, A]
        self._of_decisions = self._draw_decisions(rngs)

    def _draw(self, rngs: Generators, sample: Callable[[np.random.Generator], np.ndarray]) -> Tensor:
        """`sample(rng)` [steps, N, …] of each group, concatenated to [steps, E, …]."""
        return torch.from_numpy(np.concatenate([sample(rng) for rng in rngs], 1)).to(self._agent.master.device)

    def _draw_decisions(self, rngs: Generators) -> list[Tensor]:
        """For M decisions per slot: the noise [M, E, K]; and whether each is random [M, E], and what it then is."""
        drawn = [self._draw(rngs, lambda rng: self._agent.master.noise(rng, *self._size))]
        if self._explore:
            drawn.append(self._draw(rngs, lambda rng: rng.random(self._size) < self._explore))
            drawn.append(self._draw(rngs, lambda rng: rng.integers(self._agent.K, size=self._size)))
        return drawn

    def of_decisions(self, decided: Tensor, at_most: int) -> list[Tensor]:
        """The arguments of `decide` for each slot's next decision, after it has `decided` [E] times, at most `at_most`.

        Whole episodes have M decisions per slot. Where episodes end early there are more, from further generators.
        """
        while at_most >= len(self._of_decisions[0]):
            more = self._draw_decisions([rng.spawn(1)[0] for rng in self._rngs])
            self._of_decisions = [torch.cat(both) for both in zip(self._of_decisions, more, strict=True)]
        return [x[decided, torch.arange(len(decided), device=decided.device)] for x in self._of_decisions]


def decide(
    master: ActorCritic, obs: Tensor, noise: Tensor, explores: Tensor | None = None, random: Tensor | None = None
) -> PolicyStep:
    """The masters' decisions at normalised observations [E, obs]; `random` [E] where a slot `explores` [E]."""
    params = master.params(obs.view(master.n, -1, obs.shape[-1])).flatten(0, 1)  # [E, K]
    z = master.sample(params, noise)
    if explores is not None and random is not None:
        z = torch.where(explores, random, z)
    return PolicyStep(params, z)


def stacked(steps: Sequence[PolicyStep]) -> PolicyStep:
    return PolicyStep(*(torch.stack(x) for x in zip(*steps, strict=True)))


class DecisionGrid(NamedTuple):
    """Each slot's decisions in order of time, [M, E]. Slots with fewer than M decisions are padded."""

    row: Tensor  # [M, E], the decision's row in `Trace.decisions`
    start: Tensor  # [M, E], the step it was made at
    end: Tensor  # [M, E], the last step it was in force
    real: Tensor  # [M, E], false for padding
    last: Tensor  # [M, E], whether it is the slot's last
    of_steps: Tensor  # [T, E], the number of the decision in force at each step

    @classmethod
    def of(cls, trace: Trace, T: int) -> "DecisionGrid":
        due = trace.due
        count = due.sum(0)  # [E]
        row = (~due).to(torch.uint8).argsort(dim=0, stable=True)[: count.max()]
        number = torch.arange(len(row), device=due.device)[:, None]
        last = number == count - 1
        start = trace.decided_at[row]
        next_start = torch.cat((start[1:], start[-1:]))
        end = torch.where(last, T, next_start) - 1
        made = torch.zeros(T, due.shape[1], dtype=torch.long, device=due.device)
        of_steps = made.index_copy(0, trace.decided_at, due.long()).cumsum(0) - 1
        return cls(row, start, end, number < count, last, of_steps)


def master_batch(
    record: SlotRecord, trace: Trace, obs: Tensor, master: ActorCritic, settings: RolloutSettings
) -> Batch:
    """What the masters learn from: one transition per decision, with the rewards of its steps summed.

    `obs` [T + 1, E, obs], and the observations in `record.truncations`, are normalised.
    """
    T, E = record.reward.shape
    slot = torch.arange(E, device=obs.device)
    group = groups_of_slots(E, master.n, obs.device)
    grid = DecisionGrid.of(trace, T)
    reward = torch.zeros(grid.start.shape, device=obs.device).scatter_add(0, grid.of_steps, record.reward)

    at_decisions = torch.cat((obs[grid.start, slot], obs[T:]))  # [M + 1, E, obs], the rollout's end included
    by_master = at_decisions.transpose(0, 1).reshape(master.n, -1, obs.shape[-1])  # [G, N·(M + 1), obs]
    value = master.value(by_master).view(E, len(at_decisions)).T  # [M + 1, E]

    step, cut_slot, truncated_obs = record.truncations
    following = torch.where(grid.last, value[-1], value[1:])
    following[grid.of_steps[step, cut_slot], cut_slot] = values(master, truncated_obs, group[cut_slot])
    terminated, ended = record.terminated[grid.end, slot], record.ended[grid.end, slot]
    worthless = terminated if settings.bootstrap else ended
    following = torch.where(worthless, 0, following)

    advantage = gae(
        reward * settings.reward_scale, value[:-1], following, ~(ended | grid.last), settings.master_gamma, settings.lam
    )
    decisions = PolicyStep(*(x[grid.row, slot] for x in trace.decisions))
    batch = batch_of(master, at_decisions[:-1], decisions, advantage, value[:-1], group, group)
    return batch if grid.real.all() else batch.select(grid.real.flatten())


def sub_policy_batch(
    record: SlotRecord, trace: Trace, obs: Tensor, agent: Hierarchy, settings: RolloutSettings
) -> Batch:
    """What the sub-policies learn from: one transition per env step, for the sub-policy that was active.

    GAE runs over the time-ordered grid of all steps, across switches of the sub-policy, as in the original code. The
    value of an observation is that of the sub-policy active there.
    """
    sub_policies, active, (T, E) = agent.sub_policies, trace.active, trace.active.shape
    assert trace.actions is not None
    group = groups_of_slots(E, agent.master.n, obs.device)
    member = agent.member(torch.cat((active, active[-1:])), group)  # [T + 1, E]
    value = values(sub_policies, obs.flatten(0, 1), member.flatten()).view(T + 1, E)
    step, slot, truncated_obs = record.truncations
    following = value[1:].clone()
    following[step, slot] = values(sub_policies, truncated_obs, member[step, slot])
    following = torch.where(record.terminated, 0, following)
    goes_on = ~(record.terminated | record.truncated)
    goes_on[-1] = False
    advantage = gae(record.reward * settings.reward_scale, value[:-1], following, goes_on, settings.gamma, settings.lam)
    batch = batch_of(sub_policies, obs[:-1], trace.actions, advantage, value[:-1], member[:-1], group)
    if not settings.explore:
        return batch
    weights = importance(trace.decisions, settings.explore).gather(0, trace.decision_of_steps())
    return batch._replace(importance=weights.flatten())


def importance(decisions: PolicyStep, explore: float) -> Tensor:
    """Importance weights [D, E] of decisions that were random with probability ε = `explore`.

    The behaviour policy chose z with probability (1 − ε) π(z) + ε/K, where π is the master. The sub-policies learn as
    if only a tenth of the random decisions had been made, δ = ε/10. The weight is the ratio of the two probabilities.
    So a sub-policy learns mostly from the tasks whose masters choose it, and little from those it was thrown into. One
    that no master chooses learns from all tasks alike. With δ = 0 it would learn from the few samples, or the single
    one, that its masters found least unlikely, and would be spoilt.
    """
    params, z = decisions
    K = params.shape[-1]
    chosen = params.softmax(-1).gather(-1, z[..., None])[..., 0]
    delta = BELIEVED * explore
    return ((1 - delta) * chosen + delta / K) / ((1 - explore) * chosen + explore / K)


def values(policy: ActorCritic, obs: Tensor, member: Tensor) -> Tensor:
    """The value [S] of each observation [S, obs] by the policy's `member` [S]."""
    parts = zip(member.split(VALUES_AT_ONCE), obs.split(VALUES_AT_ONCE), strict=True)
    return torch.cat([policy.values_of(*part) for part in parts])


def groups_of_slots(E: int, G: int, device: torch.device) -> Tensor:
    """The group of each of E slots, [E]."""
    return torch.arange(E, device=device).div(E // G, rounding_mode="floor")


def batch_of(
    policy: ActorCritic, obs: Tensor, steps: PolicyStep, advantage: Tensor, value: Tensor, member: Tensor, group: Tensor
) -> Batch:
    """The `Batch` of policy steps [T or M, E]; `member` and `group` may be [E]."""
    log_prob = policy.distribution(steps.params).log_prob(steps.action)
    member, group = member.expand_as(value), group.expand_as(value)
    fields = (obs, steps.action, log_prob, advantage, value, value + advantage, member, group)
    return Batch(*(x.flatten(0, 1) for x in fields))
