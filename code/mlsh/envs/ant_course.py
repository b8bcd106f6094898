"""AntObstacles, a course that is paid only at its end, and AntMazes: walls for the ant of AntMovement."""

import copy

import mujoco
import numpy as np

from mlsh.envs.ants import BOX, FIXED, GHOST, GREEN, NV, RED, WHITE, HeavyAnts, heavy_ant
from mlsh.envs.base import SingleEnv
from mlsh.envs.registry import register

# walls, seen from above: x, y, half the extent in x and in y, metres
ROOM = ((28, -3, 35, 0.3), (28, 40, 35, 0.3), (-3, 28, 0.3, 35), (40, 28, 0.3, 35))
COURSE = (*ROOM, (35, 25, 5, 0.3), (30, 10, 0.3, 15))
CORNER, NEAR = (38, 38), 30**0.5  # the goal, and how far it reaches
HOME, SIGHT = (0, 20), 15  # of the enemy
BORDER = ((24, -24, 24, 0.3), (24, 24, 24, 0.3), (0, 0, 0.3, 24), (48, 0, 0.3, 24))
BLOCKS = {f"{i}{j}": (8 + 16 * j, 16 - 16 * i) for i in range(3) for j in range(3)}
MAZES = (  # the blocks that are open, and the goal
    ("00 10", (8, 24)),
    ("10 20", (8, -24)),
    ("01 10 11", (24, 24)),
    ("10 11 21", (24, -24)),
    ("10 11 12", (48, 0)),
    ("02 10 11 12", (40, 24)),
    ("10 11 12 22", (40, -24)),
    ("00 01 10", (32, 16)),
    ("10 20 21", (32, -16)),
    ("00 01 02 10", (40, 24)),  # from here on FAMP's
    ("10 20 21 22", (40, -24)),
    ("01 02 10 11", (40, 24)),
    ("10 11 21 22", (40, -24)),
)


def add_box(spec, pos, size, **more):
    """Something to run against, in a body of its own: an ant is compared with all that one body has, far or near."""
    spec.worldbody.add_body(pos=pos).add_geom(type=BOX, size=size, **more, **FIXED)


def walled(walls):
    """The heavy ant and walls of a height of 5 m as a spec, on a plain floor, where it is seen from far above."""
    spec = heavy_ant()
    floor = spec.geom("floor")
    floor.material, floor.rgba = "", (0.35, 0.4, 0.35, 1)
    floor.contype = 0  # else an enemy that sinks into it would touch it
    for x, y, *half in walls:
        add_box(spec, (x, y, 0), (*half, 5), rgba=WHITE)
    return spec


def build_course():
    spec = walled(COURSE)
    spec.worldbody.add_geom(type=BOX, pos=(*CORNER, 0), size=(1, 1, 0.3), rgba=GREEN, **GHOST)
    round_ = {"type": mujoco.mjtGeom.mjGEOM_ELLIPSOID, "rgba": RED}
    spec.worldbody.add_geom(pos=(*HOME, 0), size=(SIGHT, SIGHT, 0.1), **round_, **GHOST)
    enemy = spec.worldbody.add_body(name="enemy")
    for axis in ((1, 0, 0), (0, 1, 0)):
        slide = {"type": mujoco.mjtJoint.mjJNT_SLIDE, "axis": axis, "limited": False}
        enemy.add_joint(armature=0, damping=0, **slide)
    enemy.add_geom(name="enemy", pos=(0, 0, 1), size=(3, 3, 3), mass=25_714, **round_, **FIXED)
    return spec.compile()


def build_maze():
    """A maze whose blocks are all closed."""
    spec = walled(BORDER)
    for name, (x, y) in BLOCKS.items():
        add_box(spec, (x, y, 5), (7.6, 7.6, 5), name=name, rgba=RED)
    # to be moved: at 0 MuJoCo would compile the body's frame for its own
    spec.worldbody.add_geom(name="goal", type=BOX, pos=(24, 0, 0.1), size=(3, 3, 0.1), rgba=GREEN, **GHOST)
    return spec.compile()


