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
from gymnasium.spaces.utils import flatdim, flatten, flatten_space

from mlsh.envs import boundary
from mlsh.envs.base import Frames, Info, StepResult, Task, VectorTasks
from mlsh.envs.boundary import environment_errors
from mlsh.envs.opengl import choose_opengl
from mlsh.envs.protocols import REMEDY, find_protocol, seed_global_generators, spaces_of
from mlsh.envs.statistics import RunningStatistics
from mlsh.errors import EnvironmentFailed, RenderingUnavailable, UserError

UNBOUNDED = 1e18  # bounds of a Box that are larger mean that there is none, as in Box(-finfo.max, finfo.max)
NUMBERS = (float, int, np.float64, np.float32)  # types of rewards that need no conversion
MOST_INFOS = 100  # names of numbers in infos; each one is a column of metrics.csv
ONE_AGENT = "environments of several agents are not supported"


class GymnasiumTasks(VectorTasks):
    """A family of tasks played on E copies of `make(max_episode_steps=…, render_mode=…)`.

    Tasks: the first of `protocols.PROTOCOLS` that matches the environment samples and sets them. A sampled task must
    consist of numbers, strings and lists of them.

    Observations: a Box with three dimensions may be an image and keeps its shape; every other space is flattened. An
    image of uint8 keeps its type; everything else becomes float32.

    Actions: a Box with finite bounds is mapped linearly from [-1, 1], because actions of a new policy have about that
    size. Values beyond the bounds are clipped, and rounded for a Box of integers. A Discrete space may start at any
    number.

    Random numbers: the global generators of NumPy, Python and torch (on the CPU) are seeded before every copy is made
    and before every reset, for environments that draw from them. The spaces are seeded before every rollout. The
    episodes of environments that draw from global generators are the same in every run, but differ with the number of
    processes.

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
        self.envs: list[gym.Env] = []
        self._make_copies(make, num_envs, max_episode_steps, render_mode)
        first = self.envs[0]
        if hasattr(unwrap(first), "possible_agents"):
            raise UserError(f"it has possible_agents, but {ONE_AGENT}")
        self._native_actions = ActionMap(first.action_space)
        self._native_space = first.observation_space
        self.single_observation_space = flat_space(self._native_space)
        self.single_action_space = self._native_actions.policy_space
        self.metadata = VectorTasks.metadata | {"render_fps": frames_per_second(first.metadata)}
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
        shape, dtype = self.single_observation_space.shape or (), self.single_observation_space.dtype
        dtype = np.uint8 if len(shape) == 3 and dtype == np.uint8 else np.float32
        self._bytes = dtype is np.uint8
        self._observations = np.zeros((num_envs, *shape), dtype)
        self._native_shape = self._native_space.shape if isinstance(self._native_space, Box) else shape
        self._native_observations = self._observations.reshape(num_envs, *self._native_shape)  # the same memory
        self._finished = np.zeros(num_envs, bool)  # whether the episode of a slot is over
        self._last_info: dict[str, np.ndarray] = {}  # name -> [E], from the infos of last steps; NaN where missing
        self._note_what_surprises()
        # one step now, so that an environment that cannot be played is refused before the run begins
        self.task_label(self.task[0])
        self._begin_episode(0, 0, in_new_rollout=True)
        action = self._native_actions(np.zeros((1, *(self.single_action_space.shape or ()))))[0]
        observation, reward, *ends, _ = first.step(action)
        self._keep_observation(0, observation)
        boundary.reward_in(reward)
        for flag in ends:
            boundary.flag_in(flag)

    def _make_copies(
        self, make: Callable[..., gym.Env], num_envs: int, max_episode_steps: int | None, render_mode: str | None
    ) -> None:
        """Make the copies one after another, each with global generators of the same seed in every run."""
        kwargs: dict[str, Any] = {"max_episode_steps": max_episode_steps}
        try:
            with boundary.each_warning_once():
                if render_mode:
                    prepare_rendering(make(**kwargs), render_mode)
                    kwargs["render_mode"] = render_mode
                for e in range(num_envs):
                    seed_global_generators(np.random.default_rng(e))
                    self.envs.append(make(**kwargs))
        except RenderingUnavailable:
            raise
        except BaseException as error:
            where = f"when copy {len(self.envs) + 1} of {num_envs} was made" if self.envs else "at its start"
            self.close_extras()
            failed = EnvironmentFailed.from_exception(where, error)
            if isinstance(error, TypeError) and "gymnasium.Env class" in str(error):
                failed = UserError(f"it is no gymnasium.Env; {ONE_AGENT}, such as PettingZoo's")
            raise (RenderingUnavailable(str(failed)) if render_mode else failed) from None

    def _note_what_surprises(self) -> None:
        """Keep the statistics of normalising wrappers, and print a note about them and about goals in observations."""
        statistics = RunningStatistics(self.envs)
        if statistics:
            self.components = {"environment": statistics}
            boundary.say_once(
                "note: a wrapper normalises with statistics of its own, and tests begin with new ones; leave it out, "
                "because --normalise does the same for observations and --reward_scale scales rewards"
            )
        if isinstance(self._native_space, Dict) and "desired_goal" in self._native_space.spaces:
            boundary.say_once(
                "note: the observations contain desired_goal, which shows the task to the policies; to leave it out, "
                "wrap the environment in gymnasium.wrappers.FilterObservation"
            )

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

    def _begin_episode(self, e: int, seed: int, in_new_rollout: bool) -> None:
        env, rng = self._task_envs[e], np.random.default_rng(seed)
        self._protocol.seed(env, rng)
        self._protocol.set_task(env, self.task[e])
        if in_new_rollout:  # for every episode it would take too long
            for space in (space for layer in layers(self.envs[e]) for space in spaces_of(layer)):
                space.seed(seed)
        self._keep_observation(e, boundary.reset_observation(self.envs[e].reset(seed=int(seed))))

    def _keep_observation(self, e: int, observation: Any) -> None:
        if not isinstance(self._native_space, Box):
            boundary.check_categories(self._native_space, observation)
            observation = flatten(self._native_space, observation)
        if type(observation) is not np.ndarray or observation.shape != self._native_shape:
            observation = boundary.array_of_shape(observation, self._native_shape)
        self._native_observations[e] = boundary.as_bytes(observation) if self._bytes else observation

    def _reset(self, slots: np.ndarray) -> torch.Tensor:
        seeds = self._sample(lambda rng, n: rng.integers(2**31, size=n), slots)
        e = 0
        try:
            with boundary.restored_settings():
                for e, seed in zip(slots.tolist(), seeds.tolist(), strict=True):
                    self._begin_episode(e, seed, in_new_rollout=len(slots) == self.num_envs)
        except BaseException as error:
            raise self._failure(e, error) from None
        for values in self._last_info.values():
            values[slots] = np.nan
        self._finished[slots] = ~self._finite()[slots]
        return self._observation_tensor()

    def step(self, actions: torch.Tensor) -> StepResult:
        """Take one step in every slot whose episode is not over; see `VectorTasks.step`.

        A slot whose episode is over keeps its observation and gets reward 0. A slot whose observation is NaN or
        infinite is not stepped either: its action would be NaN or infinite. `collect` raises an error for it.

        The info holds the numbers and bools that the environments reported at the last step of their episodes, for the
        first `MOST_INFOS` names.
        """
        self._elapsed += 1
        rewards, terminated, truncated = (np.zeros(self.num_envs, kind) for kind in (float, bool, bool))
        envs, observations, e = self.envs, self._native_observations, 0
        shape = None if self._bytes else self._native_shape
        try:
            with boundary.restored_settings():
                native_actions = self._native_actions(actions.cpu().numpy())
                for e in np.flatnonzero(~self._finished).tolist():
                    observation, reward, ends, is_cut, info = envs[e].step(native_actions[e])
                    if type(observation) is np.ndarray and observation.shape == shape:  # almost always
                        observations[e] = observation
                    else:
                        self._keep_observation(e, observation)
                    rewards[e] = reward if type(reward) in NUMBERS else boundary.reward_in(reward)
                    if ends is not False or is_cut is not False:  # it has ended, or reports that in another type
                        terminated[e], truncated[e] = boundary.flag_in(ends), boundary.flag_in(is_cut)
                        if terminated[e] or truncated[e]:
                            self._record_info(e, info)
        except BaseException as error:
            raise self._failure(e, error) from None
        self._finished |= terminated | truncated | ~self._finite()
        ends = [torch.from_numpy(x).to(self.device) for x in (terminated, truncated)]
        return self._observation_tensor(), self._tensor(rewards), ends[0], ends[1], self._info()

    def _finite(self) -> np.ndarray:  # [E]
        return np.all(np.isfinite(self._observations).reshape(self.num_envs, -1), axis=1)

    def _observation_tensor(self) -> torch.Tensor:
        return torch.from_numpy(self._observations.copy()).to(self.device)

    def _record_info(self, e: int, info: Any) -> None:
        for name, x in boundary.info_in(info).items():
            if name in self._last_info or len(self._last_info) < MOST_INFOS:
                self._last_info.setdefault(name, np.full(self.num_envs, np.nan))[e] = x
            else:
                boundary.say_once(f"note: infos have more than {MOST_INFOS} names; only the first are logged")

    def _info(self) -> Info:
        return {name: self._tensor(values.copy()) for name, values in self._last_info.items()}

    def _failure(self, e: int, error: BaseException) -> EnvironmentFailed:
        return EnvironmentFailed.from_exception(f"at step {self._elapsed[e]}, task {self.task[e]}", error)

    def render(self) -> Frames:
        """Return what `render()` of each copy returns. Raises RenderingUnavailable if one of them fails."""
        try:
            with environment_errors("in render"):
                frames: Any = tuple(env.render() for env in self.envs)
        except EnvironmentFailed as error:
            raise RenderingUnavailable(str(error)) from None
        return frames

    def close_extras(self, **kwargs: Any) -> None:
        """Close the copies. What fails here is ignored, because nothing depends on it any more."""
        for env in self.envs:
            with contextlib.suppress(EnvironmentFailed), environment_errors("in close"):
                env.close()


class ActionMap:
    """Maps a policy's actions to those of an environment's own action space, a Box or a Discrete space.

    `policy_space` is the action space of the policy. Raises UserError for a space of another kind.
    """

    def __init__(self, space: gym.Space[Any]) -> None:
        if isinstance(space, Box):
            low, high = space.low.astype(float), space.high.astype(float)
            bounded = (np.abs(low) < UNBOUNDED) & (np.abs(high) < UNBOUNDED)
            nearest = np.clip(0, low, high)  # to 0, so that a single bound does not clip all actions
            low, high = np.where(bounded, low, nearest - 1), np.where(bounded, high, nearest + 1)
            self._centre, self._range = (low + high) / 2, high - low
            self._is_whole = space.dtype.kind in "iub"
            self.policy_space = Box(-1, 1, (math.prod(space.shape),))
        elif isinstance(space, Discrete):
            self.policy_space = Discrete(int(space.n))
        else:
            several = f" ({ONE_AGENT})" if isinstance(space, (Dict, Tuple)) or callable(space) else ""
            raise UserError(f"its action space is {boundary.shortened(space)}; use Discrete or Box{several}")
        self._space = space

    def __call__(self, actions: np.ndarray) -> Sequence[Any] | np.ndarray:
        """Map actions [B] or [B, A] to B elements of the environment's action space."""
        space = self._space
        if isinstance(space, Discrete):
            return (space.start + actions.astype(np.int64)).tolist()
        scaled = self._centre + actions.reshape(-1, *space.shape) * self._range / 2
        scaled = np.rint(scaled) if self._is_whole else scaled
        with np.errstate(invalid="ignore"):  # a slot whose observation is NaN is not stepped
            return np.clip(scaled, space.low, space.high).astype(space.dtype)


