"""Proximal policy optimisation: it knows policies and batches, and nothing of hierarchy."""

from typing import NamedTuple

import numpy as np
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from mlsh.errors import NotFinite


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


def gae(reward, value, bootstraps, goes_on, gamma, lam):
    """Generalised advantage estimation (Schulman et al. 2016) over a time-ordered grid.

    reward, bootstraps, goes_on [T, E]; value [T + 1, E]. Where `bootstraps` is false the episode terminated at that
    step, and is worth nothing from there on; where `goes_on` is false it ended there, terminated or truncated. Returns
    the advantages [T, E].
    """
    delta = reward + gamma * value[1:] * bootstraps - value[:-1]
    discount = gamma * lam * goes_on
    advantage = torch.empty_like(reward)
    last = torch.zeros_like(reward[0])
    for t in reversed(range(len(reward))):
        last = torch.addcmul(delta[t], discount[t], last)
        advantage[t] = last
    return advantage


def minibatches(member, group, n, parts, epochs, rngs, total=lambda x: x):
    """Shuffle the samples into `epochs` × `parts` minibatches, each with a row of samples for every member.

    The samples of one group and member are spread evenly over the parts, in an order drawn from that group's own
    generator, so a group's share of a minibatch does not depend on the other groups. `member`, `group`: int arrays
    [S], `group` counting from 0. `total` sums a tensor over the processes that have samples of the same members.

    Returns index [epochs * parts, n, width] (int64) and weight, same shape (float32), which sums to 1 over the row of
    all processes, or to 0 where a member has no sample; padding weighs 0, and repeats a sample of the row.
    """
    S = len(member)
    key = np.empty((epochs, S))
    for g, rng in enumerate(rngs):
        mine = np.flatnonzero(group == g)
        key[:, mine] = rng.random((epochs, len(mine)))
    cell = group * n + member
    order = np.lexsort((key, np.broadcast_to(cell, key.shape)))  # [epochs, S], by cell, then shuffled
    size = np.bincount(cell, minlength=n * len(rngs))
    sorted_cell = np.sort(cell)
    rank = np.arange(S) - (size.cumsum() - size)[sorted_cell]  # within the cell
    part = rank * parts // size[sorted_cell]  # [S], the same in every epoch
    row = part * n + member[order[0]]  # [S], minibatch and member
    by_row = np.argsort(row, kind="stable")
    length = np.bincount(row, minlength=parts * n)  # [parts * n]
    column = np.arange(S) - (length.cumsum() - length)[row[by_row]]
    index = np.zeros((epochs, parts * n, length.max()), np.int64)
    weight = np.zeros((parts * n, length.max()), np.float32)
    index[:, row[by_row], column] = order[:, by_row]
    everywhere = total(torch.from_numpy(length)).numpy()
    weight[row[by_row], column] = 1 / everywhere[row[by_row]]
    index = np.where(weight, index, index[:, :, :1])  # a sample of another member could be infinitely improbable
    shape = (epochs * parts, n, -1)
    return index.reshape(shape), np.tile(weight, (epochs, 1, 1)).reshape(shape)


