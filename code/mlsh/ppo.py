"""Proximal policy optimisation of policies with several members. It does not depend on the hierarchy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from mlsh.compiled import compiled, mark_any_size
from mlsh.minibatches import Layout, MinibatchLayout
from mlsh.models import ActorCritic
from mlsh.optim import Adam

MAX_LOG_RATIO = 20.0  # keeps the ratio finite: zero times infinity is not a number
FIGURES = ("policy_loss", "value_loss", "entropy", "kl", "clip_fraction", "explained_variance")  # see `figures_of`
MIN_SAMPLES = 2  # a member with fewer samples is not updated: normalised, a single advantage is 0


@dataclass(frozen=True)
class PPOSettings:
    """How `update` learns from a batch."""

    minibatches: int  # per epoch
    epochs: int = 10
    clip: float = 0.2  # ε of the clipped ratio
    value_coef: float = 0.5
    entropy_coef: float = 0.0
    dual_clip: float = 0.0  # largest ratio from which a bad action is learned; 0 for no limit
    target_kl: float = 0.0  # divergence above which a member makes no further epoch; 0 for no limit
    anchor_coef: float = 0.0  # coefficient of KL(policy ‖ anchor), where a batch has an `anchor`


class Batch(NamedTuple):
    """S samples. One member of the policy learns from each, and each belongs to one task group."""

    obs: Tensor  # [S, obs], normalised
    action: Tensor  # [S] or [S, A]
    log_prob: Tensor  # [S]
    advantage: Tensor  # [S]
    value: Tensor  # [S]
    value_target: Tensor  # [S]
    member: Tensor  # [S], the index of the network that acted, among the policy's n
    group: Tensor  # [S]
    importance: Tensor | None = None  # [S], importance weights, compared within a member; None for equal ones
    anchor: Tensor | None = None  # [S, A or 2A], params of the policies that the learned ones should stay near

    def select(self, which: Tensor) -> Self:
        """The samples at `which`, a boolean mask [S] or indices."""
        selected: Any = [None if x is None else x[which] for x in self]
        return type(self)(*selected)


class Samples(NamedTuple):
    """What the objective needs of samples. All tensors have the same leading dimensions."""

    obs: Tensor
    action: Tensor
    log_prob: Tensor
    advantage: Tensor
    value_target: Tensor


def gae(
    reward: Tensor, value: Tensor, following: Tensor, goes_on: Tensor, gamma: float, lam: float
) -> Tensor:  # all [T, E]
    """Generalised advantage estimation (Schulman et al. 2016) over a time-ordered grid.

    `value` belongs to the observation before the step, and `following` to the one after it; `following` is 0 where the
    episode terminated. `goes_on` is false where the episode, or the grid, ends with the step. Returns the advantages.
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
    """PPO's objective for each sample; every tensor has the samples' shape."""

    policy_loss: Tensor  # −min(rA, clip(r)A) for the ratio r, limited by the dual clip
    value_loss: Tensor  # squared error
    log_ratio: Tensor

    @property
    def ratio(self) -> Tensor:
        """The action's probability under the new policy, divided by that under the old one."""
        return self.log_ratio.clamp(max=MAX_LOG_RATIO).exp()

    @property
    def kl(self) -> Tensor:
        """An estimate of the KL divergence of the new policy from the old one that is never negative: r − 1 − log r."""
        return self.ratio - 1 - self.log_ratio.clamp(max=MAX_LOG_RATIO)


def surrogate(new: Distribution, value: Tensor, samples: Samples, clip: float, dual_clip: float = 0.0) -> Surrogate:
    """The `Surrogate` of samples under the distribution `new` and its values.

    The gradient of a bad action grows with its ratio, and now and then has undone a learned policy in a single update.
    With a `dual_clip` (Ye et al. 2020) nothing is learned from a bad action with a larger ratio.
    """
    log_ratio = new.log_prob(samples.action) - samples.log_prob
    largest = math.log(max(dual_clip, 1 + clip)) if dual_clip else MAX_LOG_RATIO
    ratio = log_ratio.clamp(max=largest).exp()
    policy_loss = -torch.min(ratio * samples.advantage, ratio.clamp(1 - clip, 1 + clip) * samples.advantage)
    return Surrogate(policy_loss, (value - samples.value_target).square(), log_ratio)


def total_loss(objective: Surrogate, new: Distribution, value_coef: float, entropy_coef: float) -> Tensor:
    """The loss of each sample: policy loss plus value loss minus entropy bonus."""
    loss = objective.policy_loss + value_coef * objective.value_loss
    return loss - entropy_coef * new.entropy() if entropy_coef else loss


