"""Random streams, and the tasks that are drawn for training and for tests."""

import json
import math
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mlsh.envs.base import VectorTasks
from mlsh.errors import UserError

Task = Any  # an int in a finite family; else numbers, strings, and lists of them
TESTED = 10  # tasks in the final test, at most


class Streams(NamedTuple):
    """The random numbers of a run: `streams(iteration, purpose)` returns a NumPy generator for each of `groups`.

    Each generator is a function of (seed, iteration, purpose, group) alone. So an iteration can be repeated without the
    ones before it, and a group does not depend on which process plays the others.
    """

    seed: int
    groups: Sequence[int]  # the indices of the groups that this process plays

    def __call__(self, iteration: int, purpose: str) -> list[np.random.Generator]:
        return [self.of(iteration, purpose, group) for group in self.groups]

    def of(self, iteration: int, purpose: str, group: int = 0) -> np.random.Generator:
        """The generator of one group. What all groups share is drawn with that of group 0."""
        return np.random.default_rng((self.seed, iteration, zlib.crc32(purpose.encode()), group))


def balanced_tasks(env: VectorTasks, streams: Streams, iteration: int, groups: int) -> list[Task]:
    """A task for each group of this process.

    The tasks of a finite family occur equally often among all `groups`, as far as their number divides. Those of an
    infinite family are drawn from each group's own stream.
    """
    if env.train_tasks is None:
        return [env.sample_task(rng) for rng in streams(iteration, "task")]
    rng = streams.of(iteration, "task")
    rounds = math.ceil(groups / len(env.train_tasks))
    tasks = [env.train_tasks[t] for _ in range(rounds) for t in rng.permutation(len(env.train_tasks))]
    return [tasks[group] for group in streams.groups]


def tasks_to_test(env: VectorTasks, seed: int, held_out: bool = False) -> list[Task]:
    """All tasks of a family of up to ten, else ten distinct ones that `seed` draws; or those that are held out."""
    family = env.test_tasks if held_out else env.train_tasks
    streams = Streams(seed, range(TESTED))
    if family is None:
        return drawn_tasks(env, streams(0, "test: task"), held_out)
    if len(family) <= TESTED:
        return family
    return sorted(streams.of(0, "test: task").choice(family, TESTED, False).tolist())


def drawn_tasks(env: VectorTasks, rngs: Iterable[np.random.Generator], held_out: bool = False) -> list[Task]:
    """A task of an infinite family from each generator, without repetitions. Empty if no tasks are held out."""
    draw = env.sample_test_task if held_out else env.sample_task
    return distinct(draw(rng) for rng in rngs) if draw else []


def distinct(tasks: Iterable[Task]) -> list[Task]:
    """The tasks without repetitions."""
    return list({str(task): task for task in tasks}.values())


def find_task(env: VectorTasks, text: str, flag: str) -> Task:
    """The task that a user names by `text`: a number 0 … n − 1 in a finite family, else JSON.

    Raises UserError, with the name of the `flag`, if there is no such task.
    """
    family = env.train_tasks and [*env.train_tasks, *(env.test_tasks or ())]
    try:
        task = json.loads(text) if family is None else {str(task): task for task in family}[text]
        env.set_task([task])
    except (KeyError, json.JSONDecodeError):
        known = "JSON" if family is None else ", ".join(map(str, family))
        raise UserError(f"{flag} is {text}: use {known}") from None
    except ValueError as error:
        raise UserError(f"{flag}: {error}") from None
    return task
