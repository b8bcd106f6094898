"""MiniGrid.

--env rooms:Rooms-v0         four rooms; the seed that draws the map is the task
--env rooms:Goals-v0         an empty room; the task is the corner with the goal, which cannot be seen
--env rooms:GoalImages-v0    the same, and the observation is an image of the whole room
"""

import gymnasium as gym
from gymnasium.spaces import Discrete
from minigrid.envs import EmptyEnv
from minigrid.wrappers import ImgObsWrapper, RGBImgObsWrapper


class Rooms(gym.Wrapper):
    train_tasks, test_tasks = [1, 2, 3, 4], [101, 102]

    def __init__(self, **kwargs):
        super().__init__(ImgObsWrapper(gym.make("MiniGrid-FourRooms-v0", **kwargs)))

    def set_task(self, task):
        self.map = task

    def reset(self, seed=None, options=None):
        return self.env.reset(seed=self.map)


class Goals(EmptyEnv):
    """Start in the middle of the room. The episode ends in the corner that is the task."""

    train_tasks = [(1, 1), (7, 1), (1, 7), (7, 7)]

    def __init__(self, **kwargs):
        super().__init__(size=9, agent_start_pos=(4, 4), max_steps=60, **kwargs)
        self.action_space = Discrete(3)  # turn left, turn right, go

    def set_task(self, task):
        self.goal = task

    def _gen_grid(self, width, height):
        super()._gen_grid(width, height)
        self.grid.set(width - 2, height - 2, None)  # the goal that everyone could see

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        if self.agent_pos == self.goal:
            reward, terminated = self._reward(), True
        return observation, reward, terminated, truncated, info


def images(**kwargs):
    return ImgObsWrapper(RGBImgObsWrapper(Goals(**kwargs), tile_size=3))


gym.register("Rooms-v0", Rooms, max_episode_steps=100)
gym.register("Goals-v0", lambda **kwargs: ImgObsWrapper(Goals(**kwargs)), max_episode_steps=60)
gym.register("GoalImages-v0", images, max_episode_steps=60)
