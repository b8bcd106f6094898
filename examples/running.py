"""Gymnasium's robots with the direction as the task: --env running:HalfCheetahDir-v0, AntDir-v0 or Walker2dDir-v0"""

import gymnasium as gym


class Direction(gym.Wrapper):
    """The task is 1 to run forwards, −1 to run backwards."""

    train_tasks = [1, -1]

    def set_task(self, task):
        self.direction = task

    def task_label(self, task):
        return "forwards" if task == 1 else "backwards"

    def step(self, action):
        observation, reward, *ended, info = self.env.step(action)
        return observation, reward + (self.direction - 1) * info["reward_forward"], *ended, info


def make(robot, **kwargs):
    return Direction(gym.make(f"{robot}-v5", **kwargs))


for robot in ("HalfCheetah", "Ant", "Walker2d"):
    gym.register(f"{robot}Dir-v0", make, kwargs={"robot": robot}, max_episode_steps=200)
