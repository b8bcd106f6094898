"""Environments as users write them, for tests: `--env foreign:ID`."""

import gymnasium as gym
import numpy as np
from gymnasium.envs.mujoco.ant_v5 import AntEnv
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Sequence, Space, Text, Tuple

from mlsh.envs import OldGymTasks


class Line(gym.Env):
    """A walk on a line from 0; the task is the side that pays. With `end` an episode ends after three steps."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 7}

    def __init__(self, render_mode=None, actions=None, observations=None, end=None):
        self.render_mode, self.end = render_mode, end
        self.action_space = actions or Discrete(3, start=-1)
        self.observation_space = observations or Box(-99, 99, (1,), np.float64)
        self.goal, self.taken = 1, []

    def _observation(self):
        space = self.observation_space
        if isinstance(space, Discrete):
            return int(np.clip(self.x, 0, space.n - 1))
        if space.dtype == np.uint8:
            return np.full(space.shape, 100 + 10 * self.x).astype(np.uint8)
        if isinstance(space, Dict):
            return {"at": np.array([self.x]), "side": int(self.x > 0)}
        return np.array([self.x], np.float64)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t, self.ended = self.np_random.uniform(-0.1, 0.1), 0, False
        return self._observation(), {}

    def step(self, action):
        assert not self.ended, "stepped after its end"
        assert self.action_space.contains(action), action
        self.taken.append(action)
        self.x += float(np.mean(action))
        self.t += 1
        self.ended = self.end is not None and self.t == 3
        terminated, truncated = (self.ended and self.end == kind for kind in ("terminated", "truncated"))
        return self._observation(), float(np.sum(self.x * self.goal) > 0), terminated, truncated, {}

    def render(self):
        return np.full((4, 4, 3), 100, np.uint8)


class Sampled(Line):
    def sample_task(self, rng):
        return float(rng.choice([-1, 1]))

    def set_task(self, task):
        self.goal = task


class SampledWithoutGenerator(Sampled):
    def sample_task(self):
        return self.np_random.choice([-1.0, 1.0], 1)


class Named(Line):
    """Its tasks are strings and lists that are unfit for file names."""

    def sample_task(self, rng):
        return ["maps/right", "maps right", [float(x) for x in range(100)]][rng.integers(3)]

    def set_task(self, task):
        self.goal = 1 if task == "maps/right" else -1


class Listed(Line):
    """Its tasks are objects, as in Meta-World."""

    class Task:
        def __init__(self, goal):
            self.goal = goal

    train_tasks = [Task(-1), Task(1)]

    def set_task(self, task):
        self.goal = task.goal


class Unsorted(Listed):
    """Returns the keys of its observations in another order than its space, in which Gymnasium sorts them."""

    def __init__(self, render_mode=None):
        super().__init__(render_mode, observations=Dict({"position": Box(-99, 99, (1,)), "goal": Discrete(2)}))

    def _observation(self):
        return {"position": np.array([self.x], np.float32), "goal": int(self.x > 0)}


class Original(Line):
    """In the style of the original MLSH code."""

    realgoal = 0

    def randomizeCorrect(self):
        self.realgoal = np.random.randint(2)

    def step(self, action):
        self.goal = 2 * self.realgoal - 1
        return super().step(action)


class NoRendering(Sampled):
    """Cannot render, and does not accept render_mode."""

    metadata = {}

    def __init__(self):
        super().__init__()


class Faulty(Sampled):
    """Misbehaves in the way that `how` names."""

    def __init__(self, how, render_mode=None):
        super().__init__(render_mode, actions=Box(-1, 1, (1,), np.float32))
        self.how, self.episodes = how, 0

    def reset(self, **kwargs):
        self.episodes += 1
        return super().reset(**kwargs)

    def step(self, action):
        observation, reward, *rest = super().step(action)
        if self.how == "raises" and self.t == 4 and self.episodes > 3:  # in training
            raise ZeroDivisionError("its own")
        if self.how == "nan" and self.t == 2:
            self.x = np.nan
        if self.how == "global":
            reward = np.random.uniform()
        return (observation, reward, False, {}) if self.how == "old" else (self._observation(), reward, *rest)

    def render(self):
        return [super().render()] if self.how == "renders" else super().render()


class HoldsOut(Listed):
    """Has two training tasks and two held-out tasks, which pay more; all have labels."""

    test_tasks = np.array([Listed.Task(2), Listed.Task(3)])

    def task_label(self, task):
        return f"to/{task.goal}"

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, reward * max(self.goal, 1), *rest


class SamplesHeldOut(Sampled):
    def sample_test_task(self, rng):
        return 5.0 + rng.integers(2)


class ReportsInfo(Listed):
    """Reports in `info`: always the position, the time only of successes, and values that are no numbers."""

    def step(self, action):
        *rest, info = super().step(action)
        report = {
            "success": self.x > 0,
            "at": self.x,
            "text": "a",
            "path": [1, 2],
            "nowhere": np.nan,
            "diverged": False,
        }
        if self.x > 0:
            report["time"] = np.int64(self.t)
        return *rest, report if self.t != 2 else None


class Wrapped(gym.Wrapper):
    """A wrapper that has the tasks, around an environment without tasks."""

    train_tasks = (-1, 1)

    def __init__(self, **kwargs):
        super().__init__(Line(**kwargs))

    def set_task(self, task):
        self.env.goal = task


class Counted(Listed):
    """Counts how many copies exist, and how many existed at most."""

    copies = most = 0

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        Counted.copies += 1
        Counted.most = max(Counted.most, Counted.copies)

    def close(self):
        Counted.copies -= 1


class Directions(AntEnv):
    """Gymnasium's own ant, which must walk to the right or to the left."""

    train_tasks = [1, -1]

    def set_task(self, task):
        self.direction = task

    def step(self, action):
        observation, _, terminated, truncated, info = super().step(action)
        return observation, self.direction * info["x_velocity"], terminated, truncated, info


