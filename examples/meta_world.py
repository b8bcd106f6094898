"""Meta-World: --env meta_world:ML1-reach-v3 and every other name in metaworld.ML1.ENV_NAMES, or meta_world:ML10-v3"""

import functools

import gymnasium as gym
import metaworld


@functools.cache
def benchmark(name):
    """The lists of tasks of a benchmark. Their seed is not --seed, so all runs have the same tasks."""
    return metaworld.ML10(seed=0) if name == "ML10" else metaworld.ML1(name, seed=0)


class MetaWorld(gym.Wrapper):
    """A task names its environment, the place where the object starts, and the goal, which is hidden."""

    def __init__(self, name, **kwargs):
        self.tasks, self.kwargs = benchmark(name), kwargs
        self.train_tasks, self.test_tasks = self.tasks.train_tasks, self.tasks.test_tasks
        super().__init__(self.made(self.train_tasks[0].env_name))

    def made(self, name):
        self.playing = name
        return (self.tasks.train_classes | self.tasks.test_classes)[name](**self.kwargs)

    def set_task(self, task):
        if task.env_name != self.playing:
            self.env.close()
            self.env = self.made(task.env_name)
        self.env.set_task(task)  # it hides the goal

    def task_label(self, task):
        return task.env_name

    def reset(self, **kwargs):
        self.succeeded = 0.0
        return self.env.reset(**kwargs)

    def step(self, action):
        *played, info = self.env.step(action)
        self.succeeded = max(self.succeeded, float(info["success"]))
        return *played, info | {"success_once": self.succeeded}


for name in ("ML10", *metaworld.ML1.ENV_NAMES):
    env_id = "ML10-v3" if name == "ML10" else f"ML1-{name}"
    gym.register(env_id, MetaWorld, kwargs={"name": name}, max_episode_steps=500)
