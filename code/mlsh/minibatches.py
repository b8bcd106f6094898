"""How the samples of an epoch are dealt out to minibatches, each with one or more rows of samples per member."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

SAVING = 1.5  # rows are split if one row per member costs more than this many times as much; measured on a CPU


class Layout(Protocol):
    """The minibatches of an epoch: R rows of samples each, [minibatches, R, width]."""

    member: np.ndarray  # int64 [R], the member of each row, ascending; members without samples may have none
    mean_weights: np.ndarray  # float32; they sum to 1 over a member's rows, or to 0 where it has no sample

    def shuffle(self, rngs: Sequence[np.random.Generator]) -> np.ndarray:
        """The sample at each place in an epoch, int64 [minibatches, R, width]."""
        ...


def occurrence(label: np.ndarray) -> np.ndarray:
    """For each of the integers `label` [S], how many equal ones come before it, [S]."""
    order = np.argsort(label, kind="stable")
    count = np.bincount(label)
    first = count.cumsum() - count  # where each label starts in that order
    occurrences = np.empty_like(label)
    occurrences[order] = np.arange(len(label)) - first[label[order]]
    return occurrences


def rows_of_members(count: np.ndarray) -> tuple[np.ndarray, int]:
    """How many rows each member gets in a minibatch, [n], and their width.

    `count` [minibatches, n] is how many samples each member has. With one row per member, every row is as wide as the
    fullest member's. If few members have most samples, most places are then empty. In that case rows have the mean
    width. The fullest members get several rows, and members without samples get none.
    """
    n, widest = count.shape[1], int(count.max())
    width = -(-int(count.sum(1).max()) // n)  # rounded up
    rows = -(-count.max(0) // width)
    # A row costs `width` products with a member's parameters. Copying the parameters to the row costs n more.
    if n * widest > SAVING * rows.sum() * (width + n):
        return rows, width
    return np.ones(n, np.int64), widest


class MinibatchLayout:
    """The places of S samples in the minibatches of every epoch; `shuffle` fills them.

    A cell is one group's samples of one member. Each cell is spread evenly over the minibatches, in an order drawn from
    the group's own generator. So a group's part of a minibatch does not depend on the other groups.

    Empty places have weight 0 and repeat a sample of their member. Another member's sample could be infinitely
    improbable, and zero times infinity is not a number. A member that has no sample repeats any; it does not learn.
    """

    def __init__(self, member: np.ndarray, group: np.ndarray, n: int, minibatches: int, split: bool = True) -> None:
        """`member` and `group` [S] of each sample; groups are numbered from 0. `split`: whether rows may be split."""
        self._by_group = np.argsort(group, kind="stable")
        self._group_sizes = np.bincount(group)
        self._cell_by_group = (group * n + member)[self._by_group]
        cell = np.sort(self._cell_by_group)  # of the samples as `shuffle` orders them: cell after cell
        minibatch = occurrence(cell) * minibatches // np.bincount(cell)[cell]
        part = minibatch * n + cell % n  # a member's samples in a minibatch
        count = np.bincount(part, minlength=minibatches * n)
        rows, width = rows_of_members(count.reshape(minibatches, n)) if split else (np.ones(n, np.int64), count.max())
        first = rows.cumsum() - rows  # each member's first row
        self.member = np.arange(n).repeat(rows)
        place = occurrence(part)
        self._row = minibatch * len(self.member) + first[cell % n] + place // width
        self._column = place % width
        self._shape = minibatches, len(self.member), width
        weights = np.zeros((minibatches * len(self.member), width), np.float32)
        weights[self._row, self._column] = 1 / count[part]
        self.mean_weights = weights.reshape(self._shape)
        some_sample = np.zeros(n, np.int64)  # of each member; 0 if it has none
        some_sample[member] = np.arange(len(member))
        self._padding = some_sample[self.member, None]

    def shuffle(self, rngs: Sequence[np.random.Generator]) -> np.ndarray:
        """The sample at each place in an epoch, int64 [minibatches, R, width]. `rngs`: one generator per group."""
        key = np.concatenate([rng.random(size) for rng, size in zip(rngs, self._group_sizes, strict=False)])
        shuffled = self._by_group[np.argsort(self._cell_by_group + key)]  # cell after cell
        minibatches, _, width = self._shape
        index = np.tile(self._padding, (minibatches, width))
        index[self._row, self._column] = shuffled
        return index.reshape(self._shape)


class MemberRows:
    """The rows of some members of a `MinibatchLayout`, for a process that holds only their samples."""

    def __init__(self, whole: MinibatchLayout, member: np.ndarray, members: range) -> None:
        """`member` [S] of all samples; `members`: whose rows these are."""
        self._whole, self._rows = whole, np.isin(whole.member, members)
        self._position = np.isin(member, members).cumsum() - 1
        self.member = whole.member[self._rows] - members.start
        self.mean_weights = whole.mean_weights[:, self._rows]

    def shuffle(self, rngs: Sequence[np.random.Generator]) -> np.ndarray:
        """As for `MinibatchLayout`; `rngs` are the generators of all groups."""
        return self._position[self._whole.shuffle(rngs)[:, self._rows]]
