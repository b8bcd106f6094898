"""Results of played episodes: returns, lengths, and each sub-policy's share of the steps."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlsh.slots import SlotRecord

USED = 0.01  # a sub-policy with a smaller share of the env steps counts as never chosen


def information(share: np.ndarray) -> float:
    """The mutual information of task and choice in bits, for shares [tasks, K] and equally likely tasks."""

    def entropy(p: np.ndarray) -> Any:
        return -(p * np.log2(np.where(p > 0, p, 1))).sum(-1)

    return max(0.0, float(entropy(share.mean(0)) - entropy(share).mean()))  # rounding could make it negative


def most_information(share: np.ndarray) -> float:
    """What `information` is at most: log2 of the number of tasks or of K, whichever is smaller."""
    return float(np.log2(min(share.shape)))


class Outcome(NamedTuple):
    """Results of N slots in each of G groups."""

    episode_return: Tensor  # [G, N], undiscounted and unscaled; the mean over the slot's complete episodes
    episode_length: Tensor  # [G, N], likewise
    share: Tensor  # [G, K], each sub-policy's share of the env steps; [G, 0] without sub-policies
    steps: int  # env steps
    diverged: Tensor  # [G], episodes whose simulation diverged
    final: dict[str, Tensor]  # numbers [G, N] from the info of the last steps; NaN where there was none

    @classmethod
    def of(cls, record: SlotRecord, active: Tensor, groups: int, K: int) -> "Outcome":
        """The outcome of a record, with the sub-policies or options `active` [T, E] of K at its steps."""
        of_steps = active[..., None] == torch.arange(K, device=active.device)  # [T, E, K]
        used = (of_steps & record.alive[..., None]).unflatten(1, (groups, -1))  # [T, G, N, K]
        share = used.sum((0, 2), dtype=torch.float32)
        share /= share.sum(1, keepdim=True)
        returns, lengths = complete_episodes(record)
        return cls(
            returns.view(groups, -1),
            lengths.view(groups, -1),
            share,
            int(record.alive.sum()),
            record.diverged.view(groups, -1).sum(1),
            {name: x.view(groups, -1) for name, x in record.final.items() if name != "diverged"},
        )

    @classmethod
    def of_returns(cls, episode_return: Tensor) -> "Outcome":
        """An outcome of which only the returns [G, N] are known."""
        unknown, groups = torch.full_like(episode_return, torch.nan), len(episode_return)
        return cls(episode_return, unknown, unknown[:, :0], 0, torch.zeros(groups, dtype=torch.long), {})

    def final_means(self) -> dict[str, list[float | None]]:
        """`final_NAME` -> its mean over each group's episodes; None for a group without it."""
        reported = {name: [group[~group.isnan()] for group in x] for name, x in self.final.items()}
        return {f"final_{n}": [x.float().mean().item() if len(x) else None for x in xs] for n, xs in reported.items()}

    def means(self) -> dict[str, np.ndarray]:
        """Each group's mean return, as `return`, and its `final_means`: float64 arrays [G], with NaN for None."""
        finals = {name: np.array(means, float) for name, means in self.final_means().items()}
        return {"return": self.episode_return.mean(1).numpy(force=True).astype(float)} | finals


def complete_episodes(record: SlotRecord) -> tuple[Tensor, Tensor]:
    """Mean return [E] and length [E] of each slot's complete episodes; without one, those of its steps so far."""
    ended = record.ended
    before_an_end = ended.flip(0).cumsum(0).flip(0) > 0  # [T, E], steps of an episode that is complete
    counted = torch.where(before_an_end.any(0), before_an_end, True)
    episodes = ended.sum(0).clamp(min=1)
    return (record.reward * counted).sum(0) / episodes, (counted & record.alive).sum(0) / episodes


def concatenate_groups(outcomes: Sequence[Outcome]) -> Outcome:
    """Outcomes of different groups as one, the groups in order. Their `final` may have different names."""
    returns, lengths, share, steps, diverged, _ = zip(*outcomes, strict=True)
    final = concatenate_final(outcomes, 0)
    return Outcome(torch.cat(returns), torch.cat(lengths), torch.cat(share), sum(steps), torch.cat(diverged), final)


def concatenate_slots(outcomes: Sequence[Outcome]) -> Outcome:
    """Outcomes of further slots of the same groups as one. Shares are weighted by the number of slots."""
    if len(outcomes) == 1:
        return outcomes[0]
    returns, lengths, share, steps, diverged, _ = zip(*outcomes, strict=True)
    slots = [x.shape[1] for x in returns]
    mean_share = sum((x * n for x, n in zip(share, slots, strict=True)), torch.zeros_like(share[0])) / sum(slots)
    all_diverged = torch.stack(diverged).sum(0)
    final = concatenate_final(outcomes, 1)
    return Outcome(torch.cat(returns, 1), torch.cat(lengths, 1), mean_share, sum(steps), all_diverged, final)


def concatenate_final(outcomes: Sequence[Outcome], dim: int) -> dict[str, Tensor]:
    """The numbers by name, concatenated along `dim`; NaN for an outcome without them."""
    names = dict.fromkeys(name for x in outcomes for name in x.final)
    missing = [torch.full_like(x.episode_return, torch.nan) for x in outcomes]
    return {
        name: torch.cat([x.final.get(name, nan) for x, nan in zip(outcomes, missing, strict=True)], dim)
        for name in names
    }