def opened(model, task):
    """A copy of the maze with the task's blocks open and its goal where it is."""
    model, (blocks, goal) = copy.copy(model), MAZES[task]
    for name in blocks.split():
        model.geom(name).conaffinity = 0
        model.geom(name).rgba[3] = 0
    model.geom("goal").pos[:2] = goal
    return model


class AntObstaclesVector(HeavyAnts):
    """
    ## Description
    Paper, "obstacle course", after the original's `AntObstacles-v1`: from one corner of a square of 43 m the ant of
    `AntMovement-v1` must get to the opposite one, round a room's walls and an enemy. Made for sub-policies that have
    learned there, which see and do the same here: `evaluate.py RUN --env AntObstacles-v1`. One task.

    The enemy is a solid ball of radius 3 m. In every step at whose beginning the ant is within 15 m of (0, 20), it
    moves by one metre along x and one along y towards the ant (40 m/s), through walls; else it stays where it is. An
    ant that it catches is flung away, or lies under it to the end.

    Every 200 steps the ant is put upright where it is, as at the start. The original does so before the 200th step,
    whose action was chosen for another pose; here it is after the 200th, and is observed.

    Of the original's faults none is here: the reward that it runs squares a sum of coordinates, and by broadcasting
    sums them twice; two bits of a task are never used; the total mass counts the enemy in; `init_qpos` is without
    effect. Its ant has here a round torso and starts at a height of 0.6 m, in AntMovement a long one and 0.75 m: so
    its sub-policies come to a body that they do not know. Here it is the latter, 40 kg (and not 41.4), in both.

    ## Action Space
    `Box(-1, 1, (8,))`: as of AntMovement.

    ## Observation Space
    `Box(31)`: as of AntMovement, absolute x and y first, then those relative to where the ant was last put upright. No
    walls, no enemy.

    ## Rewards
    1 for a step after which the ant is nearer than √30 m to (38, 38), the green plate, else 0. The paper does not say
    where it pays; this is the rule of the original's `AntObstaclesBig-v1`, the only sparse one that it runs.
    `info["distance"]` is to the plate; `info["reached"]` is whether it has paid in this episode.

    ## Starting State
    The ant at the origin; qpos uniform within ±0.1 of the model's, the quaternion normalised; qvel normal with standard
    deviation 0.1. The enemy at (0, 20).

    ## Episode End
    Truncated after 2000 steps of 25 ms. Terminated only if the simulation diverges.

    ## Arguments
    As of AntMovement.
    """

    train_tasks = [0]
    upright_every = 200
    camera = {"distance": 60.0, "elevation": -90.0, "azimuth": 90.0, "lookat": np.array((18.5, 18.5, 0.0))}

    def __init__(self, num_envs=1, max_episode_steps=None, render_mode=None, device="cpu", sim_threads=None):
        super().__init__(build_course(), num_envs, max_episode_steps, render_mode, device, sim_threads)

    def task_label(self, task):
        return "course"

    def _start(self, which):
        return 0

    def _initial(self, which):
        qpos, qvel = super()._initial(which)
        enemy = np.broadcast_to(np.array(HOME, float), (len(which), 2))
        return np.concatenate((qpos, enemy), 1), np.concatenate((qvel, np.zeros_like(enemy)), 1)

    def _between(self, state):
        super()._between(state)
        xy, enemy = state[:, 1:3], np.round(state[:, 16:18])  # it may have been pushed, but not far
        seen = ((xy - HOME) ** 2).sum(1, keepdims=True) < SIGHT**2
        state[:, 16:18] = enemy + seen * np.sign(xy - enemy)
        state[:, 18 + NV :] = 0

    def _reward(self, before, actions, qpos, sensors):
        distance = np.linalg.norm(qpos[:, :2] - CORNER, axis=1)
        there = distance < NEAR
        self._reached |= there
        return there.astype(float), {"distance": distance, "reached": self._reached}


class AntObstacles(SingleEnv):
    __doc__ = AntObstaclesVector.__doc__
    vector_class = AntObstaclesVector


