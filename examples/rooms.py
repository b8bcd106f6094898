"""MiniGrid draws a map from the seed. Here the seed is the task: --env rooms:Rooms-v0"""

import gymnasium as gym
from minigrid.wrappers import ImgObsWrapper


class Rooms(gym.Wrapper):
    train_tasks, test_tasks = [1, 2, 3, 4], [101, 102]

    def __init__(self, **kwargs):
        super().__init__(ImgObsWrapper(gym.make("MiniGrid-FourRooms-v0", **kwargs)))

    def set_task(self, task):
        self.map = task

    def reset(self, seed=None, options=None):
        return self.env.reset(seed=self.map)


gym.register("Rooms-v0", Rooms, max_episode_steps=100)
