"""How the tasks of a Gymnasium environment are sampled and set: one small class for each interface in use."""

import contextlib
import inspect
import pickle
import random
from collections.abc import Callable, Iterable, Iterator, Set
from typing import Any

import numpy as np
import torch
from gymnasium import Space

from mlsh.envs.base import Task
from mlsh.errors import UserError


def seed_global_generators(rng: np.random.Generator) -> None:
    """Seed the global generators of NumPy, Python and torch (on the CPU) with numbers from `rng`."""
    np.random.seed(rng.integers(2**32))
    seed = int(rng.integers(2**32))
    random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed takes a hundred times as long


def state_of_global_generators() -> tuple[bytes, Any, bytes]:
    """The states of the global generators of NumPy, Python and torch (on the CPU), to compare."""
    return pickle.dumps(np.random.get_state()), random.getstate(), torch.default_generator.get_state().numpy().tobytes()


@contextlib.contextmanager
def seeded_global_generators(seed: int) -> Iterator[None]:
    """Context in which the global generators start from a seed. Afterwards they are as before."""
    before = np.random.get_state(), random.getstate(), torch.default_generator.get_state()
    seed_global_generators(np.random.default_rng(seed))
    try:
        yield
    finally:
        np.random.set_state(before[0])
        random.setstate(before[1])
        torch.default_generator.set_state(before[2])


def spaces_of(env: Any) -> Iterable[Space]:
    """Return the action space, the observation space, and any other space among the attributes of `env`."""
    named = [getattr(env, "action_space", None), getattr(env, "observation_space", None)]
    return {id(x): x for x in (*named, *getattr(env, "__dict__", {}).values()) if isinstance(x, Space)}.values()


def seed_all_generators(env: Any, rng: np.random.Generator) -> None:
    """Seed the global generators and those of `env`, so that a method without a generator argument is reproducible."""
    seed_global_generators(rng)
    if callable(getattr(env, "seed", None)):  # environments of the old Gym
        env.seed(int(rng.integers(2**31)))
    else:
        env.np_random = np.random.default_rng(rng.integers(2**32))
    for space in spaces_of(env):
        space.seed(int(rng.integers(2**31)))


LABEL_LENGTH = 30  # longer tasks are labelled by their index


class TaskProtocol:
    """One interface by which environments offer tasks.

    `matches(env)` says whether an environment has the interface. The protocol is then made from the first copy of the
    environment. Its methods take one of the copies as `env`.
    """

    train_tasks: list[int] | None = None  # of a finite family: 0 … n − 1
    test_tasks: list[int] | None = None  # its held-out tasks: n … m − 1
    has_test_sampler = False  # whether an infinite family has held-out tasks, drawn by `sample_test_task`

    def __init__(self, env: Any) -> None:
        """Read the tasks of a finite family from the first copy."""

    @staticmethod
    def matches(env: Any) -> bool:
        raise NotImplementedError

    def sample_task(self, env: Any, rng: np.random.Generator) -> Any:
        """Draw a task of an infinite family with the NumPy generator `rng`."""
        raise NotImplementedError

    def sample_test_task(self, env: Any, rng: np.random.Generator) -> Any:
        """Draw a held-out task of an infinite family with the NumPy generator `rng`."""
        raise NotImplementedError

    def native_task(self, task: Task) -> Any:
        """Return the object that the environment itself uses for a task."""
        return task

    @staticmethod
    def set_task(env: Any, native: Any) -> None:
        """Set a task, as `native_task` returns it."""
        env.set_task(native)

    def label(self, env: Any, task: Task) -> str:
        """Return a readable name of the task: from the environment's `task_label`, if it has that method."""
        return str(env.task_label(self.native_task(task)) if hasattr(env, "task_label") else task)

    @staticmethod
    def seed(env: Any, rng: np.random.Generator) -> None:
        """Seed what a reset does not seed itself. Called before every reset."""
        seed_global_generators(rng)


class TaskList(TaskProtocol):
    """Environments with `train_tasks` and `set_task`, as in Meta-World, and possibly `test_tasks`.

    The two lists may hold any objects. A task is its index in both lists joined.
    """

    def __init__(self, env: Any) -> None:
        held_out, n = getattr(env, "test_tasks", None), len(env.train_tasks)
        if isinstance(env.train_tasks, Set) or isinstance(held_out, Set):
            raise UserError("its tasks are a set, whose order differs between runs; make them a list")
        self._native_tasks = [*env.train_tasks, *(() if held_out is None else held_out)]
        self.train_tasks = list(range(n))
        self.test_tasks = list(range(n, len(self._native_tasks))) or None

    @staticmethod
    def matches(env: Any) -> bool:
        tasks = getattr(env, "train_tasks", None)
        return hasattr(env, "set_task") and tasks is not None and len(tasks) > 0

    def native_task(self, task: Any) -> Any:
        return self._native_tasks[task]

    def label(self, env: Any, task: Any) -> str:
        """Return the environment's `task_label`, or the task itself if it is short, or its index."""
        native = self.native_task(task)
        if hasattr(env, "task_label") or not isinstance(native, (bool, int, float, str, np.generic)):
            return super().label(env, task)
        text = f"{native:g}" if isinstance(native, (float, np.floating)) else str(native)
        return text if len(text) <= LABEL_LENGTH else str(task)


class TaskSampler(TaskProtocol):
    """Environments with `sample_task` and `set_task`, and possibly `sample_test_task`.

    A sampling method that takes an argument gets a NumPy generator. For one without, all generators are seeded first.
    """

    _returns_arrays = False

    def __init__(self, env: Any) -> None:
        self.has_test_sampler = hasattr(env, "sample_test_task")

    @staticmethod
    def matches(env: Any) -> bool:
        return hasattr(env, "set_task") and hasattr(env, "sample_task")

    def sample_task(self, env: Any, rng: np.random.Generator) -> Any:
        return self._call(env, env.sample_task, rng)

    def sample_test_task(self, env: Any, rng: np.random.Generator) -> Any:
        return self._call(env, env.sample_test_task, rng)

    def _call(self, env: Any, sample: Callable[..., Any], rng: np.random.Generator) -> Any:
        if inspect.signature(sample).parameters:
            seed_global_generators(rng.spawn(1)[0])  # in case that it draws from them nevertheless
            task = sample(rng)
        else:
            seed_all_generators(env, rng)
            task = sample()
        self._returns_arrays = isinstance(task, np.ndarray)  # `set_task` then gets an array, too
        return task

    def native_task(self, task: Task) -> Any:
        return np.array(task) if self._returns_arrays else task


class OriginalCode(TaskProtocol):
    """Environments of the original code: `randomizeCorrect` draws a task and stores it in `realgoal`."""

    @staticmethod
    def matches(env: Any) -> bool:
        return hasattr(env, "randomizeCorrect") and hasattr(env, "realgoal")

    def sample_task(self, env: Any, rng: np.random.Generator) -> Any:
        seed_all_generators(env, rng)
        env.randomizeCorrect()
        return env.realgoal

    @staticmethod
    def set_task(env: Any, native: Any) -> None:
        env.realgoal = native

    @staticmethod
    def seed(env: Any, rng: np.random.Generator) -> None:
        seed_all_generators(env, rng)


PROTOCOLS = (TaskList, TaskSampler, OriginalCode)
REMEDY = "give its class sample_task(rng) or a list train_tasks, and set_task(task)"


def find_protocol(env: Any) -> TaskProtocol | None:
    """Return the first protocol that matches the environment, made from it, or None if none matches."""
    return next((protocol(env) for protocol in PROTOCOLS if protocol.matches(env)), None)
