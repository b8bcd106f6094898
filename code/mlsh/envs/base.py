"""What every task family shares: a batched environment on torch tensors, and its view as an ordinary one."""

import contextlib

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from mlsh.errors import EnvironmentFailed


class VectorTasks(VectorEnv):
    """A family of tasks as a batch of episodes; arrays are torch tensors on `device`.

    The E = `num_envs` slots fall into equal blocks of neighbours: `reset` takes a seed and `set_task` a task for
    each block, so that the episodes of one task group depend on that group's own seed alone. Nothing resets by
    itself; an episode that ended may be stepped on, and what it then returns means nothing.

    A subclass sets `single_observation_space` and `single_action_space`, and either `train_tasks` (a finite family:
    a list of ints) or `sample_task`. Tasks that are kept out of training, for tests, it has as `test_tasks` (other
    ints) or `sample_test_task(rng)`. It defines `_reset(which)`, which begins episodes in the slots `which` (an
    int array, ascending; the first time all) and returns the observations of all, `_step(actions)` -> observation,
    reward, terminated and info, as `step`, and `render`. If its episodes end by the limit alone it may say so, by
    `terminates = False`: then a GPU is not waited for after every step.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": ["human", "rgb_array"], "render_fps": 10}
    train_tasks: list | None = None
    test_tasks: list | None = None
    sample_test_task = None
    terminates = True

    def __init__(self, num_envs, max_episode_steps, render_mode, device):
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode is {render_mode!r}; use one of {self.metadata['render_modes']}")
        self.num_envs = num_envs
        self.max_episode_steps = max_episode_steps
        self.render_mode = render_mode
        self.device = torch.device(device)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        first = self.train_tasks[0] if self.train_tasks else self.sample_task(np.random.default_rng(0))
        self.task = [first] * num_envs
        self._rngs = [np.random.default_rng()]

    def sample_task(self, rng):
        """Draw a task with the NumPy generator `rng`."""
        return self.train_tasks[rng.integers(len(self.train_tasks))]

    def task_label(self, task):
        """The task's name for people."""
        return str(task)

    def optimal_returns(self, T):
        """The best possible mean return of each task in `T` steps, a dict; empty where that is not known."""
        return {}

    def set_task(self, task):
        """Give every episode `task`, or the j-th block of episodes `task[j]`; it holds from the next reset on.

        Raises ValueError for one that a finite family does not have.
        """
        tasks = list(task) if isinstance(task, (list, tuple)) else [task]
        family = self.train_tasks and [*self.train_tasks, *(self.test_tasks or ())]
        for t in tasks if family else ():
            if t not in family:
                raise ValueError(f"there is no task {t}; use one of {', '.join(map(str, family))}")
        self.task = [t for t in tasks for _ in range(self._block(len(tasks), "tasks"))]

    def reset(self, *, seed=None, options=None):
        """Begin new episodes in all slots, or in those that `options["reset_mask"]` (bool [E]) tells.

        `seed` is an int, a list of ints (one a block), or None to draw on. Returns the observations of all slots.
        """
        if seed is not None:
            seeds = list(seed) if isinstance(seed, (list, tuple)) else [seed]
            self._block(len(seeds), "seeds")
            self._rngs = [np.random.default_rng(s) for s in seeds]
        mask = (options or {}).get("reset_mask")
        if mask is None:
            self._elapsed = torch.zeros(self.num_envs, dtype=torch.long, device=self.device)
            return self._reset(np.arange(self.num_envs)), {}
        mask = torch.as_tensor(mask)
        self._elapsed = self._elapsed.masked_fill(mask.to(self.device), 0)
        return self._reset(np.flatnonzero(mask.cpu().numpy())), {}

    def step(self, actions):
        """Return observation [E, …], reward [E] (float32), terminated [E], truncated [E] (bool) and an info dict.

        Tensors [E] in the info of an episode's last step are reported as means, by the final test and in metrics.csv.
        """
        self._elapsed += 1
        observation, reward, terminated, info = self._step(actions)
        return observation, reward, terminated, self._elapsed == (self.max_episode_steps or -1), info

    def refuse_ends(self, ended):
        """Raise an EnvironmentFailed if an episode ended, bool tensor, where `terminates` says that none can have."""
        if ended.any():
            name = type(self).__name__
            raise EnvironmentFailed(f"{name} has ended an episode before its limit; it should say `terminates = True`")

    def simulating(self):
        """A context for as long as episodes are played, in which the environment may settle what its speed wants."""
        return contextlib.nullcontext()

    def _draw(self, sample, which):
        """`sample(rng, size)` of every block for as many of the slots `which` as it has, stacked to [len(which), …]."""
        block = self._block(len(self._rngs), "seeds")
        sizes = np.bincount(which // block, minlength=len(self._rngs))
        return np.concatenate([sample(rng, size) for rng, size in zip(self._rngs, sizes, strict=True)])

    def _tensor(self, array):
        return torch.from_numpy(np.asarray(array, np.float32)).to(self.device)  # as_tensor takes three times as long

    def _block(self, count, what):
        if self.num_envs % count:
            raise ValueError(f"{count} {what} do not divide {self.num_envs} episodes into equal blocks")
        return self.num_envs // count


class SingleEnv(gym.Env):
    """One episode of a VectorTasks as an ordinary Gymnasium environment on NumPy arrays."""

    vector_class: type[VectorTasks]

    def __init_subclass__(cls):
        cls.metadata = {k: v for k, v in cls.vector_class.metadata.items() if k != "autoreset_mode"}

    def __init__(self, render_mode=None, **kwargs):
        self._vector = self.vector_class(num_envs=1, render_mode=render_mode, **kwargs)
        self.render_mode = render_mode
        self.observation_space = self._vector.single_observation_space
        self.action_space = self._vector.single_action_space

    @property
    def train_tasks(self):
        return self._vector.train_tasks

    @property
    def test_tasks(self):
        return self._vector.test_tasks

    @property
    def task(self):
        return self._vector.task[0]

    def sample_task(self, rng):
        return self._vector.sample_task(rng)

    def set_task(self, task):
        self._vector.set_task([task])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._vector._rngs = [self.np_random]
        observation, info = self._vector.reset(options=options)
        if self.render_mode == "human":
            self._vector.render()
        return observation[0].numpy(), info

    def step(self, action):
        observation, reward, terminated, truncated, info = self._vector.step(torch.as_tensor(action)[None])
        if self.render_mode == "human":
            self._vector.render()
        info = {name: x.item() if isinstance(x, torch.Tensor) else x for name, x in info.items()}
        return observation[0].numpy(), reward.item(), terminated.item(), truncated.item(), info

    def render(self):
        frames = self._vector.render()
        return None if frames is None else frames[0]

    def close(self):
        self._vector.close()
