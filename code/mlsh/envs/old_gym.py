"""Classes written for the old Gym, such as those of the original MLSH code and of FAMP, as environments of today."""

import contextlib
import importlib
import inspect
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import gymnasium
import gymnasium.envs.registration
import gymnasium.utils.seeding
import numpy as np


class OldGymTasks(gymnasium.Env):
    """An environment around a class of the old Gym, whose `reset` returns an observation and `step` four values.

    Gym 0.26 already returned what Gymnasium does; classes written for it work as well. They are known by a `reset` with
    a `seed`, which then gets it.

    A subclass names the class, as "module:Class", and is registered like any other environment:

        class Bandits(OldGymTasks):
            old_class = "test_envs.envs:MovementBandits"

        gymnasium.register("Bandits-v0", Bandits, max_episode_steps=50)

    The module is imported with a stand-in for `gym`, made from Gymnasium. It has what environments of the original code
    and FAMP use: `Env`, `spaces`, `error`, `utils` and `register`, but not Gym's own environments. `np_random` has the
    methods of NumPy's RandomState, such as `randint`. For classes of Gym 0.26 it has those of NumPy's Generator.

    Everything that the class offers for its tasks is found here as well, for example `randomizeCorrect` and `realgoal`,
    or `sample_task` and `set_task`. A subclass may define such methods itself; `self.old` is the old environment.
    Keyword arguments go to the class. There are no films, unless the subclass defines `metadata` and `render()`.
    """

    old_class: str

    def __init__(self, render_mode: str | None = None, **kwargs: Any) -> None:
        module, _, name = self.old_class.partition(":")
        with stand_in_for_gym():
            self.old: Any = getattr(importlib.import_module(module), name)(**kwargs)
        self._reset_takes_seed = "seed" in inspect.signature(self._old_reset).parameters
        self.render_mode = render_mode
        self.action_space, self.observation_space = self.old.action_space, self.old.observation_space

    def __getattr__(self, name: str) -> Any:
        if name == "old":  # it is being made, or copied
            raise AttributeError(name)
        return getattr(self.old, name)

    @property
    def _old_reset(self) -> Any:
        return getattr(self.old, "_reset", self.old.reset)  # the first versions of Gym had underscores

    @property
    def realgoal(self) -> Any:
        """The task of the original code's environments."""
        return self.old.realgoal

    @realgoal.setter
    def realgoal(self, task: Any) -> None:
        self.old.realgoal = task

    def seed(self, seed: int) -> None:
        """Seed what these classes draw from: `np_random` and other RandomStates, and NumPy's global generator."""
        generator = np.random.default_rng if self._reset_takes_seed else np.random.RandomState
        self.old.np_random = generator(seed)
        for x in vars(self.old).values():
            if isinstance(x, np.random.RandomState):
                x.seed(seed)
        np.random.seed(seed)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.seed(seed)
        seeded = {"seed": seed} if self._reset_takes_seed else {}
        result = self._old_reset(**seeded)
        is_pair = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)
        return result if is_pair else (result, {})

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        result = getattr(self.old, "_step", self.old.step)(action)
        if len(result) == 5:
            return result
        observation, reward, done, info = result
        is_cut = bool((info or {}).get("TimeLimit.truncated"))
        return observation, reward, bool(done) and not is_cut, is_cut, info or {}


def np_random(seed: int | None = None) -> tuple[np.random.RandomState, int | None]:
    return np.random.RandomState(seed), seed


@contextlib.contextmanager
def stand_in_for_gym() -> Iterator[None]:
    """Context in which `import gym` gives modules that are made from Gymnasium."""
    seeding = like(gymnasium.utils.seeding, np_random=np_random)
    utils = like(gymnasium.utils, seeding=seeding)
    registration = like(gymnasium.envs.registration, register=lambda *args, **kwargs: None)
    envs = like(gymnasium.envs, registration=registration)
    gym = like(gymnasium, utils=utils, envs=envs, register=registration.register)
    own = {"": gym, ".utils": utils, ".utils.seeding": seeding, ".envs": envs, ".envs.registration": registration}
    same = {f".{name}": getattr(gymnasium, name) for name in ("core", "error", "spaces", "logger")}
    modules = {f"gym{name}": module for name, module in (own | same).items()}
    hidden = {name: sys.modules[name] for name in modules if name in sys.modules}  # a Gym that is in use
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
        sys.modules.update(hidden)


def like(module: ModuleType, **replaced: Any) -> ModuleType:
    """Return a copy of a module in which some names have other values."""
    copy = ModuleType(module.__name__)
    vars(copy).update(vars(module) | replaced | {"__path__": []})  # what is not listed above is not found
    return copy
