"""Play episodes at two timescales: the masters decide every so many steps, the sub-policies act at every one."""

from typing import NamedTuple

import numpy as np
import torch

NOT_FINITE = "the environment gave {} that is not finite at step {}, task {}"


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
    obs: torch.Tensor  # [T + 1, E, obs], before each step and after the last; images flattened, of their own dtype
    choices: Decision  # [D, E, ...], of the masters, at the D steps at which any slot was due
    at: torch.Tensor  # [D], those steps
    due: torch.Tensor  # [D, E], whether the slot was
    acts: Decision | None  # [T, E, ...], of the sub-policies chosen; flat policies have none
    active: torch.Tensor  # [T, E], which they were
    cuts: tuple  # of the episodes truncated before step T: their last step [F], slot [F], and what followed [F, obs]
    final: dict  # of what only measures: the tensors [E] of the environment's info at each slot's last step, by name
    diverged: torch.Tensor  # [E], episodes whose simulation diverged

    @property
    def under(self):
        """The row of `choices` with the decision under which each step was taken, [T, E]."""
        number = torch.arange(len(self.at), device=self.at.device)
        rows = torch.where(self.due, number[:, None], 0).cummax(0).values  # [D, E]
        return rows[torch.zeros_like(self.active[:, 0]).index_fill(0, self.at, 1).cumsum(0) - 1]


def play(env, agent, rngs, T, high_len, explore=0.0, again=True, on_step=None):
    """Play `T` steps in each slot, or, without `again`, one episode of at most so many. Returns what was `Played`."""
    obs = env.reset(seed=[int(rng.integers(2**63)) for rng in rngs])[0].flatten(1)
    noise = Noise(agent, rngs, T, env.num_envs // len(rngs), high_len, explore)
    normalise, record = agent.normaliser.frozen(), obs.new_empty(T + 1, *obs.shape)
    alive = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    soonest = 1 if env.terminates else min(T, env.max_episode_steps or T)  # steps after which an episode may have ended
    taken = begun = z = diverged = torch.zeros_like(alive, dtype=torch.long)  # decisions; when the episode began
    phases = {0}  # of decisions, among the steps modulo high_len
    steps, choices, dues, acts, active, cuts, final = [], [], [], [], [], [], {}
    if on_step:
        on_step()
    for t in range(T):
        record[t] = obs
        x = normalise(obs)
        if t % high_len in phases:
            due = (t - begun) % high_len == 0
            choices.append(choose(agent.master, x, noise.of_decisions(taken, len(choices))))
            dues.append((t, due))
            z = torch.where(due, choices[-1].action, z) if agent.sub_policies.n else z
            taken = taken + due
        if agent.sub_policies.n:
            acts.append(act(agent.sub_policies, x, z, noise.low[t]))
        active.append(z)
        new_obs, reward, terminated, truncated, info = env.step((acts or choices)[-1].action)
        new_obs = new_obs.flatten(1)
        steps.append(Step(reward if again else torch.where(alive, reward, 0), terminated, truncated, alive))
        if "diverged" in info:
            diverged = diverged + (alive & (info["diverged"] > 0))
        for name, x in {} if again else info.items():
            if isinstance(x, torch.Tensor) and x.shape == alive.shape:
                final[name] = torch.where(alive, x, final.get(name, x))
        ended = terminated | truncated
        if t + 1 < soonest or again and not ended.any():  # not asked, a GPU need not be waited for
            obs = new_obs
        else:
            obs = torch.where((alive & ~terminated)[:, None], new_obs, obs)  # what comes after a termination stays out
            if not again:
                alive = alive & ~ended
            elif t + 1 < T:
                cut = (truncated & ~terminated).nonzero()[:, 0]
                cuts.append((torch.full_like(cut, t), cut, obs[cut]))
                obs = env.reset(options={"reset_mask": ended})[0].flatten(1)
                begun = torch.where(ended, t + 1, begun)
                phases.add((t + 1) % high_len)
        if on_step:
            on_step()
        if not again and t + 1 >= soonest and not alive.any():
            break
    record[t + 1] = obs
    at, due = torch.tensor([t for t, _ in dues], device=env.device), torch.stack([due for _, due in dues])
    steps, none = stacked(steps), (due.new_empty(0, dtype=torch.long),) * 2
    cuts = tuple(map(torch.cat, zip((*none, obs[:0]), *cuts, strict=True)))
    env.check_no_early_end((steps.terminated | steps.truncated)[: soonest - 1])
    check_finite(env, steps.reward, record[: t + 2])
    if len(cuts[0]) and not cuts[2].isfinite().all():
        t, e, _ = (x[~cuts[2].isfinite().all(-1)][0] for x in cuts)
        raise FloatingPointError(NOT_FINITE.format("an observation", t + 1, env.task[e]))
    acts, active = stacked(acts) if acts else None, torch.stack(active)
    return Played(steps, record, stacked(choices), at, due, acts, active, cuts, final, diverged)


class Noise:
    """All randomness of the policies in a rollout, each group's from its own of the NumPy generators `rngs`."""

    def __init__(self, agent, rngs, T, N, high_len, explore):
        self._agent, self._rngs, self._size, self._explore = agent, rngs, (-(-T // high_len), N), explore
        self.low = (
            self._draw(rngs, lambda rng: agent.sub_policies.noise(rng, T, N)) if agent.sub_policies.n else None
        )  # [T, E, A]
        self._decisions = self._draw_decisions(rngs)

    def _draw(self, rngs, sample):  # sample(rng) [steps, N, ...] of each group -> [steps, E, ...]
        device = self._agent.master.policy_bias.device
        return torch.from_numpy(np.concatenate([sample(rng) for rng in rngs], 1)).to(device)

    def _draw_decisions(self, rngs):
        """For M decisions of each slot: the noise [M, E, K], whether it is random [M, E], and what it is then."""
        drawn = [self._draw(rngs, lambda rng: self._agent.master.noise(rng, *self._size))]
        if self._explore:
            drawn.append(self._draw(rngs, lambda rng: rng.random(self._size) < self._explore))
            drawn.append(self._draw(rngs, lambda rng: rng.integers(self._agent.sub_policies.n, size=self._size)))
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
            raise FloatingPointError(NOT_FINITE.format(name, t, env.task[e]))


def stacked(records):
    """One record of tensors for a list of them, with a new leading dimension."""
    return type(records[0])(*map(torch.stack, zip(*records, strict=True)))
