"""How the samples of an epoch are dealt out to minibatches, each with one row of samples per member of a policy."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Layout(Protocol):
    """The minibatches of an epoch: rows of samples, [minibatches, n, width]."""

    mean_weights: np.ndarray  # float32; they sum to 1 over a row, or to 0 where a member has no sample

    def shuffle(self, rngs: Sequence[np.random.Generator]) -> np.ndarray:
        """The sample at each place in an epoch, int64 [minibatches, n, width]."""
        ...


def occurrence(label: np.ndarray) -> np.ndarray:
    """For each of the integers `label` [S], how many equal ones come before it, [S]."""
    order = np.argsort(label, kind="stable")
    count = np.bincount(label)
    first = count.cumsum() - count  # where each label starts in that order
    occurrences = np.empty_like(label)
    occurrences[order] = np.arange(len(label)) - first[label[order]]
    return occurrences


class MinibatchLayout:
    """The places of S samples in the minibatches of every epoch; `shuffle` fills them.

    A cell is one group's samples of one member. Each cell is spread evenly over the minibatches, in an order drawn from
    the group's own generator. So a group's part of a minibatch does not depend on the other groups.

    Rows have the width of the longest one. Padding has weight 0 and repeats a sample of its row.
    """

    def __init__(self, member: np.ndarray, group: np.ndarray, n: int, minibatches: int) -> None:
        """`member` and `group` [S] of each sample; groups are numbered from 0."""
        self._by_group = np.argsort(group, kind="stable")
        self._group_sizes = np.bincount(group)
        self._cell_by_group = (group * n + member)[self._by_group]
        cell = np.sort(self._cell_by_group)  # of the samples as `shuffle` orders them: cell after cell
        minibatch = occurrence(cell) * minibatches // np.bincount(cell)[cell]
        self._row = minibatch * n + cell % n
        self._column = occurrence(self._row)
        row_length = np.bincount(self._row, minlength=minibatches * n)
        self._shape = minibatches, n, int(row_length.max())
        weights = np.zeros((minibatches * n, row_length.max()), np.float32)
        weights[self._row, self._column] = 1 / row_length[self._row]
        self.mean_weights = weights.reshape(self._shape)
        self._padding = self.mean_weights == 0
        self._padded = weights.size > len(cell)

    def shuffle(self, rngs: Sequence[np.random.Generator]) -> np.ndarray:
        """The sample at each place in an epoch, int64 [minibatches, n, width]. `rngs`: one generator per group."""
        key = np.concatenate([rng.random(size) for rng, size in zip(rngs, self._group_sizes, strict=False)])
        shuffled = self._by_group[np.argsort(self._cell_by_group + key)]  # cell after cell
        minibatches, n, width = self._shape
        index = np.zeros((minibatches * n, width), np.int64)
        index[self._row, self._column] = shuffled
        index = index.reshape(self._shape)
        # Another member's sample as padding could be infinitely improbable, and zero times infinity is not a number.
        return np.where(self._padding, index[..., :1], index) if self._padded else index


class MemberRows:
    """The rows of some members of a `MinibatchLayout`, for a process that holds only their samples."""

    def __init__(self, whole: MinibatchLayout, member: np.ndarray, members: range) -> None:
        """`member` [S] of all samples; `members`: whose rows these are."""
        self._whole, self._members = whole, slice(members.start, members.stop)
        self._position = np.isin(member, members).cumsum() - 1
        self.mean_weights = whole.mean_weights[:, self._members]

    def shuffle(self, rngs: Sequence[np.random.Generator]) -> np.ndarray:
        """As for `MinibatchLayout`; `rngs` are the generators of all groups."""
        return self._position[self._whole.shuffle(rngs)[:, self._members]]
