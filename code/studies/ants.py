"""The heavy ant, on a course with what it learned by running, and in mazes: cd code && python -m studies.ants.

Stop it at will: what is finished is not run again. Runs go to runs/ants, tables to the screen.
"""

from functools import partial

import mujoco
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mlsh.play import play

from mlsh.config import Config
from mlsh.envs import make_env
from mlsh.errors import run_command
from mlsh.harness.analyses import Learner, learned_anew
from mlsh.harness.study import Study
from mlsh.meta_test import adapt, load_agent, stubborn, transferred
from mlsh.runs import checkpoint
from mlsh.runs.files import writing
from mlsh.sampling import Streams
from mlsh.settings import cli

TRAIN = "train.py --record 0 --wandb disabled --env"
NOTHING = "--num_sub_policies 0 -W 1 -U 0 --tasks 1 --test_episodes 2"  # of a run that is made for its settings
PPO = "-N 8 --master_lr 0.001 --master_minibatch 512 --updates"
MASTERS = "-N 8 --updates 12 --eval_episodes 5 --seeds"
MAZE = "-T 1000"  # primitives learn in shorter episodes
COURSE_LEARNERS = {
    "movement": Learner(f"{TRAIN} AntMovement-v1", range(3), [f"{MASTERS} 5 --env AntObstacles-v1"]),
    "course from scratch": Learner(f"{TRAIN} AntObstacles-v1 {NOTHING}", [0], [f"{PPO} 120 --seeds 5"]),
}
MAZE_LEARNERS = {
    "mazes": Learner(f"{TRAIN} AntMaze-v1", [0, 1], [f"{MASTERS} 2 {MAZE}", f"{MASTERS} 2 {MAZE} --held_out"]),
    "mazes from scratch": Learner(
        f"{TRAIN} AntMaze-v1 {NOTHING}", [0], [f"{PPO} 12 --seeds 1 --eval_episodes 5 {MAZE}"]
    ),
}
EPISODES = 20  # of which the paths are drawn


def load(study, run, env):
    """The agent of a run of the study, its Config for the environment `env`, and one such environment."""
    data = checkpoint.load(study.folder / run, [Config])
    cfg = transferred(data["config"], env)
    one = make_env(cfg, 1)
    return load_agent(data, one), cfg, one


def draw_primitives(study, figure, runs):
    """Figure: displacements of each sub-policy alone without walls, a panel a run, a colour a sub-policy."""
    picture = Figure(figsize=(3.6 * len(runs), 3.4), layout="constrained")
    for axes, run in zip(picture.subplots(1, len(runs), squeeze=False)[0], runs, strict=True):
        agent, cfg, one = load(study, run, "AntMovement-v1")
        K = agent.sub_policies.n
        xy, active = follow(stubborn(agent, 1), cfg, one.train_tasks[:1] * K)
        draw_paths(axes, (xy - xy[0]).flatten(1, 2), active.flatten(1, 2), K)
        axes.set(title=f"{run}, {cfg.T * one.dt:g} s", xlabel="m")
        axes.grid(alpha=0.3)
    with writing(study.figures):
        picture.savefig(study.figures / figure, dpi=110)


def draw_ways(study, figure, run, env, updates, N, T=None, columns=5):
    """Figure: where new masters of a run lead the ant after so many `updates` of N episodes, a panel a task."""
    agent, cfg, one = load(study, run, env)
    cfg.N, cfg.T, tasks = N, T or cfg.T, [*one.train_tasks, *(one.test_tasks or ())]
    agent, _ = adapt(agent, make_env(cfg, len(tasks) * N), tasks, cfg, updates)
    xy, active = follow(agent, cfg, tasks)
    columns = min(len(tasks), columns)
    rows = -(-len(tasks) // columns)
    picture = Figure(figsize=(2.6 * columns, 2.8 * rows), layout="constrained")
    for j, task in enumerate(tasks):
        axes = picture.add_subplot(rows, columns, j + 1, title=one.task_label(task))
        draw_walls(axes, one.world(task))
        draw_paths(axes, xy[:, j], active[:, j], agent.sub_policies.n)
    with writing(study.figures):
        picture.savefig(study.figures / figure, dpi=110)


@torch.no_grad()
def follow(agent, cfg, tasks):
    """Where ants are, [T, tasks, EPISODES, 2], and which sub-policy is active there, led by a master for each task."""
    env = make_env(cfg, len(tasks) * EPISODES)
    env.set_task(tasks)
    with env.rollout_context():
        played = play(env, agent, Streams(0, range(len(tasks)))(0, "paths"), again=False, **cfg.play)
    return (x.unflatten(1, (len(tasks), EPISODES)) for x in (played.obs[:-1, :, :2], played.active))


def draw_paths(axes, xy, active, K):
    """Of episodes, xy [T, E, 2], a colour for each of K sub-policies."""
    axes.set_aspect("equal")
    for k in range(K):
        axes.plot(*torch.where(active[..., None] == k, xy, torch.nan).permute(2, 0, 1), f"C{k}", lw=0.6)


def draw_walls(axes, model):
    """What stands in the way, and the goal's plate: boxes, seen from above."""
    for g in (model.geom(i) for i in range(model.ngeom) if model.geom_type[i] == mujoco.mjtGeom.mjGEOM_BOX):
        if g.rgba[3]:
            colour, at = "0.7" if g.conaffinity else "#9fd89f", model.body_pos[g.bodyid[0]] + g.pos
            axes.add_patch(Rectangle((at - g.size)[:2], *(2 * g.size[:2]), fc=colour, ec="none"))


STUDY = Study(
    name="ants",
    horizon=2000,
    parts=(
        partial(learned_anew, learners=COURSE_LEARNERS, figure="ant-course.png"),
        partial(draw_ways, figure="ant-course-paths.png", run="movement-0", env="AntObstacles-v1", updates=12, N=8),
        partial(learned_anew, learners=MAZE_LEARNERS),
        partial(draw_ways, figure="ant-maze-paths.png", run="mazes-0", env="AntMaze-v1", updates=12, N=8, T=1000),
        partial(draw_primitives, figure="ant-primitives.png", runs=("mazes-0", "mazes-1")),
    ),
)

if __name__ == "__main__":
    run_command(lambda: cli(STUDY.make, description=__doc__)())
