"""Any Gymnasium environment as a family of tasks: one copy per slot."""

import contextlib
import functools
import json
import math
import multiprocessing
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.spaces.utils import flatdim, flatten_space

from mlsh.envs import boundary
from mlsh.envs.base import Frames, Info, StepResult, Task, VectorTasks
from mlsh.envs.boundary import environment_errors
from mlsh.envs.copies import Block, Copies, CopySteps, Probe, find_task_layer, layers, unwrap
from mlsh.envs.memory import own_cores
from mlsh.envs.opengl import choose_opengl
from mlsh.envs.protocols import REMEDY, TaskProtocol, find_protocol, seed_global_generators
from mlsh.envs.statistics import RunningStatistics
from mlsh.envs.workers import Worker, close_workers, worthwhile_processes
from mlsh.errors import EnvironmentFailed, RenderingUnavailable, UserError

UNBOUNDED = 1e18  # bounds of a Box that are larger mean that there is none, as in Box(-finfo.max, finfo.max)
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
    and before every reset, for environments that draw from them. The spaces are seeded before every rollout. If steps
    draw from global generators, episodes are the same in every run with the same number of processes.

    Processes: this process and `processes` − 1 workers step equal shares of the copies at once. None stands for the
    number that should be fastest, judging by the first steps. It is 1 if these draw from global generators. There is
    always one process if the environment is rendered, if a wrapper keeps statistics from one episode to the next, or
    if `make` or the tasks cannot be pickled.

    Raises UserError for an environment that has no tasks, has spaces of other kinds, or fails in its first step;
    EnvironmentFailed if it fails later; RenderingUnavailable if it cannot render in `render_mode`.
    """

    _workers: Sequence[Worker] = ()

    def __init__(
        self,
        make: Callable[..., gym.Env],
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        device: str | torch.device = "cpu",
        processes: int | None = 1,
    ) -> None:
        make = functools.partial(make, max_episode_steps=max_episode_steps)
        first, make = make_first(make, render_mode)
        if hasattr(unwrap(first), "possible_agents"):
            raise UserError(f"it has possible_agents, but {ONE_AGENT}")
        self._native_actions = ActionMap(first.action_space)
        self.single_observation_space = flat_space(first.observation_space)
        self.single_action_space = self._native_actions.policy_space
        self.metadata = VectorTasks.metadata | {"render_fps": frames_per_second(first.metadata)}
        self._task_env = find_task_layer(first)
        protocol = find_protocol(self._task_env)
        if protocol is None:
            raise UserError(f"it has no task distribution; {REMEDY}")
        self._protocol = protocol
        self.train_tasks, self.test_tasks = protocol.train_tasks, protocol.test_tasks
        if protocol.has_test_sampler:
            self.sample_test_task = self._sample_test_task
        super().__init__(num_envs, max_episode_steps, None, device)
        self.render_mode = render_mode
        self._last_info: dict[str, np.ndarray] = {}  # name -> [E], from the infos of last steps; NaN where missing
        # Some steps now, so that an environment that cannot be played is refused before the run begins.
        self.task_label(self.task[0])
        action = self._native_actions(np.zeros((1, *(self.single_action_space.shape or ()))))[0]
        probed = Copies(self._blocks(make, 1, 1)[0], [first])
        probe = probed.probe(protocol.native_task(self.task[0]), action)
        self._make_copies(make, first, self._choose_processes(make, first, processes, probe))
        self._note_what_surprises(first)

    def _choose_processes(
        self, make: Callable[[], gym.Env], first: gym.Env, processes: int | None, probe: Probe
    ) -> int:
        """The number of processes: as wanted, or by default the fastest; 1 where there can be no workers."""
        wanted = processes
        if wanted is None:
            wanted = 1 if probe.draws_globally else worthwhile_processes(probe.seconds, self.num_envs, own_cores())
        wanted = min(wanted, self.num_envs)
        if wanted == 1 or self.render_mode:
            return 1
        reason = "a wrapper keeps statistics" if RunningStatistics([first]) else ""
        if not reason and not can_be_sent(make, self._protocol):
            reason = "the environment or its tasks cannot be pickled"
        if reason:
            boundary.say_once(f"note: {reason}, so one process steps all copies")
            return 1
        if processes is None:
            boundary.say_once(f"note: {wanted} processes step the copies, as with --env_workers {wanted}")
        return wanted

    def _blocks(self, make: Callable[[], gym.Env], num_envs: int, processes: int) -> list[Block]:
        """Equal shares of so many slots, with memory for their observations that processes share."""
        shape, dtype = self.single_observation_space.shape or (), self.single_observation_space.dtype
        dtype = np.uint8 if len(shape) == 3 and dtype == np.uint8 else np.float32
        of_all = (num_envs, *shape)
        size = math.prod(of_all) * np.dtype(dtype).itemsize
        memory: Any = multiprocessing.RawArray("b", size) if processes > 1 else bytearray(size)
        parts = [range(part[0], part[-1] + 1) for part in np.array_split(range(num_envs), processes)]
        return [Block(make, part, type(self._protocol), memory, dtype, of_all) for part in parts]

    def _make_copies(self, make: Callable[[], gym.Env], first: gym.Env, processes: int) -> None:
        """Make all copies, of which this process keeps the first ones."""
        blocks = self._blocks(make, self.num_envs, processes)
        self._observations = np.frombuffer(blocks[0].memory, blocks[0].dtype).reshape(blocks[0].shape)
        self._parts, self._workers = [block.slots for block in blocks], [Worker(block) for block in blocks[1:]]
        try:
            self._copies = Copies(blocks[0], [first])
            for worker in self._workers:
                worker.receive()
        except BaseException as error:
            self.close_extras()
            if self.render_mode and isinstance(error, EnvironmentFailed):
                raise RenderingUnavailable(str(error)) from None
            raise

    def _note_what_surprises(self, first: gym.Env) -> None:
        """Keep the statistics of normalising wrappers, and print a note about them and about goals in observations."""
        statistics = RunningStatistics(self._copies.envs)
        if statistics:
            self.components = {"environment": statistics}
            boundary.say_once(
                "note: a wrapper normalises with statistics of its own, and tests begin with new ones; leave it out, "
                "because --normalise does the same for observations and --reward_scale scales rewards"
            )
        space = first.observation_space
        if isinstance(space, Dict) and "desired_goal" in space.spaces:
            boundary.say_once(
                "note: the observations contain desired_goal, which shows the task to the policies; to leave it out, "
                "wrap the environment in gymnasium.wrappers.FilterObservation"
            )

    def sample_task(self, rng: np.random.Generator) -> Task:
        if self.train_tasks:
            return super().sample_task(rng)
        with environment_errors("in sample_task"):
            return plain_task(self._protocol.sample_task(self._task_env, rng))

    def _sample_test_task(self, rng: np.random.Generator) -> Task:
        with environment_errors("in sample_test_task"):
            return plain_task(self._protocol.sample_test_task(self._task_env, rng))

    def task_label(self, task: Task) -> str:
        with environment_errors(f"in task_label of task {task}"):
            return self._protocol.label(self._task_env, task)

    def _call(self, method: str, arguments: Sequence[tuple[Any, ...] | None]) -> list[Any]:
        """Call a method of the `Copies` in all processes at the same time, with arguments for each.

        Returns the results. Where the arguments are None it is not called, and the result is None.
        """
        (own, *others) = arguments
        for worker, given in zip(self._workers, others, strict=True):
            if given is not None:
                worker.send(method, *given)
        results = [None if own is None else getattr(self._copies, method)(*own)]
        called = zip(self._workers, others, strict=True)
        return [*results, *(None if given is None else worker.receive() for worker, given in called)]

    def _reset(self, slots: np.ndarray) -> torch.Tensor:
        seeds = self._sample(lambda rng, n: rng.integers(2**31, size=n), slots)
        arguments: list[tuple[Any, ...] | None] = []
        for part in self._parts:
            here = (slots >= part.start) & (slots < part.stop)
            tasks = [self.task[e] for e in slots[here]]
            natives = [self._protocol.native_task(task) for task in tasks]
            local, own_seeds = (slots[here] - part.start).tolist(), seeds[here].tolist()
            first = len(slots) == self.num_envs
            arguments.append((local, own_seeds, tasks, natives, first) if local else None)
        self._call("begin", arguments)
        for values in self._last_info.values():
            values[slots] = np.nan
        return self._observation_tensor()

    def step(self, actions: torch.Tensor) -> StepResult:
        """Take one step in every slot whose episode is not over; see `VectorTasks.step`.

        A slot whose episode is over keeps its observation and gets reward 0. A slot whose observation is NaN or
        infinite is not stepped either: its action would be NaN or infinite. `collect` raises an error for it.

        The info holds the numbers and bools that the environments reported at the last step of their episodes, for the
        first `MOST_INFOS` names.
        """
        self._elapsed += 1
        native = self._native_actions(actions.cpu().numpy())
        steps: list[CopySteps] = self._call("step", [(native[part.start : part.stop],) for part in self._parts])
        for part, step in zip(self._parts, steps, strict=True):
            for e, info in step.infos.items():
                self._record_info(part.start + e, info)
        reward = self._tensor(np.concatenate([step.reward for step in steps]))
        terminated = torch.from_numpy(np.concatenate([step.terminated for step in steps])).to(self.device)
        truncated = torch.from_numpy(np.concatenate([step.truncated for step in steps])).to(self.device)
        return self._observation_tensor(), reward, terminated, truncated, self._info()

    def _observation_tensor(self) -> torch.Tensor:
        return torch.from_numpy(self._observations.copy()).to(self.device)

    def _record_info(self, e: int, info: dict[str, float]) -> None:
        for name, x in info.items():
            if name in self._last_info or len(self._last_info) < MOST_INFOS:
                self._last_info.setdefault(name, np.full(self.num_envs, np.nan))[e] = x
            else:
                boundary.say_once(f"note: infos have more than {MOST_INFOS} names; only the first are logged")

    def _info(self) -> Info:
        return {name: self._tensor(values.copy()) for name, values in self._last_info.items()}

    def render(self) -> Frames:
        """Return what `render()` of each copy returns. Raises RenderingUnavailable if one of them fails."""
        try:
            with environment_errors("in render"):
                frames: Any = tuple(env.render() for env in self._copies.envs)
        except EnvironmentFailed as error:
            raise RenderingUnavailable(str(error)) from None
        return frames

    def close_extras(self, **kwargs: Any) -> None:
        """Close the copies and end the workers."""
        close_workers(self._workers)
        if hasattr(self, "_copies"):
            self._copies.close()


def make_first(make: Callable[..., gym.Env], render_mode: str | None) -> tuple[gym.Env, Callable[[], gym.Env]]:
    """Return the first copy, and a function without arguments that makes the others."""
    try:
        with boundary.each_warning_once():
            if render_mode:
                prepare_rendering(make(), render_mode)
                make = functools.partial(make, render_mode=render_mode)
            seed_global_generators(np.random.default_rng(0))
            return make(), make
    except RenderingUnavailable:
        raise
    except BaseException as error:
        failed = EnvironmentFailed.from_exception("at its start", error)
        if isinstance(error, TypeError) and "gymnasium.Env class" in str(error):
            failed = UserError(f"it is no gymnasium.Env; {ONE_AGENT}, such as PettingZoo's")
        raise (RenderingUnavailable(str(failed)) if render_mode else failed) from None


def can_be_sent(make: Callable[[], gym.Env], protocol: TaskProtocol) -> bool:
    """Return whether another process can make copies and set the tasks of a finite family."""
    try:
        tasks = [*(protocol.train_tasks or ()), *(protocol.test_tasks or ())]
        pickle.loads(pickle.dumps((make, [protocol.native_task(task) for task in tasks])))
    except Exception:  # other people's objects may fail in any way
        return False
    return True


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
