"""Copies of a Gymnasium environment, stepped one after another in this process or in a worker process."""

import atexit
import contextlib
import multiprocessing.util
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.spaces.utils import flatten

from mlsh.envs import boundary
from mlsh.envs.base import Task
from mlsh.envs.boundary import environment_errors
from mlsh.envs.protocols import TaskProtocol, find_protocol, seed_global_generators, spaces_of
from mlsh.errors import EnvironmentFailed
from mlsh.process import protect_output

NUMBERS = (float, int, np.float64, np.float32)  # types of rewards that need no conversion
CLOSE_SECONDS = 5.0  # until a worker that does not end is killed
PROBED_STEPS = 3
SECONDS_PER_WORKER = 0.0003  # that a worker adds to each step of the batch
WORTHWHILE = 1.2  # times as fast: what workers must gain to be used
START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


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

    def probe(self, native: Any, action: Any) -> float:
        """Play the first steps of an episode of the first copy, to find out whether it can be played.

        Returns the seconds of a step, their median. What the environment raises is not caught.
        """
        self._begin_episode(0, 0, native, True)
        seconds: list[float] = []
        over = False
        while len(seconds) < PROBED_STEPS and not over:
            start = time.perf_counter()
            observation, reward, *ends, _ = self.envs[0].step(action)
            seconds.append(time.perf_counter() - start)
            self._keep_observation(0, observation)
            boundary.reward_in(reward)
            over = any([boundary.flag_in(flag) for flag in ends])
        return float(np.median(seconds))

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


class Worker:
    """Runs `Copies` in another process. Each `send` calls a method there, and `receive` waits for its result.

    The process ends when this one ends, in whatever way, and when this object is closed or garbage-collected.
    """

    def __init__(self, block: Block) -> None:
        """Start the process. It makes its copies in the background; `receive` waits until they are ready."""
        context: Any = multiprocessing.get_context(START_METHOD)
        if START_METHOD == "forkserver":
            context.set_forkserver_preload([__name__])  # imported once for all workers
        self._connection, theirs = context.Pipe()
        denormals = bool(torch.tensor(1e-40) * 1 != 0)
        self._process = context.Process(target=serve, args=(theirs, block, dict(os.environ), denormals))
        with starting_safely():
            self._process.start()
        theirs.close()
        LIVE.add(self._process)
        self._waiting = True

    def send(self, method: str, *args: Any) -> None:
        if self._waiting:  # an exception came between the last `send` and its `receive`
            with contextlib.suppress(EnvironmentFailed):
                self.receive()
        with contextlib.suppress(BrokenPipeError):  # `receive` reports it
            self._connection.send((method, args))
        self._waiting = True

    def receive(self) -> Any:
        """The result of the method called last. What it has raised is raised again."""
        wait([self._connection, self._process.sentinel])  # a child of the worker may keep a dead connection open
        try:
            if not self._connection.poll():
                raise EOFError
            result = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(CLOSE_SECONDS)
            raise EnvironmentFailed(
                f"a worker process ended unexpectedly (exit code {self._process.exitcode}); "
                "--env_workers 1 uses no workers"
            ) from None
        self._waiting = False
        if isinstance(result, BaseException):
            raise result
        return result

    def disconnect(self) -> None:
        """Ask the process to close its copies and end."""
        self._connection.close()

    def end(self, deadline: float) -> None:
        """Wait until the process has ended, and kill it at the deadline, a time of `time.monotonic`."""
        self._process.join(max(0.0, deadline - time.monotonic()))
        self._process.kill()
        self._process.join()
        LIVE.discard(self._process)


LIVE: set[Any] = set()  # the processes of workers that were not closed


@atexit.register  # registered after multiprocessing.util's function, which waits for all processes, so called before it
def kill_workers() -> None:
    for process in LIVE:
        process.kill()


def close_workers(workers: Sequence[Worker]) -> None:
    """End several workers at the same time."""
    for worker in workers:
        worker.disconnect()
    deadline = time.monotonic() + CLOSE_SECONDS
    for worker in workers:
        worker.end(deadline)


@contextlib.contextmanager
def starting_safely() -> Iterator[None]:
    """Context to start a process in. Ctrl-C does not interrupt it.

    It imports this package from where this process has it, and nothing from the current folder.
    """
    blocks = hasattr(signal, "pthread_sigmask")  # Windows has none
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if blocks else set()
    environ = {name: os.environ.get(name) for name in ("PYTHONSAFEPATH", "PYTHONPATH")}
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), environ["PYTHONPATH"])))
    os.environ.update(PYTHONSAFEPATH="1", PYTHONPATH=path)
    try:
        yield
    finally:
        for name, value in environ.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        if blocks:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve(connection: Connection, block: Block, environ: Mapping[str, str], denormals: bool) -> None:
    """The worker's process: call the methods of its `Copies` that `connection` names, until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is for the first process
    if hasattr(os, "setsid"):
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.environ.clear()
    os.environ.update(environ)
    protect_output()
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    torch.set_flush_denormal(not denormals)
    copies: Copies | None = None
    with contextlib.suppress(EOFError, OSError):
        try:
            with boundary.restored_signals():
                copies, result = Copies(block), None
        except BaseException as error:
            result = error
        while True:
            connection.send(result)
            method, args = connection.recv()
            try:
                result = getattr(copies, method)(*args)
            except BaseException as error:
                result = error
    if copies:
        copies.close()


def end_with_parent() -> None:
    """End this process as soon as the one that started it has ended, even if a step never returns."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


def worthwhile_processes(seconds: float, copies: int, cores: int) -> int:
    """The number of processes with which a step of all copies is fastest, if a copy's step takes so many seconds."""
    alone = seconds * copies
    times = {n: alone / n + SECONDS_PER_WORKER * (n - 1) for n in range(1, min(cores, copies) + 1)}
    best = min(times, key=lambda n: times[n])
    return best if alone >= WORTHWHILE * times[best] else 1


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
