"""Environments that are legal, or nearly, for tests: `--env awkward:ID`. Each differs from Walk in one way."""

import os
import random
import signal
import sys
import tempfile
import time
import warnings
from multiprocessing import parent_process
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete
from gymnasium.wrappers import NormalizeObservation, NormalizeReward


class Walk(gym.Env):
    """A walk on a line from 0; the task is the side that pays."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    train_tasks = [-1, 1]

    def __init__(self, render_mode=None):
        self.render_mode, self.goal = render_mode, 1
        self.action_space, self.observation_space = Discrete(3), Box(-99, 99, (2,), np.float32)

    def set_task(self, task):
        self.goal = task

    def observed(self):
        return np.array([self.x, self.t / 10], np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.t = 0
        return self.observed(), {}

    def reward(self):
        return float(self.x * np.sum(self.goal) > 0)

    def info(self):
        return {}

    def step(self, action):
        self.x, self.t = self.x + int(action) - 1, self.t + 1
        return self.observed(), self.reward(), False, False, self.info()

    def picture(self):
        frame = np.zeros((40, 60, 3), np.uint8)
        frame[10:20, 10 + 4 * self.t : 14 + 4 * self.t] = 255  # white, and further right at each step
        return frame

    def render(self):
        return self.picture()


def of(**methods):
    """A class like Walk with other methods or attributes."""
    return type("Awkward", (Walk,), methods)


def with_reward(convert):
    return of(reward=lambda self: convert(Walk.reward(self)))


def drawing(convert):
    return of(render=lambda self: convert(self.picture()))


def at_start(action):
    """A class whose constructor does something to the process."""

    def __init__(self, render_mode=None):
        Walk.__init__(self, render_mode)
        action()

    return of(__init__=__init__)


class Underflows(Walk):
    """Makes NumPy raise floating-point errors, and causes one after the steps that are tried before a run."""

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        np.seterr(all="raise")

    def reward(self):
        return float(np.float64(1e-300) ** 2) if self.t > 3 else 1.0


def leave(*args):
    sys.exit()


class Panic(BaseException):
    """What a library written in Rust raises when it panics."""


def panic(*args):
    raise Panic


def fail(*args):
    raise RuntimeError("its own")


class Canvas(Walk):
    """Draws into the same array again and again."""

    canvas = None

    def render(self):
        self.canvas = self.picture() if self.canvas is None else self.canvas
        self.canvas[:] = self.picture()
        return self.canvas


class OldReset(Walk):
    def reset(self, seed=None, options=None):
        return super().reset(seed=seed)[0]


class SixValues(Walk):
    def step(self, action):
        return *super().step(action), None


class Arrays(Walk):
    """Reports the end of an episode in arrays."""

    def step(self, action):
        observation, reward, *_ = super().step(action)
        return observation.tolist(), reward, np.array([self.t == 3]), torch.tensor(False), None


def ending(flag):
    """A class whose `step` returns another flag for the end of an episode."""

    def step(self, action):
        observation, reward, _, *others = Walk.step(self, action)
        return observation, reward, flag, *others

    return of(step=step)


def observing(space, observed):
    """A class with other observations."""

    def __init__(self, render_mode=None):
        Walk.__init__(self, render_mode)
        self.observation_space = space

    return of(__init__=__init__, observed=observed)


def sampling(sample_task):
    """A class whose tasks are sampled, and change nothing."""
    return of(train_tasks=None, sample_task=sample_task, set_task=lambda self, task: None)


class FromSpace(Walk):
    """Begins where its action space says, and draws its tasks from another space."""

    train_tasks = None

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        self.task_space = Box(-1, 1, (1,))

    def sample_task(self):
        return self.task_space.sample()

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.x = int(self.action_space.sample())
        return self.observed(), {}


class IgnoresGenerator(Walk):
    """Draws its tasks, and what setting one does, from the global generator."""

    train_tasks = None

    def sample_task(self, rng):
        return float(np.random.choice([-1, 1]) * np.random.rand())

    def set_task(self, task):
        self.goal = task + np.random.rand()


class AttributeSeed(FromSpace):
    seed = None


class WhenMade(Walk):
    """Draws from the global generators when it is made."""

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        self.bonus = np.random.rand() + random.random() + torch.rand(()).item()

    def reward(self):
        return super().reward() + self.bonus


class Warns(Walk):
    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
        warnings.warn("its own warning", stacklevel=1)


class Goal(Walk):
    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        self.observation_space = Dict(observation=Box(-99, 99, (2,)), desired_goal=Box(-99, 99, (1,)))

    def observed(self):
        return {"observation": super().observed(), "desired_goal": np.array([self.goal], np.float32)}


def in_worker(action):
    """A class that does something at its third step, if it is in a worker process."""
    return of(reward=lambda self: action() or 0.0 if self.t == 3 and parent_process() else 0.0)


def fork():
    if not os.fork():
        time.sleep(20)
    os._exit(7)


def resist():
    signal.signal(signal.SIGTERM, lambda *_: None)
    sleep()


def sleep():
    Path(os.environ["MLSH_TEST"], "run", "asleep").touch()
    time.sleep(1000)


class OnlyHere(Walk):
    """Cannot be made in a worker process."""

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        if parent_process():
            fail()


class Interrupted(Walk):
    """The user presses Ctrl-C while the third copy is made for a film."""

    filmed = 0

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        Interrupted.filmed += bool(render_mode)
        if Interrupted.filmed == 3:
            raise KeyboardInterrupt(15)


class Unpicklable(Walk):
    train_tasks = [lambda: -1, lambda: 1]

    def set_task(self, task):
        self.goal = task()


class OneOnly(Walk):
    made = False

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        if OneOnly.made:
            raise RuntimeError("there is one already")
        OneOnly.made = True

    def close(self):
        OneOnly.made = False


class Agents:
    """In the style of PettingZoo."""

    metadata, possible_agents = {}, ["a", "b"]


ODD_INFO = {
    "huge": 10**30,
    "list": [1, 2],
    "ragged": [[1], [1, 2]],
    "nested": {"a": {"b": 1}},
    "text": "x\ny",
    "complex": 1j,
    "none": None,
    "itself": Walk,
    3: 4,
    "beyond": 1e300,
    "success": np.array(True),
    "one": torch.ones(1),
}
ALL = {
    "Walk": Walk,
    "RewardOfOne": with_reward(lambda x: np.array([x])),
    "Reward0d": with_reward(np.array),
    "RewardList": with_reward(lambda x: [x]),
    "RewardTensor": with_reward(torch.tensor),
    "RewardTwo": with_reward(lambda x: [x, x]),
    "RewardNone": with_reward(lambda x: None),
    "RewardNaN": of(reward=lambda self: np.nan if self.t == 3 else 0.0),
    "ObservationOfOne": of(observed=lambda self: np.zeros(1, np.float32)),
    "ObservationList": of(observed=lambda self: [self.x, self.t / 10]),
    "ObservationRow": of(observed=lambda self: Walk.observed(self)[None]),
    "Categories": observing(Dict(x=Discrete(99, start=-9)), lambda self: {"x": self.x}),
    "CategoryBelow": observing(Dict(x=Discrete(99)), lambda self: {"x": self.x}),
    "CategoriesBelow": observing(MultiDiscrete([9, 9]), lambda self: np.array([0, self.x])),
    "Whole": observing(Box(0, 255, (8, 8, 3), np.uint8), lambda self: np.full((8, 8, 3), 9 + self.x, float)),
    "Fractions": observing(Box(0, 255, (8, 8, 3), np.uint8), lambda self: np.full((8, 8, 3), 0.5)),
    "Wraps": observing(Box(0, 255, (8, 8, 3), np.uint8), lambda self: np.full((8, 8, 3), 300)),
    "Gradient": observing(Box(-99, 99, (2,)), lambda self: torch.ones(2, requires_grad=True)),
    "EndsTwice": ending(np.array([True, False])),
    "EndsDict": ending({"__all__": False}),
    "EndsText": ending("no"),
    "TaskSet": of(train_tasks={"left", "right"}),
    "NumPyTasks": sampling(lambda self, rng: (rng.integers(9), [np.float32(0.5)])),
    "Unencodable": sampling(lambda self, rng: "\udc80"),
    "OldReset": OldReset,
    "SixValues": SixValues,
    "Arrays": Arrays,
    "OddInfo": of(info=lambda self: ODD_INFO),
    "ManyInfos": of(info=lambda self: {f"number {n}": n for n in range(500)}),
    "RGBA": drawing(lambda x: np.dstack((x, x[:, :, :1]))),
    "Grey": drawing(lambda x: x[:, :, 0]),
    "GreyChannel": drawing(lambda x: x[:, :, :1]),
    "ChannelsFirst": drawing(lambda x: x.transpose(2, 0, 1)),
    "Canvas": Canvas,
    "Grows": of(render=lambda self: self.picture().repeat(1 + (self.t > 3), 0).repeat(1 + (self.t > 3), 1)),
    "TextRate": of(metadata={"render_modes": ["rgb_array"], "render_fps": "10"}),
    "NoModes": of(metadata={"render_modes": None}),
    "NoPicture": of(render=lambda self: None),
    "FloatPicture": drawing(lambda x: x / 255),
    "RaggedPicture": drawing(lambda x: [[1, 2], [3]]),
    "RenderFails": of(render=lambda self: [][0]),
    "RenderLeaves": of(render=leave),
    "CloseFails": of(close=fail),
    "CloseLeaves": of(close=leave),
    "Leaves": of(reward=lambda self: leave() if self.t == 5 else 0.0),
    "LeavesAtStart": at_start(leave),
    "Panics": of(reward=panic),
    "PanicsAtEnd": of(close=panic),
    "Folder": at_start(lambda: os.chdir(tempfile.gettempdir())),
    "FolderLater": of(reward=lambda self: os.chdir(tempfile.gettempdir()) or 0.0),
    "Double": at_start(lambda: torch.set_default_dtype(torch.float64)),
    "DoubleLater": of(reward=lambda self: torch.set_default_dtype(torch.float64) or 0.0),
    "Device": at_start(lambda: torch.set_default_device("meta")),
    "DeviceLater": of(reward=lambda self: torch.set_default_device("meta") or 0.0),
    "NoGradient": at_start(lambda: torch.set_grad_enabled(False)),
    "Threads": at_start(lambda: torch.set_num_threads(2)),
    "Handler": at_start(lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)),
    "Strict": at_start(lambda: np.seterr(all="raise")),
    "Underflows": Underflows,
    "FromSpace": FromSpace,
    "IgnoresGenerator": IgnoresGenerator,
    "AttributeSeed": AttributeSeed,
    "WhenMade": WhenMade,
    "FromTorch": of(reward=lambda self: torch.rand(()).item()),
    "NormalizeObservation": lambda render_mode=None: NormalizeObservation(Walk(render_mode)),
    "NormalizeReward": lambda render_mode=None: NormalizeReward(Walk(render_mode)),
    "Warns": Warns,
    "Slow": of(reward=lambda self: time.sleep(0.01) or 0.0),
    "DrawsInSteps": of(reward=lambda self: time.sleep(0.01) or random.random()),
    "Unpicklable": Unpicklable,
    "OnlyHere": OnlyHere,
    "Interrupted": Interrupted,
    "Raises": in_worker(fail),
    "Dies": in_worker(lambda: os._exit(7)),
    "Sleeps": in_worker(sleep),
    "Forks": in_worker(fork),
    "Resists": in_worker(resist),
    "Prints": of(reward=lambda self: print("é") or 0.0),
    "Goal": Goal,
    "OneOnly": OneOnly,
    "Agents": lambda render_mode=None: Agents(),
    "Shares": of(train_tasks=[0.25, 0.5], set_task=lambda self, task: setattr(self, "goal", task)),
}
for name, limit in {"of/Twenty": 20.0, "NoLimit": -1, "TextLimit": "50"}.items():
    gym.register(f"{name}-v0", Walk, max_episode_steps=limit)
for name, kind in ALL.items():
    gym.register(f"{name}-v0", kind, max_episode_steps=50)
