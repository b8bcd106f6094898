"""Proximal policy optimisation: it knows policies and batches, and nothing of hierarchy."""

import math
from typing import NamedTuple

import numpy as np
import torch

from mlsh.compiled import any_size, compiled
from mlsh.minibatches import Minibatches

CAP = 20.0  # of the log ratio: nothing times infinity is not a number
FIGURES = ("policy_loss", "value_loss", "entropy", "kl", "clip_fraction", "explained_variance")  # of an update


class Batch(NamedTuple):
    """S samples. Each is learned from by one member of the policy, and belongs to one task group."""

    obs: torch.Tensor  # [S, obs], normalised
    action: torch.Tensor  # [S] or [S, A]
    log_prob: torch.Tensor  # [S]
    advantage: torch.Tensor  # [S]
    value: torch.Tensor  # [S]
    value_target: torch.Tensor  # [S]
    member: torch.Tensor  # [S], which of the policy's n networks acted
    group: torch.Tensor  # [S]
    weight: torch.Tensor | None = None  # [S], how much it counts among its member's samples; None: all the same


class Samples(NamedTuple):
    """What the objective wants to know of samples; all tensors have the same leading dimensions."""

    obs: torch.Tensor
    action: torch.Tensor
    log_prob: torch.Tensor
    advantage: torch.Tensor
    value_target: torch.Tensor


def gae(reward, value, following, goes_on, gamma, lam):
    """Generalised advantage estimation (Schulman et al. 2016) over a time-ordered grid.

    All [T, E]. `value`: of what was observed before the step; `following`: of what followed it, 0 where the episode
    terminated. Where `goes_on` is false it ended there, terminated or truncated, or the grid does. Returns the
    advantages [T, E].
    """
    delta = reward + gamma * following - value
    discount = gamma * lam * goes_on
    advantage = torch.empty_like(reward)
    last = torch.zeros_like(reward[0])
    for t in reversed(range(len(reward))):
        last = torch.addcmul(delta[t], discount[t], last)
        advantage[t] = last
    return advantage


class Surrogate(NamedTuple):
    """PPO's objective, sample by sample; every tensor has the samples' shape."""

    policy_loss: torch.Tensor  # −min(rA, clip(r)A), r the ratio, within dual clip
    value_loss: torch.Tensor  # squared error
    log_ratio: torch.Tensor

    @property
    def ratio(self):
        """Of the new policy's probability to the old one's."""
        return self.log_ratio.clamp(max=CAP).exp()

    @property
    def kl(self):
        """An estimate of the KL divergence of the new policy from the old one, never negative: r − 1 − log r."""
        return self.ratio - 1 - self.log_ratio.clamp(max=CAP)


def surrogate(new, value, samples, epsilon, dual_clip=0.0):
    """The `Surrogate` of `Samples` under the distribution `new`, with the values that go with it.

    With a `dual_clip` (Ye et al. 2020) a bad action with a ratio beyond it teaches nothing. Without, its gradient grows
    with the ratio, which now and then has undone a policy that was learned, in a single update.
    """
    log_ratio = new.log_prob(samples.action) - samples.log_prob
    ratio = log_ratio.clamp(max=math.log(max(dual_clip, 1 + epsilon)) if dual_clip else CAP).exp()
    policy_loss = -torch.min(ratio * samples.advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * samples.advantage)
    return Surrogate(policy_loss, (value - samples.value_target).square(), log_ratio)


def total_loss(objective, new, c1, c2):
    """The loss of a `Surrogate`, sample by sample: with c1 times the value loss, and c2 times the entropy of `new`."""
    loss = objective.policy_loss + c1 * objective.value_loss
    return loss - c2 * new.entropy() if c2 else loss


