"""KeyDoor: MovementBandits in which the goal pays only once a key has been fetched."""

from collections.abc import Iterable

import numpy as np
import torch
from gymnasium.spaces import Box

from mlsh.envs.base import Info, SingleEnv
from mlsh.envs.movement_bandits import PRESET as BANDITS_PRESET
from mlsh.envs.movement_bandits import MovementBanditsVector
from mlsh.envs.point_world import AGENT_RADIUS, COLOURS, WORLD, Circle, near
from mlsh.envs.registry import register

BEST_RETURN = 84.95  # in 100 steps: shortest paths from 4 million random starts (± 0.004)


class KeyDoorVector(MovementBanditsVector):
    """
    ## Description
    The original's `KeyDoor-v0`. A point walks on a plane with two goals and a key. Standing near the right goal pays
    once the key has been fetched, which takes coming as near to the key. Which goal is right is the task, and it is
    not observed.

    ## Action Space
    `Discrete(5)`: stay, +x, −x, +y, −y, by 20 pixels.

    ## Observation Space
    `Box(9)`, positions in pixels divided by 400; the original does not divide.

    | index | observation |
    |--|--|
    | 0, 1 | x and y of the agent |
    | 2, 3 | x and y of goal 0 |
    | 4, 5 | x and y of goal 1 |
    | 6, 7 | x and y of the key |
    | 8 | 1 once the key is held, otherwise 0 |

    ## Rewards
    1 if the key is held and the squared distance between the agent and the task's goal is below 2500; otherwise 0. The
    key is held from the step on whose move brings the agent to a squared distance below 2500 of it.
    `info["has_key"]` is 1 if the key is held, otherwise 0.

    ## Starting State
    The agent is at (200, 200) without the key. Each goal and the key are uniform in [0, 400]².

    ## Episode End
    Truncated after 100 steps, never terminated.

    ## Arguments
    `max_episode_steps`; `render_mode`, "human" or "rgb_array". Single view only: `task`. Batched view only:
    `num_envs` and `device`.

    Pictures are 520 × 520 pixels, y upwards, with a border around [0, 400]². The agent is black, goal 0 orange and goal
    1 blue. The key is a smaller yellow point, which the agent carries once it has it. A step pays within the black
    circle around the right goal.
    """

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(num_envs, 2, max_episode_steps, render_mode, device)
        self.key = self.agent.clone()  # [E, 2]
        self.has_key = torch.zeros(num_envs, dtype=torch.bool, device=self.device)

    def _space(self) -> Box:
        return Box(-np.inf, np.inf, (9,), np.float32)

    def _reset(self, slots: np.ndarray) -> torch.Tensor:
        self.key[slots] = self._tensor(self._sample(lambda rng, n: rng.uniform(0, WORLD, (n, 2)), slots))
        self.has_key[slots] = False
        return super()._reset(slots)

    def _observation(self) -> torch.Tensor:
        return torch.cat((super()._observation(), self.key / WORLD, self.has_key.float()[:, None]), 1)

    def _step(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Info]:
        self.agent = self.agent + self._moves[actions]
        self.has_key = self.has_key | near(self.agent, self.key)
        reward = (self.has_key & near(self.agent, self._right_goal)).float()
        return self._observation(), reward, self._never_terminated, {"has_key": self.has_key.float()}

    def _circles(self, e: int) -> Iterable[Circle]:
        *below, agent = super()._circles(e)
        yield from below
        if self.has_key[e]:
            yield agent
            yield self.agent[e], AGENT_RADIUS // 2, COLOURS["yellow"], 0
        else:
            yield self.key[e], AGENT_RADIUS, COLOURS["yellow"], 0
            yield agent


class KeyDoor(SingleEnv):
    __doc__ = KeyDoorVector.__doc__
    vector_class = KeyDoorVector


# An episode is one decision. With more decisions, masters use one sub-policy for the key and the other for the goal.
PRESET = BANDITS_PRESET | {
    "N": 20,
    "W": 20,
    "U": 10,
    "tasks": 40,
    "epochs": 4,
    "sub_minibatches": 60,
    "sub_lr_decay": 0.96,
    "fade": 30,
    "T": 100,
    "high_len": 100,
    "gamma": 0.97,
    "sub_entropy": 0.1,
    "dual_clip": 3.0,
}
register("KeyDoor-v0", KeyDoor, 100, PRESET, BEST_RETURN)
