"""Gymnasium's environments with a property as the task.

--env variants:CartPoles-v0    the length of the pole
--env variants:Pendulums-v0    the mass of the pendulum
--env variants:Acrobots-v0     the mass of the lower link
--env variants:Lakes-v0        the map of FrozenLake
--env variants:Ants-v0         the direction in which an ant runs, an angle
--env variants:Reachers-v0     the place that an arm reaches for; the arm does not see it
"""

import gymnasium as gym
import numpy as np
from gymnasium.envs.mujoco.ant_v5 import AntEnv
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv, generate_random_map


class Variants(gym.Wrapper):
    """A task is a dict of attributes of the environment."""

    def __init__(self, env_id, train_tasks, test_tasks, **kwargs):
        super().__init__(gym.make(env_id, **kwargs))
        self.train_tasks, self.test_tasks = train_tasks, test_tasks

    def set_task(self, task):
        vars(self.unwrapped).update(task)

    def task_label(self, task):
        return ", ".join(f"{name} {x:g}" for name, x in task.items())


class Lakes(FrozenLakeEnv):
    train_tasks = [generate_random_map(size=4, seed=seed) for seed in range(4)]
    test_tasks = [generate_random_map(size=4, seed=seed) for seed in (100, 101)]

    def set_task(self, task):
        super().__init__(desc=task, render_mode=self.render_mode, is_slippery=False)


class Ants(AntEnv):
    def sample_task(self, rng):
        return float(rng.uniform(-np.pi, np.pi))

    def set_task(self, task):
        self.direction = np.array([np.cos(task), np.sin(task)])

    def step(self, action):
        observation, reward, *ended, info = super().step(action)
        speed = self.direction @ [info["x_velocity"], info["y_velocity"]]
        return observation, reward + speed - info["reward_forward"], *ended, info | {"speed": speed}


class Reachers(gym.Wrapper):
    """The target is the task, and the observation does not show it."""

    train_tasks = [(0.1, 0.1), (0.1, -0.1), (-0.1, 0.1), (-0.1, -0.1)]

    def __init__(self, **kwargs):
        super().__init__(gym.make("Reacher-v5", **kwargs))
        self.seen = [0, 1, 2, 3, 6, 7]  # cosines, sines and velocities of the joints
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (6,))

    def set_task(self, task):
        self.target = task

    def reset(self, **kwargs):
        observation, info = self.env.reset(**kwargs)
        arm = self.unwrapped
        qpos, qvel = arm.data.qpos.copy(), arm.data.qvel.copy()
        qpos[2:] = self.target
        arm.set_state(qpos, qvel)
        return observation[self.seen], info

    def step(self, action):
        observation, *rest = self.env.step(action)
        return observation[self.seen], *rest


def poles(*lengths):
    return [{"length": x, "polemass_length": 0.1 * x} for x in lengths]


def values(name, *values):
    return [{name: x} for x in values]


VARIED = {
    "CartPoles-v0": ("CartPole-v1", poles(0.25, 0.5, 1, 2), poles(0.35, 1.5)),
    "Pendulums-v0": ("Pendulum-v1", values("m", 0.5, 1, 1.5), values("m", 0.75, 1.25)),
    "Acrobots-v0": ("Acrobot-v1", values("LINK_MASS_2", 0.5, 1, 2), values("LINK_MASS_2", 0.75, 1.5)),
}
for env_id, (varied, train_tasks, test_tasks) in VARIED.items():
    lists = {"env_id": varied, "train_tasks": train_tasks, "test_tasks": test_tasks}
    gym.register(env_id, Variants, max_episode_steps=200, kwargs=lists)
gym.register("Lakes-v0", Lakes, max_episode_steps=30)
gym.register("Ants-v0", Ants, max_episode_steps=1000)
gym.register("Reachers-v0", Reachers, max_episode_steps=50)