def update(
    policy: ActorCritic,
    optimizer: Adam,
    batch: Batch,
    rngs: Sequence[np.random.Generator],
    settings: PPOSettings,
    layout: Layout | None = None,
) -> dict[str, Tensor]:
    """Learn from a batch by PPO with the clipped objective.

    Each sample changes the parameters of its own member only. A member without a sample in a minibatch keeps its
    parameters and Adam's moments, and so does one with fewer than two samples in the batch. Advantages are normalised
    within each group and member. Importance weights are scaled to a mean of 1 within each member.

    With a `target_kl` a member stops after the first epoch in which its mean KL divergence from the behaviour policy
    exceeds it; this needs an `optimizer` with `per_member`. If the batch has an `anchor`, the loss also has
    `anchor_coef` times KL(policy ‖ anchor). `rngs`: one generator per group. `layout`: how samples are dealt out to
    minibatches, if `batch` holds only some members' samples.

    Returns `FIGURES` by name, [n] each. They are measured over the whole batch after the update, without importance
    weights, and are NaN for a member that was not updated. Raises FloatingPointError if a parameter is not finite. The
    member that it names need not be the cause, because a gradient that is not finite spreads where rows are split.
    """
    n, device = policy.n, batch.obs.device
    member, group = batch.member.cpu().numpy(), batch.group.cpu().numpy()
    samples_of_member = np.bincount(member, minlength=n)
    if layout is None:
        layout = MinibatchLayout(member, group, n, settings.minibatches, policy.splits)
    batch = batch._replace(
        advantage=normalise_advantages(batch.advantage, batch.group * n + batch.member, n * len(rngs)),
        importance=scale_importance(batch, samples_of_member),
    )
    mean_weights = layout.mean_weights * (samples_of_member >= MIN_SAMPLES)[layout.member, None]
    one_hot = np.eye(n, dtype=np.float32)[layout.member]  # [R, n]
    learns = np.any(mean_weights, axis=2) @ one_hot > 0  # [minibatches, n], whether a member has a sample there
    on_device = torch.from_numpy(mean_weights).to(device)  # [minibatches, R, width]
    rows = None if np.array_equal(layout.member, np.arange(n)) else torch.from_numpy(one_hot).to(device)
    learn = compiled(gradients) if policy.compiled else gradients
    parameters = list(policy.parameters())
    names = ("clip", "dual_clip", "value_coef", "entropy_coef", "anchor_coef")
    coefficients = [getattr(settings, name) for name in names]
    if policy.compiled:
        mark_any_size(batch)
    index = on_device  # a placeholder, which every epoch replaces
    epoch_kl = torch.zeros(n, device=device)  # summed over the minibatches of an epoch
    for epoch in range(settings.epochs):
        if settings.target_kl and epoch:
            learns &= epoch_kl.cpu().numpy() <= settings.target_kl * learns.sum(0)
            if not learns.any():
                break
            epoch_kl.zero_()
        index = torch.from_numpy(layout.shuffle(rngs)).to(device)
        for samples, weights, learning in zip(index, on_device, learns, strict=True):
            found, kl = learn(policy, batch, samples, weights, rows, *coefficients, with_kl=settings.target_kl > 0)
            for parameter, gradient in zip(parameters, found, strict=True):
                parameter.grad = gradient
            optimizer.step(idle=np.flatnonzero(~learning).tolist())
            if kl is not None:
                epoch_kl += kl
    optimizer.check_finite(policy.name)
    weights = (on_device > 0) / torch.from_numpy(samples_of_member.clip(1.0)[layout.member, None]).to(device)
    figures = batch_figures(policy, batch, index, weights, rows, settings.clip)
    updated = torch.from_numpy(samples_of_member >= MIN_SAMPLES).to(device)
    return {name: x.where(updated, torch.nan) for name, x in figures.items()}


@torch.no_grad()
def batch_figures(
    policy: ActorCritic, batch: Batch, index: Tensor, weights: Tensor, rows: Tensor | None, clip: float
) -> dict[str, Tensor]:
    """`FIGURES` over a whole batch, minibatch by minibatch; `index` and `weights` [minibatches, R, width] of an epoch.

    An epoch holds every sample once, so the sums over its minibatches are sums over the batch.
    """
    sums: list[Tensor] = []
    for samples, each in zip(index, weights, strict=True):
        minibatch = samples_of(batch, samples)
        params, value = policy(minibatch.obs, rows)
        sums.append(figure_sums(policy.distribution(params), value, minibatch, each, clip))
    return figures_of(sum_by_member(torch.stack(sums).sum(0), rows))


