"""AntMovement: a heavy ant must run in one direction; its sub-policies are then used on courses and in mazes."""

from typing import Any

import numpy as np
import torch

from mlsh.envs.ants import HeavyAnts, heavy_ant
from mlsh.envs.base import SingleEnv
from mlsh.envs.registry import register

DIRECTIONS = ("right", "up", "left", "down")  # +x, +y, −x, −y
SQUARE = 40.0  # m, the side of the square in which episodes begin: that of the obstacle course


class AntMovementVector(HeavyAnts):
    """
    ## Description
    The original's `AntMovement-v1`. An ant of 40 kg must run straight on, to the right (+x) or up (+y). Which of the
    two is the task, and it is not observed. `AntMovement4-v1` has two more tasks: left (−x) and down (−y). The
    sub-policies that learn here also run on `AntObstacles-v1` and in `AntMaze-v1`, which have the same body and the
    same spaces.

    ## Action Space
    `Box(-1, 1, (8,))`, torques, multiplied by a gear of 150. Values outside the box are clipped.

    | index | joint |
    |--|--|
    | 0, 1 | hip 4, ankle 4 |
    | 2, 3 | hip 1, ankle 1 |
    | 4, 5 | hip 2, ankle 2 |
    | 6, 7 | hip 3, ankle 3 |

    ## Observation Space
    `Box(31)`: the ant's position, absolute and relative, the rest of its qpos, and its qvel.

    | index | observation | unit |
    |--|--|--|
    | 0, 1 | absolute x and y of the torso | m |
    | 2, 3 | x and y relative to where the ant was last put upright (here: where the episode began) | m |
    | 4 | z of the torso | m |
    | 5–8 | orientation of the torso, a quaternion (w, x, y, z) | |
    | 9–16 | angles of hip and ankle 1, 2, 3 and 4 | rad |
    | 17–19 | velocity of the torso | m/s |
    | 20–22 | angular velocity of the torso | rad/s |
    | 23–30 | angular velocities of the joints, in the order of the angles | rad/s |

    The original shows absolute x and y only, and its episodes begin at the origin. Its sub-policies therefore see
    positions on the course, 40 m away, that they have never seen in training, and a normaliser fitted in training clips
    them. Without x and y, on the other hand, a master of the course would not know where it is, and an ant could not
    return to its line. So both are shown. The absolute position is for the master. Episodes begin anywhere, so the
    sub-policies learn that the absolute position does not matter to them. The relative position shows the line, and
    means the same everywhere. The preset of AntMovement4 hides both from the sub-policies' actors.

    ## Rewards
    Δs / dt − 0.1 Σa² − 0.5 |l|, where s is the way in the direction and l the position across it, in metres
    relative to where the episode began; dt is 25 ms; a are the actions before clipping. `info["walked"]` is s,
    `info["lateral"]` is |l|.

    ## Starting State
    x and y are uniform in [0, 40]², the size of the course; in the original the ant begins at the origin. The rest of
    qpos is uniform within ±0.1 of the model's, with the quaternion normalised. qvel is normal with standard deviation
    0.1.

    ## Episode End
    Truncated after 600 steps of 25 ms. Terminated only if the simulation diverges.

    ## Arguments
    `max_episode_steps`; `render_mode`, "human" or "rgb_array"; `directions`, 2 or 4. Single view only: `task`. Batched
    view only: `num_envs`, `device`, and `sim_threads`, 0 or None for all cores.
    """

    camera = {"distance": 8.0, "elevation": -35.0, "azimuth": 90.0}

    def __init__(
        self,
        num_envs: int = 1,
        directions: int = 2,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        device: str | torch.device = "cpu",
        sim_threads: int | None = None,
    ) -> None:
        self.train_tasks = list(range(directions))
        super().__init__(heavy_ant().compile(), num_envs, max_episode_steps, render_mode, device, sim_threads)

    def task_label(self, task: int) -> str:
        return DIRECTIONS[task]

    def _start_xy(self, slots: np.ndarray) -> np.ndarray:
        return self._sample(lambda rng, n: rng.uniform(0, SQUARE, (n, 2)), slots)

    def _reward(
        self, qpos_before: np.ndarray, actions: np.ndarray, qpos: np.ndarray, sensors: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        e, along = np.arange(self.num_envs), self._episode_task % 2
        sign = np.where(self._episode_task < 2, 1, -1)
        walked = sign * (qpos[e, along] - self._origin[e, along])
        lateral = np.abs(qpos[e, 1 - along] - self._origin[e, 1 - along])
        speed = sign * (qpos[e, along] - qpos_before[e, along]) / self.dt
        reward = speed - 0.1 * (actions**2).sum(1) - 0.5 * lateral
        return reward, {"walked": walked, "lateral": lateral}


class AntMovement(SingleEnv):
    __doc__ = AntMovementVector.__doc__
    vector_class = AntMovementVector


# An episode is one decision that begins with an upright ant. It is as long as the decisions on the course and in the
# mazes, where the ant is put upright every 200 steps.
PRESET: dict[str, Any] = {
    "N": 8,
    "W": 5,
    "U": 20,
    "tasks": 15,
    "T": 200,
    "high_len": 200,
    "groups": 4,
    "epochs": 4,
    "sub_minibatches": 16,
    "target_kl": 0.03,
    "bootstrap": False,
    "explore": 0.1,
    "fade": 10,
    "log_std": -0.5,
    "reward_scale": 0.1,
}
# Sub-policies see neither position, so that masters can switch them at any time. A sub-policy that sees its distance
# from its line runs back to that line after another one has led the ant away.
FOUR_DIRECTIONS = PRESET | {"num_sub_policies": 4, "tasks": 20, "blind": 4, "sub_spread": 0.1}
register("AntMovement-v1", AntMovement, 600, PRESET, directions=2)
register("AntMovement4-v1", AntMovement, 600, FOUR_DIRECTIONS, directions=4)
