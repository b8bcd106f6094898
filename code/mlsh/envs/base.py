"""The base classes of all task families: a batched environment on torch tensors, and its single-episode view."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from mlsh.errors import EnvironmentFailed

Task: TypeAlias = int | float | str | Sequence["Task"]  # an int in a finite family; a sampled task may be any of these
Info: TypeAlias = dict[str, Any]
StepResult: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Info]
Frames: TypeAlias = tuple[np.ndarray, ...] | None  # one uint8 [height, width, 3] per slot; None in "human" mode


class VectorTasks(VectorEnv[torch.Tensor, torch.Tensor, torch.Tensor]):
    """A family of tasks, played as a batch of E = `num_envs` episodes side by side.

    All arrays are torch tensors on `device`. Each of the E slots plays one episode at a time. Nothing is reset
    automatically. A slot whose episode has ended may be stepped further, but what it then returns is meaningless.

    The slots form equal blocks of neighbours, one block per task group. `reset` takes one seed per block and `set_task`
    one task per block. So the episodes of a group depend on that group's seed alone.

    A subclass provides:

    - `single_observation_space` and `single_action_space`
    - its tasks: either `train_tasks` (a finite family, a list of ints) or `sample_task(rng)`
    - held-out tasks, if there are any: `test_tasks` (ints that are not in `train_tasks`) or `sample_test_task(rng)`
    - `_reset(slots)`: begins episodes in `slots`, an ascending int array that holds all slots the first time, and
      returns the observations of all slots
    - `_step(actions)`: returns observation, reward, terminated and info, as `step` does
    - `render()`

    A subclass sets `terminates = False` if only the time limit ends its episodes. A rollout on a GPU then need not wait
    for the GPU after every step to learn whether an episode has ended.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": ["human", "rgb_array"], "render_fps": 10}
    train_tasks: list[int] | None = None
    test_tasks: list[int] | None = None
    sample_test_task: Callable[[np.random.Generator], Task] | None = None
    terminates = True
    task_shape: tuple[int, ...] | None = None  # of sampled tasks, if each is an array of numbers
    components: Mapping[str, Any] = {}  # what a checkpoint keeps of the environment: name -> it has state_dict()

    def __init__(
        self, num_envs: int, max_episode_steps: int | None, render_mode: str | None, device: str | torch.device
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode is {render_mode!r}; use one of {self.metadata['render_modes']}")
        self.num_envs = num_envs
        self.max_episode_steps = max_episode_steps
        self.render_mode = render_mode
        self.device = torch.device(device)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        first = self.train_tasks[0] if self.train_tasks else self.sample_task(np.random.default_rng(0))
        self.task: list[Task] = [first] * num_envs
        self._rngs = [np.random.default_rng()]

    @property
    def all_tasks(self) -> list[int]:
        """The tasks of a finite family: those for training, then the held-out ones. Empty if tasks are sampled."""
        return [*self.train_tasks, *(self.test_tasks or ())] if self.train_tasks else []

    def sample_task(self, rng: np.random.Generator) -> Task:
        """Draw a task for training with the NumPy generator `rng`."""
        if self.train_tasks is None:
            raise NotImplementedError("a family without train_tasks defines sample_task")
        return self.train_tasks[rng.integers(len(self.train_tasks))]

    def task_label(self, task: Any) -> str:
        """Return a readable name of the task."""
        return str(task)

    def optimal_returns(self, T: int) -> dict[int, float]:
        """Return the best possible mean return of each task in `T` steps, or an empty dict if it is unknown."""
        return {}

    def position(self) -> torch.Tensor | None:
        """Return where the agents are, [E, 2], or None if that is unknown or means nothing."""
        return None

    def set_task(self, task: Task) -> None:
        """Set one task for all episodes, or with a list the task of each block. It takes effect at the next reset.

        Raises ValueError if the family does not have the task, or if the list does not divide the slots equally.
        """
        tasks = list(task) if isinstance(task, (list, tuple)) else [task]
        self._check_tasks(tasks)
        self.task = [t for t in tasks for _ in range(self._block_size(len(tasks), "tasks"))]

    def _check_tasks(self, tasks: Sequence[Task]) -> None:
        """Raise ValueError for a task that the family does not have. Sampled ones need a `task_shape` to be checked."""
        if self.all_tasks:
            for task in tasks:
                if task not in self.all_tasks:
                    raise ValueError(f"there is no task {task!r}; use one of {', '.join(map(str, self.all_tasks))}")
            return
        for task in tasks if self.task_shape is not None else ():
            with contextlib.suppress(ValueError):  # raised for lists of several lengths
                numbers = np.asarray(task)
                if numbers.dtype.kind in "iuf" and numbers.shape == self.task_shape and np.isfinite(numbers).all():
                    continue
            example = self.sample_task(np.random.default_rng(0))
            raise ValueError(f"{task!r:.60} is no task of this family; use finite numbers such as {example}")

    def reset(
        self, *, seed: int | list[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[torch.Tensor, Info]:
        """Begin new episodes in all slots, or only where `options["reset_mask"]` (bool [E]) is true.

        `seed` is an int, or a list with one int per block, or None to continue with the current random generators.
        `options["task"]` sets the task as `set_task` does. Returns the observations of all slots and an empty info.
        Raises ValueError if the seeds do not divide the slots equally, and as `set_task` does.
        """
        if options and "task" in options:
            self.set_task(options["task"])
        if seed is not None:
            seeds = list(seed) if isinstance(seed, (list, tuple)) else [seed]
            self._block_size(len(seeds), "seeds")
            self._rngs = [np.random.default_rng(s) for s in seeds]
        mask = (options or {}).get("reset_mask")
        if mask is None:
            self._elapsed = torch.zeros(self.num_envs, dtype=torch.long, device=self.device)
            return self._reset(np.arange(self.num_envs)), {}
        mask = torch.as_tensor(mask)
        self._elapsed = self._elapsed.masked_fill(mask.to(self.device), 0)
        return self._reset(np.flatnonzero(mask.cpu().numpy())), {}

    def step(self, actions: torch.Tensor) -> StepResult:
        """Take one step in every slot.

        Returns observation [E, …], reward [E] (float32), terminated [E], truncated [E] (both bool) and an info dict.
        The final test and metrics.csv report the means of tensors [E] in the info of an episode's last step.
        """
        self._elapsed += 1
        if not actions.is_floating_point():
            actions = actions.long()  # torch takes other integer types for masks, or not at all
        observation, reward, terminated, info = self._step(actions)
        return observation, reward, terminated, self._elapsed == (self.max_episode_steps or -1), info

    def render(self) -> Frames:
        """Return one frame per slot, or show the first episode in a window and return None ("human")."""
        raise NotImplementedError

    def _reset(self, slots: np.ndarray) -> torch.Tensor:
        raise NotImplementedError

    def _step(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Info]:
        raise NotImplementedError

    def check_no_early_end(self, ended: torch.Tensor) -> None:
        """Check steps at which no episode can have ended if `terminates` is right; `ended` is a bool tensor.

        Raises EnvironmentFailed if an episode has ended nevertheless.
        """
        if ended.any():
            name = type(self).__name__
            raise EnvironmentFailed(f"{name} has ended an episode before its time limit; set its `terminates` to True")

    def rollout_context(self) -> contextlib.AbstractContextManager[None]:
        """Return a context to play episodes in. A subclass may change settings within it to make simulation faster."""
        return contextlib.nullcontext()

    def _sample(self, draw: Callable[[np.random.Generator, int], np.ndarray], slots: np.ndarray) -> np.ndarray:
        """Draw random values for `slots`, each from the generator of its own block.

        `draw(rng, n)` returns n values [n, …]. It is called once per block, with the number of slots in that block.
        Returns the values [len(slots), …].
        """
        size = self._block_size(len(self._rngs), "seeds")
        counts = np.bincount(slots // size, minlength=len(self._rngs))
        return np.concatenate([draw(rng, n) for rng, n in zip(self._rngs, counts, strict=True)])

    def _tensor(self, array: Any) -> torch.Tensor:
        """Convert to a float32 tensor on the device; `as_tensor` would take three times as long."""
        return torch.from_numpy(np.asarray(array, np.float32)).to(self.device)

    def _block_size(self, count: int, what: str) -> int:
        if self.num_envs % count:
            raise ValueError(f"{count} {what} do not divide {self.num_envs} episodes into equal blocks")
        return self.num_envs // count


class SingleEnv(gym.Env[np.ndarray, Any]):
    """One episode of a `VectorTasks` as an ordinary Gymnasium environment on NumPy arrays.

    A subclass names the batched class as `vector_class`. Keyword arguments go to its constructor, except `task`: the
    task of the episodes, as `set_task` or `reset(options={"task": …})` set it. Default: the first training task.
    """

    vector_class: type[VectorTasks]

    def __init_subclass__(cls) -> None:
        cls.metadata = {k: v for k, v in cls.vector_class.metadata.items() if k != "autoreset_mode"}

    def __init__(self, render_mode: str | None = None, task: Task | None = None, **kwargs: Any) -> None:
        self._vector = self.vector_class(num_envs=1, render_mode=render_mode, **kwargs)
        if task is not None:
            self.set_task(task)
        self.render_mode = render_mode
        self.observation_space = self._vector.single_observation_space
        self.action_space = self._vector.single_action_space

    @property
    def train_tasks(self) -> list[int] | None:
        return self._vector.train_tasks

    @property
    def test_tasks(self) -> list[int] | None:
        return self._vector.test_tasks

    @property
    def task(self) -> Task:
        return self._vector.task[0]

    def sample_task(self, rng: np.random.Generator) -> Task:
        return self._vector.sample_task(rng)

    def set_task(self, task: Task) -> None:
        self._vector.set_task([task])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._vector._rngs = [self.np_random]
        if options and "task" in options:
            self.set_task(options["task"])
        observation, info = self._vector.reset()
        if self.render_mode == "human":
            self._vector.render()
        return observation[0].numpy(), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one step. Raises ValueError for an action that a Discrete action space does not contain."""
        if isinstance(self.action_space, Discrete):
            if not self.action_space.contains(np.asarray(action)):
                raise ValueError(f"the action is {action!r}; use an integer of {self.action_space}")
            action = int(action)  # a tensor of another integer type is no index
        observation, reward, terminated, truncated, info = self._vector.step(torch.as_tensor(action)[None])
        if self.render_mode == "human":
            self._vector.render()
        info = {name: x.item() if isinstance(x, torch.Tensor) else x for name, x in info.items()}
        return observation[0].numpy(), reward.item(), bool(terminated), bool(truncated), info

    def render(self) -> np.ndarray | None:
        frames = self._vector.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        self._vector.close()
