"""Copies of a Gymnasium environment, stepped one after another."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from gymnasium.spaces.utils import flatten

from mlsh.envs import boundary
from mlsh.envs.base import Task
from mlsh.envs.boundary import environment_errors
from mlsh.envs.protocols import (
    TaskProtocol,
    find_protocol,
    seed_global_generators,
    spaces_of,
    state_of_global_generators,
)
from mlsh.errors import EnvironmentFailed

NUMBERS = (float, int, np.float64, np.float32)  # types of rewards that need no conversion
PROBED_STEPS = 3


class Block(NamedTuple):
    """A range of consecutive slots, and the shared memory for the observations of all slots."""

    make: Callable[[], gym.Env]
    slots: range
    protocol: type[TaskProtocol]
    memory: Any  # a shared array of all slots' observations
    dtype: type  # of an observation in it
    shape: tuple[int, ...]  # [E, …], of the observations of all slots


class CopySteps(NamedTuple):
    """What `step` returns for n copies."""

    reward: np.ndarray  # [n]
    terminated: np.ndarray  # [n]
    truncated: np.ndarray  # [n]
    infos: dict[int, dict[str, float]]  # copy -> the numbers in its info, where its episode has ended


class Probe(NamedTuple):
    """What the first steps of an environment show."""

    seconds: float  # of the shortest step
    draws_globally: bool  # whether steps draw from the global generators of NumPy, Python or torch


class Copies:
    """n copies of an environment, stepped one after another. They write their observations into shared memory.

    Raises EnvironmentFailed if a copy raises an exception or returns something unusable.
    """

    def __init__(self, block: Block, envs: Sequence[gym.Env] = ()) -> None:
        """`envs` are copies that have been made already, the first ones of the block."""
        self.envs = list(envs)
        self._make(block)
        self.task_envs = [find_task_layer(env) for env in self.envs]
        self._protocol = block.protocol
        self._space = self.envs[0].observation_space
        n, shape = len(self.envs), block.shape[1:]
        of_all = np.frombuffer(block.memory, block.dtype).reshape(block.shape)
        self._observations = of_all[block.slots.start : block.slots.stop]  # [n, …]
        self._bytes = block.dtype is np.uint8
        self._native_shape = self._space.shape if isinstance(self._space, Box) else shape
        self._native_observations = self._observations.reshape(n, *self._native_shape)  # the same memory
        self._finished = np.zeros(n, bool)  # whether the copy's episode is over
        self._elapsed = np.zeros(n, int)  # env steps in the episode
        self._tasks: list[Task] = [""] * n

    def _make(self, block: Block) -> None:
        """Make the copies one after another, each with global generators of the same seed in every run."""
        in_worker = block.slots.start > 0
        try:
            with boundary.each_warning_once(silent=in_worker):  # the first process shows the same warnings
                for e in block.slots[len(self.envs) :]:
                    seed_global_generators(np.random.default_rng(e))
                    self.envs.append(block.make())
        except BaseException as error:
            number = block.slots.start + len(self.envs) + 1
            self.close()
            failed = EnvironmentFailed.from_exception(f"when copy {number} of {block.shape[0]} was made", error)
            remedy = "; --env_workers 1 makes all copies in one process" if in_worker else ""
            raise EnvironmentFailed(f"{failed}{remedy}") from None

    def begin(
        self, slots: Sequence[int], seeds: Sequence[int], tasks: Sequence[Task], natives: Sequence[Any], first: bool
    ) -> None:
        """Begin episodes in some copies. Each has a seed, a task, and the object that the environment uses for it.

        `first` says whether a rollout begins.
        """
        e = 0
        try:
            with boundary.restored_settings():
                for e, seed, task, native in zip(slots, seeds, tasks, natives, strict=True):
                    self._tasks[e], self._elapsed[e] = task, 0
                    self._begin_episode(e, seed, native, first)
        except BaseException as error:
            raise self._failure(e, error) from None
        self._finished[slots] = ~self._finite()[slots]

    def _begin_episode(self, e: int, seed: int, native: Any, first: bool) -> None:
        env, rng = self.task_envs[e], np.random.default_rng(seed)
        self._protocol.seed(env, rng)
        self._protocol.set_task(env, native)
        if first:  # for every episode it would take too long
            for space in (space for layer in layers(self.envs[e]) for space in spaces_of(layer)):
                space.seed(seed)
        self._keep_observation(e, boundary.reset_observation(self.envs[e].reset(seed=int(seed))))

    def _keep_observation(self, e: int, observation: Any) -> None:
        if not isinstance(self._space, Box):
            boundary.check_categories(self._space, observation)
            observation = flatten(self._space, observation)
        if type(observation) is not np.ndarray or observation.shape != self._native_shape:
            observation = boundary.array_of_shape(observation, self._native_shape)
        self._native_observations[e] = boundary.as_bytes(observation) if self._bytes else observation

    def probe(self, native: Any, action: Any) -> Probe:
        """Play and time the first steps of an episode of the first copy.

        What the environment raises is not caught.
        """
        self._begin_episode(0, 0, native, True)
        generators = state_of_global_generators()
        seconds: list[float] = []
        over = False
        while len(seconds) < PROBED_STEPS and not over:
            start = time.perf_counter()
            observation, reward, *ends, _ = self.envs[0].step(action)
            seconds.append(time.perf_counter() - start)
            self._keep_observation(0, observation)
            boundary.reward_in(reward)
            over = any([boundary.flag_in(flag) for flag in ends])
        return Probe(min(seconds), state_of_global_generators() != generators)

    def step(self, actions: Sequence[Any] | np.ndarray) -> CopySteps:
        """Take one step in every copy whose episode is not over, with the actions [n] of the environment's own space.

        A copy whose episode is over keeps its observation and gets reward 0. One whose observation is NaN or infinite
        is not stepped either, because its action would be NaN or infinite.
        """
        self._elapsed += 1
        reward, terminated, truncated = (np.zeros(len(self.envs), kind) for kind in (float, bool, bool))
        infos: dict[int, dict[str, float]] = {}
        envs, observations, e = self.envs, self._native_observations, 0
        shape = None if self._bytes else self._native_shape
        try:
            with boundary.restored_settings():
                for e in np.flatnonzero(~self._finished).tolist():
                    observation, paid, ends, is_cut, info = envs[e].step(actions[e])
                    if type(observation) is np.ndarray and observation.shape == shape:  # almost always
                        observations[e] = observation
                    else:
                        self._keep_observation(e, observation)
                    reward[e] = paid if type(paid) in NUMBERS else boundary.reward_in(paid)
                    if ends is not False or is_cut is not False:  # it has ended, or reports that in another type
                        terminated[e], truncated[e] = boundary.flag_in(ends), boundary.flag_in(is_cut)
                        if terminated[e] or truncated[e]:
                            infos[e] = boundary.info_in(info)
        except BaseException as error:
            raise self._failure(e, error) from None
        self._finished |= terminated | truncated | ~self._finite()
        return CopySteps(reward, terminated, truncated, infos)

    def _finite(self) -> np.ndarray:  # [n]
        return np.all(np.isfinite(self._observations).reshape(len(self.envs), -1), axis=1)

    def _failure(self, e: int, error: BaseException) -> EnvironmentFailed:
        return EnvironmentFailed.from_exception(f"at step {self._elapsed[e]}, task {self._tasks[e]}", error)

    def close(self) -> None:
        """Close the copies. What fails here is ignored, because nothing depends on it any more."""
        for env in self.envs:
            with contextlib.suppress(EnvironmentFailed), environment_errors("in close"):
                env.close()


def find_task_layer(env: gym.Env) -> Any:
    """Return the outermost wrapper that has a task distribution, or the bare environment if no wrapper has one."""
    wrappers = (layer for layer in layers(env) if isinstance(layer, gym.Wrapper))
    return next((layer for layer in wrappers if find_protocol(layer)), unwrap(env))


def unwrap(env: gym.Env) -> Any:
    """Return the bare environment. If Shimmy has converted it, that is the environment of the old Gym within."""
    bare: Any = env.unwrapped
    return bare.gym_env.unwrapped if hasattr(bare, "gym_env") else bare


def layers(env: gym.Env) -> Iterator[gym.Env]:
    """Yield the environment and what it wraps, from the outermost wrapper inwards."""
    yield env
    while isinstance(env, gym.Wrapper):
        env = env.env
        yield env