def update(policy, optimizer, batch, rngs, *, parts, epochs, epsilon, c1, c2, target_kl=0.0, total=None):
    """PPO with the clipped objective: `epochs` passes over `batch` in `parts` minibatches each.

    With a `target_kl` the pass is the last in which the members' mean KL divergence from the policy that played
    exceeds it.

    `total` sums a tensor, in place, over the processes that learn the same policy from their own groups each.

    Every sample moves its own member's parameters only; a minibatch without a sample of a member leaves its
    parameters and Adam moments alone, and so does a batch with a single one. Advantages are normalised within a group
    and member. Returns a dict of [n] tensors, measured over the whole batch after the update (NaN for a member left
    alone): policy_loss, value_loss, entropy, kl, clip_fraction. Raises NotFinite if a parameter is not finite any more.
    """
    n = policy.n
    member, group = batch.member.cpu().numpy(), batch.group.cpu().numpy()
    alone = total is None
    total = total or (lambda x: x)
    index, weight = minibatches(member, group, n, parts, epochs, rngs, total)
    batch = batch._replace(advantage=normalise(batch.advantage, batch.group * n + batch.member, n * len(rngs)))
    weight[:, total(torch.from_numpy(np.bincount(member, minlength=n))).numpy() < 2] = 0
    weights = total(torch.from_numpy(weight.sum(2))).numpy()  # [epochs * parts, n]
    idle = [np.flatnonzero(row == 0) for row in weights]  # of each minibatch, the members without a sample
    index, weight = (torch.from_numpy(a).to(batch.obs.device) for a in (index, weight))
    fields = (batch.obs, batch.action, batch.log_prob, batch.advantage, batch.value_target)
    fields = [f[index] for f in fields]  # [epochs * parts, n, width, ...]
    kl = torch.zeros(2, device=batch.obs.device)  # of an epoch: the members' sum, and how many they were
    for i, (*minibatch, w, still) in enumerate(zip(*fields, weight, idle, strict=True)):
        if target_kl and i and i % parts == 0:
            kl = total(kl)
            if kl[0] > target_kl * kl[1]:
                break
            kl.zero_()
        obs, action, log_prob, advantage, value_target = minibatch
        params, value = policy(obs)
        new = policy.distribution(params)
        log_ratio = new.log_prob(action) - log_prob
        ratio = torch.exp(log_ratio.clamp(max=20))  # a random decision may have been all but impossible
        loss = -torch.min(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage)
        loss = loss + c1 * (value - value_target).square()
        if c2:
            loss = loss - c2 * new.entropy()
        if target_kl:
            kl += torch.stack((((ratio - 1 - log_ratio) * w).sum(), w.sum())).detach()
        optimizer.zero_grad()
        (loss * w).sum().backward()
        if not alone:
            gradients = [p.grad for p in policy.parameters()]
            vector_to_parameters(total(parameters_to_vector(gradients)), gradients)
        kept = [(t, t[still].clone()) for t in tensors(policy, optimizer)] if len(still) else []
        optimizer.step()
        for t, rows in kept:  # without a gradient Adam's momentum would still move them
            t[still] = rows

    # an infinite gradient leaves the parameters finite, but Adam's moments not, and nothing would ever be learned again
    finite = torch.stack([t.flatten(1).isfinite().all(1) for t in tensors(policy, optimizer)]).all(0)  # [n]
    if not finite.all():
        member = finite.logical_not().nonzero()[0].item()
        raise NotFinite(f"{policy.name} {member} is not finite after an update")

    with torch.no_grad():
        # the last epoch has every sample once: [parts, n, width, ...] -> [n, parts * width, ...]
        last = [f[-parts:].transpose(0, 1).flatten(1, 2) for f in (*fields, weight > 0)]
        obs, action, log_prob, advantage, value_target, w = last
        w = w / total(w.sum(1, dtype=torch.float32))[:, None]
        params, value = policy(obs)
        new = policy.distribution(params)
        log_ratio = new.log_prob(action) - log_prob
        ratio = log_ratio.exp()
        means = {
            "policy_loss": -torch.min(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage),
            "value_loss": (value - value_target).square(),
            "entropy": new.entropy(),
            "kl": ratio - 1 - log_ratio,
            "clip_fraction": ((ratio - 1).abs() > epsilon).float(),
        }
        return {name: total((x * w).sum(1)) for name, x in means.items()}


def adam(policy, learning_rate):
    """The optimiser of masters and sub-policies alike."""
    return torch.optim.Adam(policy.parameters(), learning_rate, eps=1e-5, fused=True)


def tensors(policy, optimizer):
    """The policy's parameters and what the optimiser keeps of each, all with a leading member dimension."""
    return [t.detach() for p in policy.parameters() for t in (p, *optimizer.state[p].values()) if t.dim()]


def normalise(advantage, cell, cells):
    """Shift and scale the advantages [S] to mean 0 and standard deviation 1 within each cell."""
    count = torch.bincount(cell, minlength=cells).clamp(min=1)
    zero = torch.zeros(cells, device=advantage.device)
    mean = zero.index_add(0, cell, advantage) / count
    centred = advantage - mean[cell]
    std = (zero.index_add(0, cell, centred.square()) / count).sqrt()
    return centred / (std[cell] + 1e-8)
