"""Running statistics of observations, and observations scaled by them."""

import torch
from torch import nn


class Normaliser(nn.Module):
    """Scales observations to (x − μ)/σ, clipped to ±5, by running statistics that only `update` changes.

    Before the first update, and always with `enabled` false, it hands observations through. Where several processes
    observe, `gather` makes a list of every one's moments of what it is given. One of `size` 0 is to be disabled.
    """

    def __init__(self, size, enabled=True, gather=None):
        super().__init__()
        self.enabled = enabled
        self.gather = gather
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("var", torch.ones(size, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, x):  # [S, size]
        """Merge the observations `x` into the statistics (Chan, Golub and LeVeque 1979)."""
        if not len(self.mean):
            return
        mean = x.mean(0, dtype=torch.float64)
        squares = sum((part - mean).square().sum(0) for part in x.split(min(2**14, 1 + 2**26 // x.shape[1])))
        moments = len(x), mean, squares / len(x)
        for n, mean, var in self.gather(moments) if self.gather else [moments]:
            mean, var = mean.to(self.mean.device), var.to(self.mean.device)
            count = self.count + n
            delta = mean - self.mean
            squares = self.var * self.count + var * n + delta**2 * self.count * n / count
            self.mean += delta * n / count
            self.var.copy_(squares / count)
            self.count.copy_(count)

    def frozen(self):
        """A function of observations that does what `forward` does, by the statistics as they are now."""
        if not self.enabled:
            return lambda x: x
        mean, std, known = self.mean.float(), self.var.float().sqrt() + 1e-8, self.count > 0
        return lambda x: torch.where(known, ((x - mean) / std).clamp(-5, 5), x)  # on a GPU an `if` would wait for it

    def forward(self, x):
        return self.frozen()(x) if self.enabled else x
