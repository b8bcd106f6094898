"""Any Gymnasium environment as a family of tasks: one copy per slot, stepped one after another."""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.spaces.utils import flatdim, flatten_space
from gymnasium.wrappers import FlattenObservation

from mlsh.envs.base import Frames, Info, StepResult, Task, VectorTasks
from mlsh.envs.opengl import choose_opengl
from mlsh.envs.protocols import REMEDY, find_protocol
from mlsh.errors import EnvironmentFailed, RenderingUnavailable, UserError


class GymnasiumTasks(VectorTasks):
    """A family of tasks played on E copies of `make(max_episode_steps=…, render_mode=…)`.

    Tasks: the first of `protocols.PROTOCOLS` that matches the environment samples and sets them. A sampled task must
    consist of numbers, strings and lists of them.

    Observations: a Box with three dimensions may be an image and keeps its shape; every other space is flattened. An
    image of uint8 keeps its type; everything else becomes float32.

    Actions: a Box with finite bounds is mapped linearly from [-1, 1], because actions of a new policy have about that
    size. Values beyond the bounds are clipped. A Discrete space may start at any number.

    Random numbers: NumPy's and Python's global generators are seeded before every reset, for environments that draw
    from them. The episodes of such environments are the same in every run, but differ with the number of processes.

    Raises UserError for an environment that has no tasks, has spaces of other kinds, or fails in its first step;
    EnvironmentFailed if it fails later; RenderingUnavailable if it cannot render in `render_mode`.
    """

    def __init__(
        self,
        make: Callable[..., gym.Env],
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        kwargs: dict[str, Any] = {"max_episode_steps": max_episode_steps}
        if render_mode:
            probe = make(**kwargs)
            probe.close()
            if render_mode not in probe.metadata.get("render_modes", []):
                raise RenderingUnavailable(f"the environment does not support render_mode {render_mode}")
            # Gymnasium's own MuJoCo environments, Gymnasium-Robotics and Meta-World have this attribute
            if hasattr(unwrap(probe), "mujoco_renderer"):
                choose_opengl(render_mode == "human")
            kwargs["render_mode"] = render_mode
        try:
            self.envs = [flatten_observations(make(**kwargs)) for _ in range(num_envs)]
        except Exception as error:
            if render_mode:
                raise RenderingUnavailable(str(error)) from None
            raise
        first = self.envs[0]
        self._native_actions = ActionMap(first.action_space)
        self.single_observation_space = first.observation_space
        self.single_action_space = self._native_actions.policy_space
        self.metadata = VectorTasks.metadata | {"render_fps": first.metadata.get("render_fps") or 30}
        self._task_envs = [find_task_layer(env) for env in self.envs]
        protocol = find_protocol(self._task_envs[0])
        if protocol is None:
            raise UserError(f"it has no task distribution; {REMEDY}")
        self._protocol = protocol
        self.train_tasks, self.test_tasks = protocol.train_tasks, protocol.test_tasks
        if protocol.has_test_sampler:
            self.sample_test_task = self._sample_test_task
        super().__init__(num_envs, max_episode_steps, None, device)
        self.render_mode = render_mode
        shape, dtype = first.observation_space.shape or (), first.observation_space.dtype
        dtype = np.uint8 if len(shape) == 3 and dtype == np.uint8 else np.float32
        self._observations = np.zeros((num_envs, *shape), dtype)
        self._finished = np.zeros(num_envs, bool)  # whether the episode of a slot is over
        self._last_info: dict[str, np.ndarray] = {}  # name -> [E], from the infos of last steps; NaN where missing
        # one step now, so that an environment that cannot be played is refused before the run begins
        self.task_label(self.task[0])
        self._begin_episode(0, 0)
        self._observations[0] = first.step(
            self._native_actions(np.zeros((1, *(self.single_action_space.shape or ()))))[0]
        )[0]

    def sample_task(self, rng: np.random.Generator) -> Task:
        if self.train_tasks:
            return super().sample_task(rng)
        with environment_errors("in sample_task"):
            return plain_task(self._protocol.sample_task(self._task_envs[0], rng))

    def _sample_test_task(self, rng: np.random.Generator) -> Task:
        with environment_errors("in sample_test_task"):
            return plain_task(self._protocol.sample_test_task(self._task_envs[0], rng))

    def task_label(self, task: Task) -> str:
        with environment_errors(f"in task_label of task {task}"):
            return self._protocol.label(self._task_envs[0], task)

    def _begin_episode(self, e: int, seed: int) -> None:
        env, rng = self._task_envs[e], np.random.default_rng(seed)
        self._protocol.set_task(env, self.task[e])
        self._protocol.seed(env, rng)
        self._observations[e] = self.envs[e].reset(seed=int(seed))[0]

    def _reset(self, slots: np.ndarray) -> torch.Tensor:
        seeds = self._sample(lambda rng, n: rng.integers(2**31, size=n), slots)
        for e, seed in zip(slots, seeds, strict=True):
            try:
                self._begin_episode(e, seed)
            except Exception as error:
                raise self._failure(e, error) from None
        for values in self._last_info.values():
            values[slots] = np.nan
        self._finished[slots] = ~self._finite()[slots]
        return self._observation_tensor()

    def step(self, actions: torch.Tensor) -> StepResult:
        """Take one step in every slot whose episode is not over; see `VectorTasks.step`.

        A slot whose episode is over keeps its observation and gets reward 0. A slot whose observation is NaN or
        infinite is not stepped either: its action would be NaN or infinite. `collect` raises an error for it.

        The info holds the numbers and bools that the environments reported at the last step of their episodes.
        """
        self._elapsed += 1
        reward, terminated, truncated = (np.zeros(self.num_envs, kind) for kind in (float, bool, bool))
        for e, action in enumerate(self._native_actions(actions.cpu().numpy())):
            if not self._finished[e]:
                try:
                    result = self.envs[e].step(action)
                    self._observations[e], reward[e], terminated[e], truncated[e], info = result
                    if terminated[e] or truncated[e]:
                        self._record_info(e, info)
                except Exception as error:
                    raise self._failure(e, error) from None
        self._finished |= terminated | truncated | ~self._finite()
        ends = [torch.from_numpy(x).to(self.device) for x in (terminated, truncated)]
        return self._observation_tensor(), self._tensor(reward), ends[0], ends[1], self._info()

    def _finite(self) -> np.ndarray:  # [E]
        return np.all(np.isfinite(self._observations).reshape(self.num_envs, -1), axis=1)

    def _observation_tensor(self) -> torch.Tensor:
        return torch.from_numpy(self._observations.copy()).to(self.device)

    def _record_info(self, e: int, info: dict[str, Any] | None) -> None:
        for name, x in (info or {}).items():
            if isinstance(x, (bool, int, float, np.bool_, np.number)) and np.isfinite(x):
                self._last_info.setdefault(name, np.full(self.num_envs, np.nan))[e] = x

    def _info(self) -> Info:
        return {name: self._tensor(values.copy()) for name, values in self._last_info.items()}

    def _failure(self, e: int, error: Exception) -> EnvironmentFailed:
        return EnvironmentFailed.from_exception(f"at step {self._elapsed[e]}, task {self.task[e]}", error)

    def render(self) -> Frames:
        """Return one frame per slot. Raises RenderingUnavailable if the environment fails to render."""
        try:
            frames: Any = tuple(env.render() for env in self.envs)
        except Exception as error:
            raise RenderingUnavailable(f"the environment cannot render here ({error})") from None
        for frame in frames if self.render_mode == "rgb_array" else ():
            if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3:
                raise RenderingUnavailable("the environment's render() does not return a uint8 array [H, W, 3]")
        return frames

    def close_extras(self, **kwargs: Any) -> None:
        for env in self.envs:
            env.close()


class ActionMap:
    """Maps a policy's actions to those of an environment's own action space, a Box or a Discrete space.

    `policy_space` is the action space of the policy. Raises UserError for a space of another kind.
    """

    def __init__(self, space: gym.Space[Any]) -> None:
        if isinstance(space, Box):
            low, high = space.low.astype(float), space.high.astype(float)
            bounded = np.isfinite(low) & np.isfinite(high)
            low, high = np.where(bounded, low, -1), np.where(bounded, high, 1)
            self._centre, self._range = (low + high) / 2, high - low
            self.policy_space = Box(-1, 1, (math.prod(space.shape),))
        elif isinstance(space, Discrete):
            self.policy_space = Discrete(int(space.n))
        else:
            raise UserError(f"its action space is {space}; use Discrete or Box")
        self._space = space

    def __call__(self, actions: np.ndarray) -> Sequence[Any] | np.ndarray:
        """Map actions [B] or [B, A] to B elements of the environment's action space."""
        space = self._space
        if isinstance(space, Discrete):
            return (space.start + actions.astype(np.int64)).tolist()
        scaled = self._centre + actions.reshape(-1, *space.shape) * self._range / 2
        with np.errstate(invalid="ignore"):  # a slot whose observation is NaN is not stepped
            return np.clip(scaled, space.low, space.high).astype(space.dtype)


def find_task_layer(env: gym.Env) -> Any:
    """Return the outermost wrapper that has a task distribution, or the bare environment if no wrapper has one."""
    layer = env
    while isinstance(layer, gym.Wrapper):
        if find_protocol(layer):
            return layer
        layer = layer.env
    return unwrap(env)


def unwrap(env: gym.Env) -> Any:
    """Return the bare environment. If Shimmy has converted it, that is the environment of the old Gym within."""
    bare: Any = env.unwrapped
    return bare.gym_env.unwrapped if hasattr(bare, "gym_env") else bare


@contextlib.contextmanager
def environment_errors(where: str) -> Iterator[None]:
    """Turn any exception of the environment's own code into EnvironmentFailed. `where` completes its message."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise EnvironmentFailed.from_exception(where, error) from None


def flatten_observations(env: gym.Env) -> gym.Env:
    """Return the environment with the observations that policies see; see `flat_space`."""
    return env if flat_space(env.observation_space) is env.observation_space else FlattenObservation(env)


def flat_space(space: gym.Space[Any]) -> gym.Space[Any]:
    """Return the space of observations as vectors. A Box with three dimensions may be an image and stays as it is.

    Raises UserError for observations that cannot be flattened or contain no numbers.
    """
    for name, leaf in leaf_spaces(space):
        if not isinstance(leaf, (Box, Discrete, MultiBinary, MultiDiscrete)):
            raise UserError(f"its observation{name} is {leaf!r:.100}, which cannot be made a vector; leave it out")
    if not flatdim(space):
        raise UserError(f"its observation space {space} contains no numbers; give it at least one")
    return space if isinstance(space, Box) and len(space.shape) == 3 else flatten_space(space)


def leaf_spaces(space: gym.Space, name: str = "") -> Iterator[tuple[str, gym.Space]]:
    """Yield the spaces that a Dict or Tuple is built from, each with its path as one would index it."""
    if not isinstance(space, (Dict, Tuple)):
        yield name, space
        return
    for key, child in space.items() if isinstance(space, Dict) else enumerate(space):
        yield from leaf_spaces(child, f"{name}[{key!r}]")


def plain_task(task: Any) -> Task:
    """Return the task as plain Python numbers, strings and lists, as checkpoints and tables store it.

    Raises UserError if it contains anything else.
    """
    task = task.tolist() if isinstance(task, (np.ndarray, np.generic)) else task
    try:
        json.dumps(task)
    except TypeError as error:
        raise UserError(f"a task is {task!r}; use numbers, strings, and lists of them ({error})") from None
    return task