def find_task_layer(env: gym.Env) -> Any:
    """Return the outermost wrapper that has a task distribution, or the bare environment if no wrapper has one."""
    wrappers = (layer for layer in layers(env) if isinstance(layer, gym.Wrapper))
    return next((layer for layer in wrappers if find_protocol(layer)), unwrap(env))


def unwrap(env: gym.Env) -> Any:
    """Return the bare environment. If Shimmy has converted it, that is the environment of the old Gym within."""
    bare: Any = env.unwrapped
    return bare.gym_env.unwrapped if hasattr(bare, "gym_env") else bare


def prepare_rendering(probe: gym.Env, render_mode: str) -> None:
    """Close a copy of an environment, after choosing a way to draw if it uses MuJoCo.

    Raises RenderingUnavailable if the environment does not have the render mode, or if OpenGL does not work here.
    """
    needs_opengl = uses_mujoco(probe)
    with contextlib.suppress(EnvironmentFailed), environment_errors("in close"):
        probe.close()
    if render_mode not in ((probe.metadata or {}).get("render_modes") or ()):
        raise RenderingUnavailable(f"the environment does not support render_mode {render_mode}")
    if needs_opengl:
        choose_opengl(render_mode == "human")


def uses_mujoco(env: gym.Env) -> bool:
    """Return whether an environment, or an object up to two attributes away from it, belongs to MuJoCo."""
    objects: list[Any] = list(layers(env))
    for _ in range(2):
        objects += [x for owner in objects for x in getattr(owner, "__dict__", {}).values()]
    modules = {kind.__module__ for x in objects for kind in type(x).__mro__}
    return any("mujoco" in module or "dm_control" in module for module in modules)


def layers(env: gym.Env) -> Iterator[gym.Env]:
    """Yield the environment and what it wraps, from the outermost wrapper inwards."""
    yield env
    while isinstance(env, gym.Wrapper):
        env = env.env
        yield env


def frames_per_second(metadata: Any) -> float:
    """Return the frame rate in an environment's metadata, or 30 if there is no positive number."""
    rate: Any = (metadata or {}).get("render_fps")
    try:
        return float(rate) if 0 < float(rate) < math.inf else 30
    except (TypeError, ValueError):
        return 30


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
    task = without_numpy(task)
    try:
        json.dumps(task)
    except TypeError as error:
        raise UserError(f"a task is {task!r}; use numbers, strings, and lists of them ({error})") from None
    return task


def without_numpy(x: Any) -> Any:
    """Return `x` with plain values for NumPy's, also within lists and tuples."""
    if isinstance(x, (np.ndarray, np.generic)):
        return x.tolist()
    return type(x)(map(without_numpy, x)) if type(x) in (list, tuple) else x
