"""Anybody's Gymnasium environment as a task family: a copy for each episode, stepped one after the other."""

import contextlib
import json
import math

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.spaces.utils import flatdim
from gymnasium.wrappers import FlattenObservation

from mlsh.envs.base import VectorTasks
from mlsh.envs.opengl import choose_opengl
from mlsh.envs.protocols import WANTED, protocol_of
from mlsh.errors import EnvironmentFailed, RenderingUnavailable, UserError


class GymnasiumTasks(VectorTasks):
    """E copies of the environment that `make(max_episode_steps=…, render_mode=…)` makes.

    Its tasks come by the first of `protocols.PROTOCOLS` that fits; a sampled one has to be numbers, strings, and lists
    of them. Observations are flattened, but for a Box of three dimensions, which may be an image; if that is uint8, it
    stays so, and all else is float32. Box actions with finite bounds are mapped to them linearly from [-1, 1], the size
    of a new policy's actions; what is beyond is clipped. Raises UserError for an environment without tasks, with other
    spaces, or whose first step fails, EnvironmentFailed if a later one does.

    NumPy's and Python's global generators are seeded before every reset, for environments that draw from them; their
    episodes are then the same in every run, but not over different numbers of processes.
    """

    def __init__(self, make, num_envs=1, max_episode_steps=None, render_mode=None, device="cpu"):
        kwargs = {"max_episode_steps": max_episode_steps}
        if render_mode:
            probe = make(**kwargs)
            probe.close()
            if render_mode not in probe.metadata.get("render_modes", []):
                raise RenderingUnavailable(f"the environment has no render_mode {render_mode}")
            if hasattr(unwrapped(probe), "mujoco_renderer"):  # Gymnasium's own, Gymnasium-Robotics', Meta-World's
                choose_opengl(render_mode == "human")
            kwargs["render_mode"] = render_mode
        try:
            self.envs = [flat(make(**kwargs)) for _ in range(num_envs)]
        except Exception as error:
            if render_mode:
                raise RenderingUnavailable(str(error)) from None
            raise
        first = self.envs[0]
        space = first.action_space
        if not isinstance(space, (Box, Discrete)):
            raise UserError(f"its action space is {space}; Discrete and Box can be learned")
        self.single_observation_space = first.observation_space
        self.single_action_space = (
            Box(-1, 1, (math.prod(space.shape),)) if isinstance(space, Box) else Discrete(space.n)
        )
        self.metadata = VectorTasks.metadata | {"render_fps": first.metadata.get("render_fps") or 30}
        self._bare = [with_tasks(env) for env in self.envs]
        self._protocol = protocol_of(self._bare[0])
        if self._protocol is None:
            raise UserError(f"it has no task distribution; {WANTED}")
        self.train_tasks, self.test_tasks = self._protocol.train_tasks, self._protocol.test_tasks
        if self._protocol.holds_out:
            self.sample_test_task = self._sample_test_task
        super().__init__(num_envs, max_episode_steps, None, device)
        self.render_mode = render_mode
        seen = first.observation_space
        kept = np.uint8 if len(seen.shape) == 3 and seen.dtype == np.uint8 else np.float32
        self._observations = np.zeros((num_envs, *seen.shape), kept)
        self._over = np.zeros(num_envs, bool)
        self._final = {}  # name -> [E], what the infos of last steps had; NaN where there was nothing
        self.task_label(self.task[0])  # what cannot be played shows now
        self._start(0, 0)
        self._observations[0], _, _, _, _ = first.step(self._action(np.zeros(self.single_action_space.shape)))

    def sample_task(self, rng):
        if self.train_tasks:
            return super().sample_task(rng)
        with failures("in sample_task"):
            return plain(self._protocol.sample_task(self._bare[0], rng))

    def _sample_test_task(self, rng):
        with failures("in sample_test_task"):
            return plain(self._protocol.sample_test_task(self._bare[0], rng))

    def task_label(self, task):
        with failures(f"in task_label of task {task}"):
            return self._protocol.label(self._bare[0], task)

    def _start(self, e, seed):
        env, rng = self._bare[e], np.random.default_rng(seed)
        self._protocol.set_task(env, self.task[e])
        self._protocol.seed(env, rng)
        self._observations[e] = self.envs[e].reset(seed=int(seed))[0]

    def _reset(self, which):
        for e, seed in zip(which, self._draw(lambda rng, size: rng.integers(2**31, size=size), which), strict=True):
            try:
                self._start(e, seed)
            except Exception as error:
                raise self._failure(e, error) from None
        for reported in self._final.values():
            reported[which] = np.nan
        self._over[which] = ~self._finite()[which]
        return self._seen()

    def step(self, actions):
        """As `VectorTasks.step`; an episode that is over is left alone and earns nothing.

        So is one with an observation that is not finite, as an action would not be either; `collect` refuses it.
        The info has what environments reported at the last step of an episode, as far as it is a number or bool.
        """
        self._elapsed += 1
        reward, terminated, truncated = (np.zeros(self.num_envs, kind) for kind in (float, bool, bool))
        for e, action in enumerate(actions.cpu().numpy()):
            if not self._over[e]:
                try:
                    out = self.envs[e].step(self._action(action))
                    self._observations[e], reward[e], terminated[e], truncated[e], info = out
                    if terminated[e] or truncated[e]:
                        self._report(e, info)
                except Exception as error:
                    raise self._failure(e, error) from None
        self._over |= terminated | truncated | ~self._finite()
        ended = (torch.from_numpy(x).to(self.device) for x in (terminated, truncated))
        return self._seen(), self._tensor(reward), *ended, self._info()

    def _finite(self):
        return np.isfinite(self._observations).reshape(self.num_envs, -1).all(1)

    def _seen(self):
        return torch.from_numpy(self._observations.copy()).to(self.device)

    def _report(self, e, info):
        for name, x in (info or {}).items():
            if isinstance(x, (bool, int, float, np.bool_, np.number)) and np.isfinite(x):
                self._final.setdefault(name, np.full(self.num_envs, np.nan))[e] = x

    def _info(self):
        return {name: self._tensor(reported.copy()) for name, reported in self._final.items()}

    def _failure(self, e, error):
        return EnvironmentFailed.from_exception(f"at step {self._elapsed[e]}, task {self.task[e]}", error)

    def _action(self, action):
        space = self.envs[0].action_space
        if isinstance(space, Discrete):
            return int(space.start + action)
        low, high = (bound.astype(float) for bound in (space.low, space.high))
        bounded = np.isfinite(low) & np.isfinite(high)
        low, high = np.where(bounded, low, -1), np.where(bounded, high, 1)
        return np.clip((low + high) / 2 + action.reshape(space.shape) * (high - low) / 2, space.low, space.high).astype(
            space.dtype
        )

    def render(self):
        """A tuple of E frames. Raises RenderingUnavailable for whatever goes wrong in drawing."""
        try:
            frames = tuple(env.render() for env in self.envs)
        except Exception as error:
            raise RenderingUnavailable(f"the environment cannot draw here ({error})") from None
        for frame in frames if self.render_mode == "rgb_array" else ():
            if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3:
                raise RenderingUnavailable("the environment's render() gives no uint8 array [H, W, 3]")
        return frames

    def close_extras(self, **kwargs):
        for env in self.envs:
            env.close()


