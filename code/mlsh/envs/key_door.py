"""KeyDoor: MovementBandits in which a goal pays only to one who has fetched the key."""

import numpy as np
import torch
from gymnasium.spaces import Box

from mlsh.envs.base import SingleEnv
from mlsh.envs.movement_bandits import PRESET as OF_BANDITS
from mlsh.envs.movement_bandits import MovementBanditsVector
from mlsh.envs.point_world import AGENT, COLOURS, WORLD, near
from mlsh.envs.registry import register

BEST_RETURN = 84.95  # the best possible mean return in 100 steps, by shortest paths from 4 million starts (± 0.004)


class KeyDoorVector(MovementBanditsVector):
    """
    ## Description
    The original's `KeyDoor-v0`. A point walks on a plane with two goals and a key. Standing near the right goal pays
    as soon as the key has been fetched, by coming as near to it; which goal is right is the task, and hidden.

    ## Action Space
    `Discrete(5)`: stay, +x, −x, +y, −y, 20 pixels a step.

    ## Observation Space
    `Box(9)`: agent x, y, then x, y of goal 0, of goal 1 and of the key, in pixels ÷ 400 (the original does not
    divide), and 1 once the key is held, else 0.

    ## Rewards
    1 if the key is held and the squared distance to the task's goal is below 2500, else 0. The key is held from the
    step on after whose move its squared distance is below 2500. `info["has_key"]` is 1 if it is, else 0.

    ## Starting State
    The agent at (200, 200) without the key, each goal and the key uniform in [0, 400]².

    ## Episode End
    Truncated after 100 steps, never terminated.

    ## Arguments
    `num_envs` and `device` (batched view only); `max_episode_steps`; `render_mode`, "human" or "rgb_array":
    520 × 520, y upwards, with a border around [0, 400]². The agent is black, goal 0 orange, goal 1 blue, and the key
    a smaller yellow point, which the agent carries once it has it. Within the black circle around the right goal a step
    pays.
    """

    def __init__(self, num_envs=1, max_episode_steps=None, render_mode=None, device="cpu"):
        super().__init__(num_envs, 2, max_episode_steps, render_mode, device)
        self.key = self.agent.clone()  # [E, 2]
        self.has_key = torch.zeros(num_envs, dtype=torch.bool, device=self.device)

    def _space(self):
        return Box(-np.inf, np.inf, (9,), np.float32)

    def _reset(self, which):
        self.key[which] = self._tensor(self._draw(lambda rng, n: rng.uniform(0, WORLD, (n, 2)), which))
        self.has_key[which] = False
        return super()._reset(which)

    def _observation(self):
        return torch.cat((super()._observation(), self.key / WORLD, self.has_key.float()[:, None]), 1)

    def _step(self, actions):
        self.agent = self.agent + self._moves[actions]
        self.has_key = self.has_key | near(self.agent, self.key)
        reward = (self.has_key & near(self.agent, self._right)).float()
        return self._observation(), reward, self._never, {"has_key": self.has_key.float()}

    def _circles(self, e):
        *below, agent = super()._circles(e)
        key = COLOURS["yellow"], 0
        yield from below
        if self.has_key[e]:
            yield agent
            yield self.agent[e], AGENT // 2, *key
        else:
            yield self.key[e], AGENT, *key
            yield agent


class KeyDoor(SingleEnv):
    __doc__ = KeyDoorVector.__doc__
    vector_class = KeyDoorVector


# One decision an episode: with more, masters make do with one sub-policy for the key and the other for the goal
PRESET = OF_BANDITS | {
    "N": 20,
    "W": 20,
    "U": 5,
    "tasks": 56,
    "epochs": 4,
    "sub_minibatches": 60,
    "sub_lr_decay": 0.96,
    "fade": 24,
    "T": 100,
    "high_len": 100,
    "gamma": 0.97,
    "sub_entropy": 0.05,
    "dual_clip": 3.0,
}
register("KeyDoor-v0", KeyDoor, 100, PRESET, BEST_RETURN)
