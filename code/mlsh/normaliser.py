"""Observations scaled by their running mean and variance."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Moments = tuple[int, Tensor, Tensor]  # number of observations, their mean and variance


class Normaliser(nn.Module):
    """Scales observations to (x − μ)/σ, clipped to ±5, by running statistics that only `update` changes.

    Before the first update, and always if `enabled` is false, it returns observations unchanged. With `size` 0,
    `enabled` must be false. With several processes, `gather(x)` must return a list of every process's `x`. Then each
    process computes the same statistics, from the observations of all.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, size: int, enabled: bool = True, gather: Callable[[Any], list[Any]] | None = None) -> None:
        super().__init__()
        self.enabled = enabled
        self.gather = gather
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("var", torch.ones(size, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:  # [S, size]
        """Merge observations into the statistics (Chan, Golub and LeVeque 1979)."""
        if not len(self.mean):
            return
        mean = x.mean(0, dtype=torch.float64)
        chunks = x.split(min(2**14, 1 + 2**26 // x.shape[1]))  # float64 copies of all would take too much memory
        squares = sum(((chunk - mean).square().sum(0) for chunk in chunks), torch.zeros_like(mean))
        moments: Moments = len(x), mean, squares / len(x)
        for n, mean, var in self.gather(moments) if self.gather else [moments]:
            mean, var = mean.to(self.mean.device), var.to(self.mean.device)
            count = self.count + n
            delta = mean - self.mean
            total = self.var * self.count + var * n + delta**2 * self.count * n / count
            self.mean += delta * n / count
            self.var.copy_(total / count)
            self.count.copy_(count)

    def copy(self) -> "Normaliser":
        """A normaliser with the same statistics that this process updates alone."""
        other = Normaliser(len(self.mean), self.enabled).to(self.mean.device)
        other.load_state_dict(self.state_dict())
        return other

    def frozen(self) -> Callable[[Tensor], Tensor]:
        """A function of observations that does what `forward` does, with the present statistics."""
        if not self.enabled:
            return lambda x: x
        mean, std, known = self.mean.float(), self.var.float().sqrt() + 1e-8, self.count > 0
        return lambda x: torch.where(known, ((x - mean) / std).clamp(-5, 5), x)  # an `if` would wait for a GPU

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen()(x) if self.enabled else x
