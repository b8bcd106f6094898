"""Gymnasium-Robotics with a goal that the agent does not see, as the task.

--env robotics:PointMaze-v0    a point in a cross-shaped maze with a goal at each of its four ends
--env robotics:FetchPlaces-v0   a robot's arm that reaches for one of eight places
"""

import gymnasium as gym
import gymnasium_robotics
from gymnasium.wrappers import FilterObservation

gym.register_envs(gymnasium_robotics)
CROSS = [
    [1, 1, 1, 1, 1, 1, 1],
    [1, 1, 1, 0, 1, 1, 1],
    [1, 1, 1, 0, 1, 1, 1],
    [1, 0, 0, 0, 0, 0, 1],
    [1, 1, 1, 0, 1, 1, 1],
    [1, 1, 1, 0, 1, 1, 1],
    [1, 1, 1, 1, 1, 1, 1],
]


class PointMaze(gym.Wrapper):
    train_tasks = [(1, 3), (3, 5), (5, 3), (3, 1)]

    def __init__(self, **kwargs):
        maze = gym.make("PointMaze_UMaze-v3", maze_map=CROSS, reward_type="dense", continuing_task=True, **kwargs)
        super().__init__(FilterObservation(maze, ["observation"]))

    def set_task(self, task):
        self.goal = task

    def reset(self, seed=None, options=None):
        return self.env.reset(seed=seed, options={"goal_cell": self.goal, "reset_cell": (3, 3)})


class FetchPlaces(gym.Wrapper):
    train_tasks = [(x, y, z) for x in (-0.1, 0.1) for y in (-0.1, 0.1) for z in (-0.1, 0.1)]

    def __init__(self, **kwargs):
        super().__init__(FilterObservation(gym.make("FetchReachDense-v4", **kwargs), ["observation"]))

    def set_task(self, task):
        self.offset = task

    def reset(self, **kwargs):
        observation, info = self.env.reset(**kwargs)
        self.unwrapped.goal = self.unwrapped.initial_gripper_xpos[:3] + self.offset
        return observation, info


gym.register("PointMaze-v0", PointMaze, max_episode_steps=200)
gym.register("FetchPlaces-v0", FetchPlaces, max_episode_steps=50)
