"""How the tasks of somebody's environment are drawn and set: a small class for each way that is in use."""

import inspect
import random

import numpy as np


def seed_globals(rng):
    np.random.seed(rng.integers(2**32))
    random.seed(int(rng.integers(2**32)))


def seed_all(env, rng):
    """Let a method that takes no generator draw what `rng` determines."""
    seed_globals(rng)
    if hasattr(env, "seed"):  # of old Gym
        env.seed(int(rng.integers(2**31)))
    else:
        env.np_random = np.random.default_rng(rng.integers(2**32))


class Protocol:
    """The task distribution of environments that `fits` recognises; `env` is each time one of the copies."""

    train_tasks = None  # a finite family: the list 0 … n-1
    test_tasks = None  # those of it that are kept out of training: n … m-1
    holds_out = False  # an infinite family: whether there is `sample_test_task`, as `sample_task`

    def __init__(self, env):
        """From the first copy."""

    @staticmethod
    def fits(env):
        raise NotImplementedError

    def sample_task(self, env, rng):
        """Of an infinite family: draw a task with the NumPy generator `rng`."""
        raise NotImplementedError

    def theirs(self, task):
        """What the environment calls a task."""
        return task

    def set_task(self, env, task):
        env.set_task(self.theirs(task))

    def label(self, env, task):
        """The task's name for people; the environment may have a `task_label` that gives one."""
        return str(env.task_label(self.theirs(task)) if hasattr(env, "task_label") else task)

    def seed(self, env, rng):
        """Before every reset, which itself takes a seed."""
        seed_globals(rng)


class Listed(Protocol):
    """`train_tasks` and `set_task`, as in Meta-World, and maybe `test_tasks`.

    A task is its index in the two lists, one after the other; they may hold any objects.
    """

    def __init__(self, env):
        held_out, n = getattr(env, "test_tasks", None), len(env.train_tasks)
        self._list = [*env.train_tasks, *(() if held_out is None else held_out)]
        self.train_tasks = list(range(n))
        self.test_tasks = list(range(n, len(self._list))) or None

    @staticmethod
    def fits(env):
        listed = getattr(env, "train_tasks", None)
        return hasattr(env, "set_task") and listed is not None and len(listed) > 0

    def theirs(self, task):
        return self._list[task]


class Sampled(Protocol):
    """`sample_task` and `set_task`, and maybe `sample_test_task`; a NumPy generator goes to what takes an argument."""

    _arrays = False

    def __init__(self, env):
        self.holds_out = hasattr(env, "sample_test_task")

    @staticmethod
    def fits(env):
        return hasattr(env, "set_task") and hasattr(env, "sample_task")

    def sample_task(self, env, rng):
        return self._drawn(env, env.sample_task, rng)

    def sample_test_task(self, env, rng):
        return self._drawn(env, env.sample_test_task, rng)

    def _drawn(self, env, draw, rng):
        if inspect.signature(draw).parameters:
            task = draw(rng)
        else:
            seed_all(env, rng)
            task = draw()
        self._arrays = isinstance(task, np.ndarray)  # it gets back what it gave
        return task

    def theirs(self, task):
        return np.array(task) if self._arrays else task


class Original(Protocol):
    """`randomizeCorrect` and `realgoal`, as in the original code: the one draws a task into the other."""

    @staticmethod
    def fits(env):
        return hasattr(env, "randomizeCorrect") and hasattr(env, "realgoal")

    def sample_task(self, env, rng):
        seed_all(env, rng)
        env.randomizeCorrect()
        return env.realgoal

    def set_task(self, env, task):
        env.realgoal = task

    def seed(self, env, rng):
        seed_all(env, rng)


PROTOCOLS = (Listed, Sampled, Original)
WANTED = "give its class sample_task(rng) or a list train_tasks, and set_task(task)"


def protocol_of(env):
    """The first protocol that fits the unwrapped environment, made from it; None if none does."""
    return next((protocol(env) for protocol in PROTOCOLS if protocol.fits(env)), None)