def with_tasks(env):
    """The outermost wrapper that has a task distribution, or, if none has, the environment itself."""
    layer = env
    while isinstance(layer, gym.Wrapper):
        if protocol_of(layer):
            return layer
        layer = layer.env
    return unwrapped(env)


def unwrapped(env):
    """The environment itself; that of old Gym which Shimmy wraps, too."""
    env = env.unwrapped
    return env.gym_env.unwrapped if hasattr(env, "gym_env") else env


@contextlib.contextmanager
def failures(where):
    """A context for what is somebody's: whatever it raises is an EnvironmentFailed."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise EnvironmentFailed.from_exception(where, error) from None


def flat(env):
    """The environment with its observations made vectors, but for a Box of three dimensions.

    Raises UserError for those that cannot be.
    """
    for name, space in leaves(env.observation_space):
        if not isinstance(space, (Box, Discrete, MultiBinary, MultiDiscrete)):
            raise UserError(f"its observation{name} is {space!r:.100}, which cannot be made a vector; leave it out")
    if not flatdim(env.observation_space):
        raise UserError(f"its observation is {env.observation_space}, without a number in it; give it one at least")
    space = env.observation_space
    return env if isinstance(space, Box) and len(space.shape) == 3 else FlattenObservation(env)


def leaves(space, name=""):
    """The spaces that a Dict or Tuple is made of, and their places in it."""
    if not isinstance(space, (Dict, Tuple)):
        yield name, space
        return
    for key, part in space.items() if isinstance(space, Dict) else enumerate(space):
        yield from leaves(part, f"{name}[{key!r}]")


def plain(task):
    """A task without NumPy, as checkpoints and tables have it. Raises UserError for one that they cannot have."""
    task = task.tolist() if isinstance(task, (np.ndarray, np.generic)) else task
    try:
        json.dumps(task)
    except TypeError as error:
        raise UserError(f"a task is {task!r}, but has to be numbers, strings, and lists of them ({error})") from None
    return task
