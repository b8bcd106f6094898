"""How an epoch deals its samples out to minibatches, with a row of each for every member of a policy."""

import numpy as np


def rank(label):
    """How many of the same label come before it, for each of the integers `label` [S]."""
    order = np.argsort(label, kind="stable")
    count = np.bincount(label)
    first = count.cumsum() - count  # where each label begins in that order
    ranks = np.empty_like(label)
    ranks[order] = np.arange(len(label)) - first[label[order]]
    return ranks


class Minibatches:
    """An epoch's shuffle of samples into `parts` minibatches, each with a row of samples for every member.

    The samples of one group and member are spread evenly over the parts, in an order drawn from that group's own
    generator, so a group's share of a minibatch does not depend on the other groups. `member`, `group`: int arrays
    [S], `group` counting from 0.

    `weight` [parts, n, width] (float32) sums to 1 over a row, or to 0 where a member has no sample; padding weighs 0,
    and repeats a sample of the row.
    """

    def __init__(self, member, group, n, parts):
        self._by_group, self._sizes = np.argsort(group, kind="stable"), np.bincount(group)
        self._cell = (group * n + member)[self._by_group]  # of a group and a member
        cell = np.sort(self._cell)  # of the shuffled samples, in every epoch, as all below
        part = rank(cell) * parts // np.bincount(cell)[cell]  # a cell's first samples to the first part, and so on
        self._row = part * n + cell % n  # minibatch and member
        self._column = rank(self._row)
        length = np.bincount(self._row, minlength=parts * n)  # of each row
        self._shape = parts, n, length.max()
        weight = np.zeros((parts * n, length.max()), np.float32)
        weight[self._row, self._column] = 1 / length[self._row]
        self._padding = (weight == 0).reshape(self._shape)
        self._padded = weight.size > len(cell)
        self.weight = weight.reshape(self._shape)

    def shuffle(self, rngs):
        """The samples in the minibatches of an epoch, int64 [parts, n, width]; `rngs`: a NumPy generator a group."""
        key = np.concatenate([rng.random(size) for rng, size in zip(rngs, self._sizes, strict=False)])
        index = np.zeros((self._shape[0] * self._shape[1], self._shape[2]), np.int64)
        index[self._row, self._column] = self._by_group[np.argsort(self._cell + key)]  # cell after cell, each shuffled
        index = index.reshape(self._shape)  # what pads may not be another member's: it could be infinitely improbable
        return np.where(self._padding, index[..., :1], index) if self._padded else index


class Rows:
    """Of `Minibatches` the rows of some `members` (a range), where only their samples are at hand, in the same order.

    `member`: of all samples, int array [S].
    """

    def __init__(self, whole, member, members):
        self._whole, self._members = whole, slice(members.start, members.stop)
        self._place = np.isin(member, members).cumsum() - 1
        self.weight = whole.weight[:, self._members]

    def shuffle(self, rngs):
        """As of `Minibatches`; `rngs` are those of all groups."""
        return self._place[self._whole.shuffle(rngs)[:, self._members]]
