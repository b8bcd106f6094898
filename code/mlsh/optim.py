"""Adam for policies with several members."""

from collections.abc import Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

MemberState = list[tuple[Tensor, dict[str, Tensor]]]  # a member's rows of the parameters, and their moments


class Members(Protocol):
    """A module whose parameters all lead with the number n of its members."""

    n: int

    def parameters(self) -> Any: ...


class Adam(torch.optim.Adam):
    """Adam over the members of a policy.

    With `per_member` each member has moments and a step count of its own, and an idle one stays as it is. With a shared
    count, a member that starts to learn late would take steps of several times the learning rate. Separate members cost
    time, and only sub-policies are ever idle.
    """

    def __init__(self, policy: Members, learning_rate: float, per_member: bool = False) -> None:
        self._n, self._first = policy.n, 0
        self._rows = [(p, list(p.detach())) for p in policy.parameters()] if per_member else []
        rows = [row for _, rows in self._rows for row in rows]
        super().__init__(rows or policy.parameters(), learning_rate, eps=1e-5, fused=True)

    def step(self, idle: Sequence[int] = ()) -> None:  # type: ignore[override]
        """Take a step along the policy's gradients with all members except the `idle` ones."""
        for p, rows in self._rows:
            for k, (row, gradient) in enumerate(zip(rows, p.grad.unbind(), strict=True)):
                row.grad = None if k in idle else gradient
        super().step()

    def check_finite(self, name: str) -> None:
        """Raise a FloatingPointError for the first member (of a policy `name`) that is not finite.

        After an infinite gradient the parameters are finite, but the moments are not, and nothing is learned any more.
        """
        parameters = self.param_groups[0]["params"]
        tensors = [x for p in parameters for x in (p, *self.state[p].values())]
        if torch.stack([x.sum() for x in tensors]).isfinite().all():  # cheaper than testing each number
            return
        for i, p in enumerate(parameters):
            for x in (p, *(x for x in self.state[p].values() if x.dim())):
                if not x.isfinite().all():
                    k = i % self._n if self._rows else int((~x.flatten(1).isfinite().all(1)).nonzero()[0])
                    raise FloatingPointError(f"{name} {self._first + k} is not finite after an update")

    def for_members(self, view: Members, members: range) -> Self:
        """An Adam for `view`, which holds some `members` of this one's policy. The moments are shared."""
        adam = type(self)(view, self.param_groups[0]["lr"], per_member=True)
        adam._first = members.start
        for (_, theirs), (_, ours) in zip(adam._rows, self._rows, strict=True):
            adam.state.update((row, self.state[ours[k]]) for k, row in zip(members, theirs, strict=True))
        return adam

    def member_state(self, k: int) -> MemberState:
        """A copy of member k's parameters, with their moments."""
        return [(row.clone(), self.state.get(row, {})) for row in (rows[k] for _, rows in self._rows)]

    @torch.no_grad()
    def load_member(self, k: int, state: MemberState) -> None:
        """Overwrite member k with what `member_state` returned for a policy of the same shape."""
        for (_, rows), (values, moments) in zip(self._rows, state, strict=True):
            rows[k].copy_(values)
            self.state[rows[k]] = {name: x.to(rows[k].device) for name, x in moments.items()}


def all_finite(module: nn.Module) -> bool:
    return all(bool(p.isfinite().all()) for p in module.parameters())
