"""Play whole episodes at two timescales and hand back one batch for the masters and one for the sub-policies."""

from typing import NamedTuple

import numpy as np
import torch

from mlsh.ppo import Batch, gae


class Decision(NamedTuple):
    """What a policy did in E episodes side by side; stacked, [T, E, ...] at every step or [M, E, ...] at every M-th."""

    params: torch.Tensor  # [E, A or 2A], of the distribution it drew from
    action: torch.Tensor  # [E] or [E, A]


class Step(NamedTuple):
    """One env step of E episodes side by side; stacked, [T, E, ...]."""

    obs: torch.Tensor  # [E, obs], before the step, as the environment gave it
    reward: torch.Tensor  # [E], 0 if the episode has ended before
    valid: torch.Tensor  # [E], whether it has not
    terminated: torch.Tensor  # [E], whether it terminated with this step


class Played(NamedTuple):
    """E = G × N episodes of at most T steps, M decisions of the masters each."""

    steps: Step  # [T, E, ...]
    obs: torch.Tensor  # [T + 1, E, obs]; from an episode's end on, its last
    choices: Decision  # [M, E, ...], of the masters
    acts: Decision | None  # [T, E, ...], of the sub-policies chosen; flat policies have none
    final: dict  # the tensors [E] of the environment's info at each episode's last step, by name

    @property
    def unterminated(self):
        """[T, E], whether the episode has not terminated up to and with the step."""
        return (~self.steps.terminated).cumprod(0).bool()


class Outcome(NamedTuple):
    """What there is to report of N episodes in each of G groups."""

    episode_return: torch.Tensor  # [G, N], undiscounted, unscaled
    share: torch.Tensor  # [G, K], of the steps; [G, 0] without sub-policies
    steps: int  # env steps, up to the end of each episode
    diverged: torch.Tensor  # [G], episodes whose simulation diverged
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
    """Play one episode of at most `T` steps in each of the env's E = G × N slots, group by group neighbours.

    Every `high_len` steps a group's master picks a sub-policy; with probability `explore` a uniformly random one,
    stored as if it were the master's own, as in the original. Without sub-policies (K = 0) the masters act themselves:
    G flat policies, for which `high_len` has to be 1. Where an episode is truncated the value is bootstrapped (the
    master's at step `T` only if `bootstrap`), where it terminates not.

    `rngs`: one NumPy generator a group. `low`: also make what the sub-policies and the normaliser learn from.
    `on_step()` is called after the reset and after each step (for filming). Returns a `Rollout`; its batches hold the
    real samples only. Raises FloatingPointError if the environment gives a reward or an observation that is NaN or
    infinite.
    """
    with env.simulating():
        played = play(env, agent, rngs, T, high_len, explore, on_step)
        inputs = agent.normaliser(played.obs)  # [T + 1, E, obs]
        credit = {"gamma": gamma, "lam": lam, "reward_scale": reward_scale}
        master = master_batch(played, inputs, agent.master, high_len, bootstrap, **credit)
        if not agent.subs.n:
            return Rollout(master, None, None, outcome(played, agent))
        active = played.choices.action.repeat_interleave(high_len, 0)[:T]  # [T, E], the sub-policy at every step
        reported = outcome(played, agent, active)
        if not low:
            return Rollout(master, None, None, reported)
        batch = low_batch(played, inputs, agent, active, **credit)
        return Rollout(master, batch, played.steps.obs[played.steps.valid], reported)