def update(
    policy, optimizer, batch, rngs, *, parts, epochs, epsilon, c1, c2, dual_clip=0.0, target_kl=0.0, minibatches=None
):
    """PPO with the clipped objective: `epochs` passes over `batch` in `parts` minibatches each.

    With a `target_kl` a member's last pass is the first in which its mean KL divergence from the policy that played
    exceeds it, if the `optimizer` has members `apart`. `minibatches`: what deals out `batch`, in place of `parts`.

    Every sample moves its own member's parameters only; a minibatch without a sample of a member leaves its
    parameters and Adam moments alone, and so does a batch with a single one. Advantages are normalised within a group
    and member; a batch's weights are scaled to a mean of 1 over a member's samples. Returns a dict of [n] tensors,
    measured over the whole batch after the update, all samples alike (NaN for a member left alone), by the names in
    `FIGURES`. Raises FloatingPointError if a parameter is not finite any more.
    """
    n, device = policy.n, batch.obs.device
    member, group = batch.member.cpu().numpy(), batch.group.cpu().numpy()
    minibatches = minibatches or Minibatches(member, group, n, parts)
    batch = batch._replace(advantage=normalise(batch.advantage, batch.group * n + batch.member, n * len(rngs)))
    count = np.bincount(member, minlength=n)
    if batch.weight is not None:
        weights = torch.zeros(n, device=device).index_add(0, batch.member, batch.weight)
        scale = torch.where(weights > 0, torch.from_numpy(count).to(device) / weights, 0)
        batch = batch._replace(weight=batch.weight * scale[batch.member])
    weights = minibatches.weight * (count >= 2)[:, None]
    learns = weights.any(2)  # [parts, n], whether a member has a sample in a minibatch
    weight = torch.from_numpy(weights).to(device)
    learn, parameters = compiled(gradients) if policy.compiled else gradients, list(policy.parameters())
    if policy.compiled:
        any_size(batch)
    kl = torch.zeros(n, device=device)  # of an epoch, the sum over its minibatches
    for epoch in range(epochs):
        if target_kl and epoch:
            learns = learns & (kl.cpu().numpy() <= target_kl * learns.sum(0))
            if not learns.any():
                break
            kl.zero_()
        index = torch.from_numpy(minibatches.shuffle(rngs)).to(device)
        for rows, w, awake in zip(index, weight, learns, strict=True):
            learned, divergence = learn(policy, batch, rows, w, epsilon, dual_clip, c1, c2, measured=target_kl > 0)
            for parameter, gradient in zip(parameters, learned, strict=True):
                parameter.grad = gradient
            optimizer.step(np.flatnonzero(~awake))
            if target_kl:
                kl += divergence
    optimizer.check_finite(policy.name)
    each = (weight > 0) / torch.from_numpy(np.where(count < 2, np.nan, count)).to(device)[:, None]
    parts = (figures(policy, samples_of(batch, rows), w, epsilon) for rows, w in zip(index, each, strict=True))
    return named(torch.stack(list(parts)).sum(0))  # an epoch has every sample once


def samples_of(batch, index):
    """The `Samples` of a batch at `index`, of any shape."""
    return Samples(*(getattr(batch, name)[index] for name in Samples._fields))


def gradients(policy, batch, index, weight, epsilon, dual_clip, c1, c2, measured=False):
    """What a minibatch, at `index` [n, width] of a batch, teaches each parameter of the policy: a list of gradients.

    `weight` [n, width]: of its samples in the loss, beside the batch's own. If `measured`, each member's sum of KL
    divergences [n] is the second thing returned, else None. Eager or compiled, this is the function that learns.
    """
    samples = samples_of(batch, index)
    params, value = policy(samples.obs)
    new = policy.distribution(params)
    objective = surrogate(new, value, samples, epsilon, dual_clip)
    kl = (objective.kl * weight).sum(1).detach() if measured else None
    if batch.weight is not None:
        weight = weight * batch.weight[index]
    loss = (total_loss(objective, new, c1, c2) * weight).sum()
    return torch.autograd.grad(loss, list(policy.parameters())), kl