class Many(Listed):
    train_tasks = np.array([Listed.Task(goal) for goal in range(12)])


class OldClass:
    """Has the methods of the old Gym, and tasks as in FAMP: `sample_task` draws from the global generator."""

    action_space, observation_space, task = Discrete(3), Box(-99, 99, (1,), np.float64), 1

    def __init__(self):
        self.rng = np.random.RandomState(1234)

    def sample_task(self):
        return [-1, 1][np.random.randint(2)]

    def set_task(self, task):
        self.task = task

    def reset(self):
        self.x, self.t = self.np_random.randint(1, 9) + self.rng.uniform(), 0
        return np.array([self.x])

    def step(self, action):
        self.t += 1
        return np.array([self.x]), float(self.task > 0), self.t == 3, None


class OldTasks(OldGymTasks):
    old_class = "foreign:OldClass"


class Class26(OldClass):
    """As written for Gym 0.26: `step` returns five values, `reset` takes a seed, and `np_random` is a Generator."""

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.own_rng = np.random.default_rng(seed)
        self.x, self.t = self.np_random.integers(1, 9) + self.own_rng.uniform(), 0
        return np.array([self.x]), {}

    def step(self, action):
        observation, reward, done, _ = super().step(action)
        return observation, reward, done, False, {}


class OldTasks26(OldGymTasks):
    old_class = "foreign:Class26"


class OldSides(OldTasks):
    """Defines the tasks itself."""

    def sample_task(self, rng):
        return int(rng.choice([-1, 1]))

    def set_task(self, task):
        self.old.task = task


class OldAnt(OldGymTasks):
    old_class = "gym.envs.mujoco:Ant"


def broken(*args, **kwargs):
    """A method that raises ValueError."""
    return np.zeros(2) + np.zeros(3)


def dict_with(**spaces):
    return {"observations": Dict(at=Box(-99, 99, (1,)), **spaces)}


KINDS = {
    "Sampled-v0": (Sampled, {}),
    "Named-v0": (Named, {}),
    "Listed-v0": (Listed, {}),
    "NoGenerator-v0": (SampledWithoutGenerator, {}),
    "Original-v0": (Original, {}),
    "Terminated-v0": (Listed, {"end": "terminated"}),
    "Truncated-v0": (Listed, {"end": "truncated"}),
    "BoxActions-v0": (Listed, {"actions": Box(-0.5, 0.5, (2, 3), np.float32)}),
    "HalfBounded-v0": (Listed, {"actions": Box(np.float32([0, -np.inf, -1]), np.float32([4, np.inf, np.inf]))}),
    "DiscreteObservations-v0": (Listed, {"observations": Discrete(5)}),
    "DictObservations-v0": (Listed, {"observations": Dict(at=Box(-99, 99, (1,)), side=Discrete(2))}),
    "UnsortedDict-v0": (Unsorted, {}),
    "Images-v0": (Listed, {"observations": Box(0, 255, (9, 8, 1), np.uint8)}),
    "Maps-v0": (Listed, {"observations": Box(0, 255, (7, 7, 3), np.uint8)}),
    "NoRendering-v0": (NoRendering, {}),
    "Wrapped-v0": (Wrapped, {}),
    "Counted-v0": (Counted, {}),
    "HoldsOut-v0": (HoldsOut, {}),
    "SamplesHeldOut-v0": (SamplesHeldOut, {}),
    "ReportsInfo-v0": (ReportsInfo, {}),
    "Many-v0": (Many, {}),
    "OldTasks-v0": (OldTasks, {}),
    "OldTasks26-v0": (OldTasks26, {}),
    "OldSides-v0": (OldSides, {}),
    "OldAnt-v0": (OldAnt, {}),
    "Directions-v0": (Directions, {}),
    "Tasks-v0": (Line, {}),
    "Buttons-v0": (Listed, {"actions": MultiBinary(3)}),
    "Text-v0": (Listed, {"observations": Sequence(Discrete(2))}),
    "Mission-v0": (Listed, dict_with(mission=Text(9))),
    "Nested-v0": (Listed, dict_with(nested=Tuple((Discrete(2), Space())))),
    "Empty-v0": (Listed, {"observations": Box(-1, 1, (0,))}),
    **{
        f"Broken-{method}-v0": (type("Broken", (Sampled,), {method: broken}), {})
        for method in ("__init__", "sample_task", "set_task", "task_label", "reset", "step")
    },
    **{f"Faulty-{how}-v0": (Faulty, {"how": how}) for how in ("raises", "nan", "global", "old", "renders")},
}
for env_id, (entry_point, kwargs) in KINDS.items():
    gym.register(env_id, entry_point=entry_point, kwargs=kwargs, max_episode_steps=1000)


class NumpyBatch(gym.vector.SyncVectorEnv):
    """A batched environment on NumPy arrays; the single one is used instead."""

    def sample_task(self, rng): ...

    def set_task(self, task): ...


gym.register("Batch-v0", entry_point=Sampled, vector_entry_point=NumpyBatch, max_episode_steps=1000)
gym.register("Unlimited-v0", entry_point=Sampled)