def play(env, agent, rngs, T, high_len, explore=0.0, on_step=None):
    """Play one episode of at most `T` steps in each slot; see `collect`. Returns what was `Played`."""
    obs, _ = env.reset(seed=[int(rng.integers(2**63)) for rng in rngs])
    noise = draw_noise(agent, rngs, T, env.num_envs // len(rngs), high_len, explore)
    alive = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    steps, choices, acts, final = [], [], [], {}
    if on_step:
        on_step()
    for t in range(T):
        x = agent.normaliser(obs)
        if t % high_len == 0:
            choices.append(choose(agent.master, x, noise, t // high_len))
        if agent.subs.n:
            acts.append(act(agent.subs, x, choices[-1].action, noise.low[t]))
        new_obs, reward, terminated, truncated, info = env.step((acts or choices)[-1].action)
        steps.append(Step(obs, torch.where(alive, reward, 0), alive, alive & terminated))
        for name, x in info.items():
            if isinstance(x, torch.Tensor) and x.shape == alive.shape:
                final[name] = torch.where(alive, x, final.get(name, x))
        obs = torch.where((alive & ~terminated)[:, None], new_obs, obs)  # whatever comes after an end stays out
        alive = alive & ~terminated & ~truncated
        if on_step:
            on_step()
    steps = stacked(steps)
    everything = torch.cat((steps.obs, obs[None]))
    check_finite(env, steps.reward, everything)
    return Played(steps, everything, stacked(choices), stacked(acts) if acts else None, final)


class Noise(NamedTuple):
    """All randomness of the policies in a rollout."""

    low: torch.Tensor | None  # [T, E, A]
    master: torch.Tensor  # [M, E, K]
    explores: torch.Tensor | None  # [M, E], whether a decision is random
    uniform: torch.Tensor | None  # [M, E], what it is then


def draw_noise(agent, rngs, T, N, high_len, explore):
    """The `Noise` of N episodes a group, each group's from its own of the NumPy generators `rngs`."""
    M, K = -(-T // high_len), agent.subs.n

    def draw(sample):  # sample(rng) [steps, N, ...] of each group -> [steps, E, ...]
        return torch.from_numpy(np.concatenate([sample(rng) for rng in rngs], 1)).to(agent.master.policy_bias.device)

    low = draw(lambda rng: agent.subs.noise(rng, T, N)) if K else None
    master = draw(lambda rng: agent.master.noise(rng, M, N))
    if not explore:
        return Noise(low, master, None, None)
    explores = draw(lambda rng: rng.random((M, N)) < explore)
    return Noise(low, master, explores, draw(lambda rng: rng.integers(K, size=(M, N))))


def choose(master, x, noise, m):
    """The masters' m-th decision at normalised observations x [E, obs]."""
    params = master.params(x.view(master.n, -1, x.shape[-1])).flatten(0, 1)  # [E, K]
    z = master.sample(params, noise.master[m])
    if noise.explores is not None:
        z = torch.where(noise.explores[m], noise.uniform[m], z)
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


def master_batch(played, inputs, master, high_len, bootstrap, gamma, lam, reward_scale):
    """What the masters learn from: a transition is one decision, the rewards of its up to `high_len` steps summed.

    It is real if its first step is. `inputs` [T + 1, E, obs]: the observations, normalised.
    """
    steps, (T, E), M = played.steps, played.steps.reward.shape, len(played.choices.action)
    G, device = master.n, inputs.device
    starts = torch.arange(0, T, high_len, device=device)  # [M], the first step of each decision
    ends = (starts + high_len).clamp(max=T)  # and the one after its last
    reward = torch.zeros(M, E, device=device).index_add(0, torch.arange(T, device=device) // high_len, steps.reward)
    obs = torch.cat((inputs[starts], inputs[T:]))  # [M + 1, E, obs]
    value = master.value(obs.transpose(0, 1).reshape(G, E // G * (M + 1), -1)).view(E, M + 1).T  # [M + 1, E]
    bootstraps = played.unterminated[ends - 1]  # [M, E]
    bootstraps[-1] &= bootstrap | ~steps.valid[-1]
    goes_on = torch.cat((steps.valid[starts[1:]], torch.zeros_like(steps.valid[:1])))
    advantage = gae(reward * reward_scale, value, bootstraps, goes_on, gamma, lam)
    group = groups_of(E, G, device)
    return real_samples(steps.valid[starts], obs, played.choices, master, advantage, value, group, group)


def low_batch(played, inputs, agent, active, gamma, lam, reward_scale):
    """What the sub-policies learn from: a transition is a step, and belongs to the one `active` [T, E] at it.

    GAE runs over the time-ordered grid of all steps, across switches, as in the original.
    """
    steps, K, (T, E) = played.steps, agent.subs.n, active.shape
    values = agent.subs.value(inputs.view(1, (T + 1) * E, -1).expand(K, -1, -1)).view(K, T + 1, E)
    value = values.gather(0, torch.cat((active, active[-1:]))[None])[0]  # [T + 1, E], each by the one then active
    goes_on = torch.cat((steps.valid[1:], torch.zeros_like(steps.valid[:1])))
    advantage = gae(steps.reward * reward_scale, value, played.unterminated, goes_on, gamma, lam)
    group = groups_of(E, agent.master.n, inputs.device)
    return real_samples(steps.valid, inputs, played.acts, agent.subs, advantage, value, active, group)


def groups_of(E, G, device):
    """The group of each of E episodes, [E]."""
    return torch.arange(E, device=device).div(E // G, rounding_mode="floor")


def real_samples(valid, obs, decisions, policy, advantage, value, member, group):
    """The `Batch` of the decisions at `valid` [T or M, E]; obs and value have one more, member and group may be [E]."""
    log_prob = policy.distribution(decisions.params).log_prob(decisions.action)
    fields = (obs[:-1], decisions.action, log_prob, advantage, value[:-1], value[:-1] + advantage)
    return Batch(*(x[valid] for x in (*fields, member.expand_as(valid), group.expand_as(valid))))


def outcome(played, agent, active=None):
    """The `Outcome` of what was played; `active` [T, E] is the sub-policy at every step."""
    valid, G, K = played.steps.valid, agent.master.n, agent.subs.n
    (T, E), device = valid.shape, valid.device
    share = torch.zeros(G, 0, device=device)
    if active is not None:
        used = torch.nn.functional.one_hot(active, K) * valid[..., None]  # [T, E, K]
        share = used.view(T, G, E // G, K).sum((0, 2), dtype=torch.float32)
        share /= share.sum(1, keepdim=True)
    diverged = played.final.get("diverged", torch.zeros(E, dtype=torch.bool, device=device)).view(G, -1).sum(1)
    final = {name: x.view(G, -1) for name, x in played.final.items() if name != "diverged"}
    return Outcome(played.steps.reward.sum(0).view(G, -1), share, int(valid.sum()), diverged, final)


def joined(outcomes):
    """Outcomes of different groups as one, the groups in order."""
    episode_return, share, steps, diverged, final = zip(*outcomes, strict=True)
    final = {name: torch.cat([x[name] for x in final]) for name in final[0]}
    return Outcome(torch.cat(episode_return), torch.cat(share), sum(steps), torch.cat(diverged), final)
