"""AntMovement: a heavy ant that must run right or up, to learn what the obstacle course can be run with."""

import mujoco
import numpy as np

from mlsh.envs.ants import HeavyAnts, heavy_ant
from mlsh.envs.base import SingleEnv
from mlsh.envs.registry import register

SQUARE = 40.0  # m, the side of the square where episodes begin: that of the obstacle course


class AntMovementVector(HeavyAnts):
    """
    ## Description
    The original's `AntMovement-v1`: an ant of 40 kg must run straight on, to the right (+x) or up (+y). Which one is
    the task, and hidden. Its sub-policies run on `AntObstacles-v1`, with the same body and the same spaces.

    ## Action Space
    `Box(-1, 1, (8,))`: the torques of hip 4, ankle 4, hip 1, ankle 1, hip 2, ankle 2, hip 3, ankle 3, times
    150. Clipped.

    ## Observation Space
    `Box(31)`: absolute x and y, x and y relative to where the ant was last put upright (here: where the episode
    began), the rest of qpos (13: z, quaternion, joints) and qvel (14); metres, radians, seconds.

    The original shows absolute x and y only, and begins at the origin. So what its sub-policies see 40 m away they have
    never seen, and a normaliser fitted there clips it. Without x and y a master of the course would be blind, and an
    ant could not come back to its line. Hence both: absolute, for the master, and since episodes begin anywhere,
    sub-policies learn that it does not matter; relative, for the line, the same at every place.

    ## Rewards
    Δs / dt − 0.1 Σa² − 0.5 |l|: s along the direction and l across it, relative to where the episode began, in metres;
    dt 25 ms; a the actions before they are clipped. `info["walked"]` is s, `info["lateral"]` is |l|.

    ## Starting State
    x and y uniform in [0, 40]², the size of the course; the original's: the origin. qpos uniform within ±0.1 of the
    model's, the quaternion normalised; qvel normal with standard deviation 0.1.

    ## Episode End
    Truncated after 600 steps of 25 ms. Terminated only if the simulation diverges.

    ## Arguments
    `num_envs`, `device` and `sim_threads` (batched view only; all cores); `max_episode_steps`; `render_mode`, "human"
    or "rgb_array".
    """

    train_tasks = [0, 1]
    camera = {
        "type": mujoco.mjtCamera.mjCAMERA_TRACKING,
        "trackbodyid": 1,
        "distance": 8.0,
        "elevation": -35.0,
        "azimuth": 90.0,
    }

    def __init__(self, num_envs=1, max_episode_steps=None, render_mode=None, device="cpu", sim_threads=None):
        super().__init__(heavy_ant().compile(), num_envs, max_episode_steps, render_mode, device, sim_threads)

    def task_label(self, task):
        return ("right", "up")[task]

    def _start(self, which):
        return self._draw(lambda rng, n: rng.uniform(0, SQUARE, (n, 2)), which)

    def _reward(self, before, actions, qpos, sensors):
        e, along = np.arange(self.num_envs), self._playing
        walked = qpos[e, along] - self._origin[e, along]
        lateral = np.abs(qpos[e, 1 - along] - self._origin[e, 1 - along])
        speed = (qpos[e, along] - before[e, along]) / self.dt
        reward = speed - 0.1 * (actions**2).sum(1) - 0.5 * lateral
        return reward, {"walked": walked, "lateral": lateral}


class AntMovement(SingleEnv):
    __doc__ = AntMovementVector.__doc__
    vector_class = AntMovementVector


# an episode is one decision from standing, as long as those of the course and the mazes between two uprightings
PRESET = {
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
register("AntMovement-v1", AntMovement, 600, PRESET)