def sum_by_member(x: Tensor, rows: Tensor | None) -> Tensor:
    """Sums over each member's rows, [..., R] -> [..., n]. `rows` [R, n] as for `gradients`.

    A matrix product would do the same, but there one infinite number would make the sums of all members NaN.
    """
    return x if rows is None else x[..., None].where(rows > 0, 0).sum(-2)


def scale_importance(batch: Batch, samples_of_member: np.ndarray) -> Tensor | None:
    """The importance weights [S] of a batch, scaled to a mean of 1 within each member."""
    if batch.importance is None:
        return None
    device = batch.importance.device
    total = torch.zeros(len(samples_of_member), device=device).index_add(0, batch.member, batch.importance)
    scale = torch.where(total > 0, torch.from_numpy(samples_of_member).to(device) / total, 0)
    return batch.importance * scale[batch.member]


def samples_of(batch: Any, index: Any) -> Samples:
    """The `Samples` of a record with their fields, at an index of any shape."""
    return Samples(*(getattr(batch, name)[index] for name in Samples._fields))


def gradients(
    policy: ActorCritic,
    batch: Batch,
    index: Tensor,  # [R, width], the minibatch's samples; each row belongs to a member
    mean_weights: Tensor,  # [R, width], weights with which a member's samples are averaged
    rows: Tensor | None,  # [R, n], 1 where a row belongs to a member; None if each member has one row
    clip: float,
    dual_clip: float,
    value_coef: float,
    entropy_coef: float,
    anchor_coef: float = 0.0,
    with_kl: bool = False,
) -> tuple[Sequence[Tensor], Tensor | None]:
    """The gradient of each parameter from a minibatch, and with `with_kl` each member's mean KL divergence [n].

    This is the function that torch compiles. Its settings are plain numbers, for which it is not compiled again.
    """
    samples = samples_of(batch, index)
    params, value = policy(samples.obs, rows)
    new = policy.distribution(params)
    objective = surrogate(new, value, samples, clip, dual_clip)
    kl = sum_by_member((objective.kl * mean_weights).sum(1), rows).detach() if with_kl else None
    if batch.importance is not None:
        mean_weights = mean_weights * batch.importance[index]
    loss = total_loss(objective, new, value_coef, entropy_coef)
    if batch.anchor is not None:
        loss = loss + anchor_coef * kl_divergence(new, policy.distribution(batch.anchor[index]))
    loss = (loss * mean_weights).sum()
    return torch.autograd.grad(loss, list(policy.parameters())), kl


def figure_sums(new: Distribution, value: Tensor, samples: Samples, weights: Tensor, clip: float) -> Tensor:
    """Sums over samples [R, width, …] with float64 weights [R, width], from which `figures_of` gets the figures.

    `new` and `value` are the policy's at the samples. Returns float64 [8, R]: policy loss, value loss, entropy, KL
    divergence, whether the ratio was clipped, the value's error, the value's target and its square.
    """
    objective = surrogate(new, value, samples, clip)
    clipped, error = (objective.ratio - 1).abs() > clip, value - samples.value_target
    losses = (objective.policy_loss, objective.value_loss, new.entropy(), objective.kl, clipped)
    moments = (error, samples.value_target, samples.value_target.double().square())
    return torch.stack([(x * weights).sum(1) for x in (*losses, *moments)])


def figures_of(means: Tensor) -> dict[str, Tensor]:
    """`FIGURES` by name, float32 [n] each. `means` are `figure_sums` whose weights add up to 1 for each member.

    `explained_variance` is 1 − Var(target − value) / Var(target), and NaN where all targets are the same.
    """
    *losses, error, target, square = means
    unexplained, variance = losses[1] - error.square(), square - target.square()
    explained = 1 - unexplained / variance.where(variance > 1e-12 * square, torch.nan)
    return {name: x.float() for name, x in zip(FIGURES, (*losses, explained), strict=True)}


def normalise_advantages(advantage: Tensor, cell: Tensor, cells: int) -> Tensor:
    """Shift and scale advantages [S] to mean 0 and standard deviation 1 within each cell, given by its number [S]."""
    count = torch.bincount(cell, minlength=cells).clamp(min=1)
    zero = torch.zeros(cells, device=advantage.device)
    mean = zero.index_add(0, cell, advantage) / count
    centred = advantage - mean[cell]
    std = (zero.index_add(0, cell, centred.square()) / count).sqrt()
    return centred / (std[cell] + 1e-8)