class AntMazesVector(HeavyAnts):
    """
    ## Description
    Paper, "ant mazes", after the original's `AntObstaclesGen-v1`: a square of 48 m with nine blocks, of which those are
    open that lead to the goal. Tasks 0 to 8 are the original's, 9 to 12 FAMP's, held out of training. The ant is that
    of `AntMovement-v1` (the original's: 37.6 kg, a round torso, a start at a height of 0.6 m), put upright where it is
    every 200 steps, which FAMP does not do.

    Of the original's faults none is here: every task is overwritten with 6; the reward changes with the task at once,
    but the walls at the next reset; the steps that count for putting upright go on counting over resets; blocks slide
    undamped and start with random velocities (only friction holds them); the goal's plate drifts, and collides.

    ## Action Space
    `Box(-1, 1, (8,))`: as of AntMovement.

    ## Observation Space
    `Box(31)`: as of AntMovement, absolute x and y first, then those relative to where the ant was last put upright. No
    walls, no goal.

    ## Rewards
    sgn(X − x) Δx / dt + sgn(Y − y) Δy / dt − 0.1 Σa², for the goal (X, Y), the signs before the step, dt 25 ms, a the
    actions before they are clipped. `info["distance"]` is to the goal in metres; `info["reached"]` is whether the ant
    has been on its plate, within 3 m in x and in y, in this episode.

    ## Starting State
    The ant at (2, 0); qpos uniform within ±0.1 of the model's, the quaternion normalised; qvel normal with standard
    deviation 0.1.

    ## Episode End
    Truncated after 1000 steps of 25 ms. Terminated only if the simulation diverges.

    ## Arguments
    As of AntMovement.
    """

    train_tasks, test_tasks = list(range(9)), list(range(9, 13))
    upright_every = 200
    camera = {"distance": 75.0, "elevation": -90.0, "azimuth": 90.0, "lookat": np.array((24.0, 0.0, 0.0))}

    def __init__(self, num_envs=1, max_episode_steps=None, render_mode=None, device="cpu", sim_threads=None):
        super().__init__(build_maze(), num_envs, max_episode_steps, render_mode, device, sim_threads)
        self._mazes = [opened(self.model, task) for task in range(len(MAZES))]
        self._goals = np.array([goal for _, goal in MAZES])

    def _start(self, which):
        return 2, 0

    def world(self, task):
        return self._mazes[task]

    def simulate(self, state, control):
        return self._pool.rollout([self.world(task) for task in self._playing], self._data, state, control)

    def _reward(self, before, actions, qpos, sensors):
        xy, goal = qpos[:, :2], self._goals[self._playing]
        towards = np.where(before[:, :2] < goal, 1, -1)
        reward = (towards * (xy - before[:, :2])).sum(1) / self.dt - 0.1 * (actions**2).sum(1)
        self._reached |= (np.abs(xy - goal) <= 3).all(1)
        return reward, {"distance": np.linalg.norm(xy - goal, axis=1), "reached": self._reached}

    def _render_episode(self, e):
        maze = self.world(self._playing[e])
        self.model.geom_rgba[:], self.model.geom_pos[:] = maze.geom_rgba, maze.geom_pos
        return super()._render_episode(e)


class AntMazes(SingleEnv):
    __doc__ = AntMazesVector.__doc__
    vector_class = AntMazesVector


LEARNING = {"high_len": 200, "sub_minibatches": 16, "target_kl": 0.03, "explore": 0.1, "log_std": -0.5}
# MLSH from nothing has not been tried here
course = {"N": 1, "W": 20, "U": 40, "tasks": 30, "T": 2000, "groups": 4, "fade": 15}
register("AntObstacles-v1", AntObstacles, 2000, LEARNING | course)
# three decisions an episode and not five: an ant that is not yet fast would spend much of a longer one at a wall
maze = {"N": 2, "W": 14, "U": 36, "tasks": 17, "T": 600, "num_sub_policies": 5, "groups": 9, "test_episodes": 20}
maze |= {"epochs": 4, "sub_minibatches": 21, "reward_scale": 0.1, "explore": 0.3, "fade": 14, "blind": 2}
register("AntMaze-v1", AntMazes, 1000, LEARNING | maze)