@torch.no_grad()
def figures(policy, samples, weight, epsilon):
    """How the policy stands to samples [n, width, ...] of another: sums by `weight`, float64 [8, n]; see `named`."""
    params, value, *_ = policy(samples.obs)
    new = policy.distribution(params)
    objective = surrogate(new, value, samples, epsilon)
    clipped, error = (objective.ratio - 1).abs() > epsilon, value - samples.value_target
    values = (objective.policy_loss, objective.value_loss, new.entropy(), objective.kl, clipped)
    moments = (error, samples.value_target, samples.value_target.double().square())
    return torch.stack([(x * weight).sum(1) for x in (*values, *moments)])


def named(means):
    """`FIGURES` by name, float32 [n] each, from what `figures` gives when the weights of a member sum to 1."""
    *first, error, target, square = means
    missing, variance = first[1] - error.square(), square - target.square()
    explained = 1 - missing / variance.where(variance > 1e-12 * square, torch.nan)  # none where targets do not vary
    return {name: x.float() for name, x in zip(FIGURES, (*first, explained), strict=True)}


class Adam(torch.optim.Adam):
    """Adam over the members of a policy.

    With `apart` it has moments and a count of steps for each member, and one that is idle stays as it is: with a shared
    count one that begins late would move several times the learning rate a step. It costs time with many members, and
    only the sub-policies are ever idle.
    """

    def __init__(self, policy, learning_rate, apart=False):
        self._n, self._first = policy.n, 0
        self._apart = [(p, list(p.detach())) for p in policy.parameters()] if apart else []
        rows = [row for _, rows in self._apart for row in rows]
        super().__init__(rows or policy.parameters(), learning_rate, eps=1e-5, fused=True)

    def step(self, idle=()):
        """Take a step by the policy's gradients, with all members but those in `idle`."""
        for p, rows in self._apart:
            for k, row in enumerate(rows):
                row.grad = None if k in idle else p.grad[k]
        super().step()

    def check_finite(self, name):
        """Raise a FloatingPointError for the first member, called `name`, with a parameter or moment that is not.

        An infinite gradient leaves the parameters finite, but the moments not, and nothing would ever be learned again.
        """
        for i, p in enumerate(self.param_groups[0]["params"]):
            for x in (p, *(x for x in self.state[p].values() if x.dim())):
                if not x.isfinite().all():
                    k = i % self._n if self._apart else (~x.flatten(1).isfinite().all(1)).nonzero()[0].item()
                    raise FloatingPointError(f"{name} {self._first + k} is not finite after an update")

    def part(self, policy, members):
        """An Adam, `apart`, of `policy`, which is that part of this one's with these `members` (a range).

        The moments are shared.
        """
        part = Adam(policy, self.param_groups[0]["lr"], apart=True)
        part._first = members.start
        for (_, theirs), (_, ours) in zip(part._apart, self._apart, strict=True):
            part.state.update((row, self.state[ours[k]]) for k, row in zip(members, theirs, strict=True))
        return part

    def member(self, k):
        """What there is of member k, if `apart`: a list of its parameters and their moments."""
        return [(row.clone(), self.state.get(row, {})) for row in (rows[k] for _, rows in self._apart)]

    @torch.no_grad()
    def put(self, k, member):
        """Make member k what `member` gave, of a policy and Adam that are alike."""
        for (_, rows), (values, state) in zip(self._apart, member, strict=True):
            rows[k].copy_(values)
            self.state[rows[k]] = {name: x.to(rows[k].device) for name, x in state.items()}


def normalise(advantage, cell, cells):
    """Shift and scale the advantages [S] to mean 0 and standard deviation 1 within each cell."""
    count = torch.bincount(cell, minlength=cells).clamp(min=1)
    zero = torch.zeros(cells, device=advantage.device)
    mean = zero.index_add(0, cell, advantage) / count
    centred = advantage - mean[cell]
    std = (zero.index_add(0, cell, centred.square()) / count).sqrt()
    return centred / (std[cell] + 1e-8)
