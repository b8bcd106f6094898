"""What is drawn: the random streams, and which tasks to learn or to test."""

import json
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mlsh.errors import UserError


class Streams(NamedTuple):
    """The random numbers of a run: `streams(iteration, purpose)` gives a NumPy generator for each of `groups`.

    Each is a function of (seed, iteration, purpose, group) alone. So an iteration can be repeated without the ones
    before it, and a group does not depend on where the others run.
    """

    seed: int
    groups: Sequence[int]  # the indices of those that this process plays

    def __call__(self, iteration, purpose):
        return [self.of(iteration, purpose, group) for group in self.groups]

    def of(self, iteration, purpose, group=0):
        """The generator of one group; of group 0 what all groups need alike."""
        return np.random.default_rng((self.seed, iteration, zlib.crc32(purpose.encode()), group))


def balanced_tasks(env, streams, iteration, groups):
    """A task for each of this process's groups: of a finite family all equally often over all `groups`, as far as that
    divides; of another drawn from the group's own stream."""
    if env.train_tasks is None:
        return [env.sample_task(rng) for rng in streams(iteration, "task")]
    rng = streams.of(iteration, "task")
    rounds = -(-groups // len(env.train_tasks))
    tasks = [env.train_tasks[t] for _ in range(rounds) for t in rng.permutation(len(env.train_tasks))]
    return [tasks[group] for group in streams.groups]


def tasks_to_test(env, seed, held_out=False):
    """All tasks of a family of up to ten, else ten that `seed` draws; equal ones once.

    `held_out`: of those that are kept out of training, of which there may be none.
    """
    family, streams = (env.test_tasks if held_out else env.train_tasks), Streams(seed, range(10))
    if family is None:
        return drawn_tasks(env, streams(0, "test: task"), held_out)
    return family if len(family) <= 10 else sorted(streams.of(0, "test: task").choice(family, 10, False).tolist())


def drawn_tasks(env, rngs, held_out=False):
    """A task of an infinite family from each of the generators, equal ones once; `held_out` as of `tasks_to_test`."""
    draw = env.sample_test_task if held_out else env.sample_task
    return distinct(draw(rng) for rng in rngs) if draw else []


def distinct(tasks):
    """Each of equal tasks once."""
    return list({str(task): task for task in tasks}.values())


def find_task(env, text, flag):
    """The batched environment's task that `flag` names by `text`: a number 0 … n-1 in a finite family, else JSON."""
    family = env.train_tasks and [*env.train_tasks, *(env.test_tasks or ())]
    try:
        return json.loads(text) if family is None else {str(task): task for task in family}[text]
    except (KeyError, json.JSONDecodeError):
        known = "JSON" if family is None else ", ".join(map(str, family))
        raise UserError(f"{flag} is {text}: use {known}") from None
