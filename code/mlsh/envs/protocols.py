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

    def __init__(self, env):
        """From the first copy."""

    @staticmethod
    def fits(env):
        raise NotImplementedError

    def sample_task(self, env, rng):
        """Of an infinite family: draw a task with the NumPy generator `rng`."""
        raise NotImplementedError

    def set_task(self, env, task):
        raise NotImplementedError

    def seed(self, env, rng):
        """Before every reset, which itself takes a seed."""
        seed_globals(rng)


class Listed(Protocol):
    """`train_tasks` and `set_task`, as in Meta-World. A task is its index in the list, which may hold any objects."""

    def __init__(self, env):
        self._list = list(env.train_tasks)
        self.train_tasks = list(range(len(self._list)))

    @staticmethod
    def fits(env):
        listed = getattr(env, "train_tasks", None)
        return hasattr(env, "set_task") and listed is not None and len(listed) > 0

    def set_task(self, env, task):
        env.set_task(self._list[task])


class Sampled(Protocol):
    """`sample_task` and `set_task`; `sample_task` gets a NumPy generator if it takes an argument."""

    _arrays = False

    @staticmethod
    def fits(env):
        return hasattr(env, "set_task") and hasattr(env, "sample_task")

    def sample_task(self, env, rng):
        if inspect.signature(env.sample_task).parameters:
            task = env.sample_task(rng)
        else:
            seed_all(env, rng)
            task = env.sample_task()
        self._arrays = isinstance(task, np.ndarray)  # it gets back what it gave
        return task

    def set_task(self, env, task):
        env.set_task(np.array(task) if self._arrays else task)


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
