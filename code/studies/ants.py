"""The heavy ant on the obstacle course and in mazes: cd code && python -m studies.ants

You can stop it at any time: finished runs are not repeated. Runs go to runs/ants, tables to the screen.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import mujoco
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from mlsh.ceiling import of_mazes
from mlsh.config import Config
from mlsh.envs import make_env
from mlsh.envs.ants import HeavyAnts
from mlsh.errors import run_command
from mlsh.harness.analyses import FixedAdaptation, print_table, tabulate_adaptation
from mlsh.harness.study import Study
from mlsh.meta_test import adapt, load_agent, transferred, with_constant_masters
from mlsh.models import Hierarchy
from mlsh.rollout import play
from mlsh.runs import checkpoint
from mlsh.runs.plots import save_figure
from mlsh.sampling import Streams
from mlsh.settings import cli
from mlsh.slots import play_episodes

TRAIN = "train.py --record 0 --wandb disabled --env"
SETTINGS_ONLY = "--num_sub_policies 0 -W 1 -U 0 --tasks 1 --test_episodes 2"  # a run made only for its settings
COURSE = {
    "movement": FixedAdaptation(
        command=f"{TRAIN} AntMovement-v1",
        seeds=range(3),
        evaluations=["-N 8 --updates 12 --eval_episodes 5 --seeds 5 --env AntObstacles-v1"],
    ),
    "course from scratch": FixedAdaptation(
        command=f"{TRAIN} AntObstacles-v1 {SETTINGS_ONLY}",
        seeds=[0],
        evaluations=["-N 8 --master_lr 0.001 --master_minibatch 512 --updates 120 --seeds 5"],
    ),
}
IN_MAZES: dict[str, Any] = {"N": 8, "T": 1000, "high_len": 50, "master_sees": 2, "master_gamma": 0.8}
MASTERS = " ".join(f"{Config.flag(name)} {x}" for name, x in IN_MAZES.items())
SCRATCH = "-N 8 --master_lr 0.001 --master_minibatch 512 --updates 12 --seeds 1 --eval_episodes 5 -T 1000"
MAZES = {
    "directions": FixedAdaptation(
        command=f"{TRAIN} AntMovement4-v1",
        seeds=range(3),
        evaluations=[
            f"--env AntMaze-v1 {MASTERS} --updates 12 --eval_episodes 5 --seeds 1{held_out}"
            for held_out in ("", " --held_out")
        ],
    ),
    "mazes": FixedAdaptation(
        command=f"{TRAIN} AntMaze-v1",
        seeds=[0, 1],
        evaluations=[
            "-N 8 --updates 12 --eval_episodes 5 --seeds 2 -T 1000",
            "-N 8 --updates 12 --eval_episodes 5 --seeds 2 -T 1000 --held_out",
        ],
    ),
    "mazes from scratch": FixedAdaptation(
        command=f"{TRAIN} AntMaze-v1 {SETTINGS_ONLY}", seeds=[0], evaluations=[SCRATCH, f"{SCRATCH} --held_out"]
    ),
}
DIRECTIONS = [f"directions-{seed}" for seed in range(3)]
UPDATES = 12  # of the masters whose paths are drawn
PATHS = 20  # episodes drawn per task


def load(study: Study, run: str, env: str, masters: Mapping[str, Any]) -> tuple[Hierarchy, Config, HeavyAnts]:
    """The agent of a run of the study, its settings for `env` and its `masters`, and one such environment."""
    data = checkpoint.load(study.folder / run, [Config])
    cfg = dataclasses.replace(transferred(data["config"], env), **masters)
    one = make_env(cfg, 1)
    assert isinstance(one, HeavyAnts)
    return load_agent(data | {"config": cfg}, one), cfg, one


def tabulate_plans(study: Study, runs: Sequence[str], masters: Mapping[str, Any], starts: int = 10) -> None:
    """Table of what planned masters reach in the mazes over the sub-policies of runs."""
    rows = []
    for run in runs:
        agent, cfg, one = load(study, run, "AntMaze-v1", masters)
        trained, held_out = one.train_tasks or (), one.test_tasks or ()
        found = of_mazes(agent, cfg, [*trained, *held_out], starts)
        for name, part in (("mazes of training", slice(len(trained))), ("held out", slice(len(trained), None))):
            cells = [f"{found['return'][part].mean():.0f}", f"{found['final_reached'][part].mean():.0%}"]
            rows.append([run, name, *cells])
    print_table(["run", "mazes", "planned masters: return", "goal reached"], rows)


def draw_primitives(study: Study, figure: str, runs: Sequence[str]) -> None:
    """Figure of where each sub-policy alone goes without walls: one panel per run, one colour per sub-policy."""
    picture = Figure(figsize=(3.6 * len(runs), 3.4), layout="constrained")
    for axes, run in zip(picture.subplots(1, len(runs), squeeze=False)[0], runs, strict=True):
        agent, cfg, one = load(study, run, "AntMovement-v1", {})
        K = agent.sub_policies.n
        xy, active = follow(with_constant_masters(agent, 1), cfg, [0] * K)
        draw_paths(axes, (xy - xy[0]).flatten(1, 2), active.flatten(1, 2), K)
        axes.set(title=f"{run}, {cfg.T * one.dt:g} s", xlabel="m")
        axes.grid(alpha=0.3)
    with study.drawing():
        save_figure(picture, study.figures / figure)


def draw_masters(study: Study, figure: str, run: str, env: str, masters: Mapping[str, Any], columns: int = 5) -> None:
    """Figure of where new masters lead the ant after UPDATES: one panel per task."""
    agent, cfg, one = load(study, run, env, masters)
    tasks = [*(one.train_tasks or ()), *(one.test_tasks or ())]
    agent, _ = adapt(agent, make_env(cfg, len(tasks) * cfg.N), tasks, cfg, UPDATES)
    xy, active = follow(agent, cfg, tasks)
    columns = min(len(tasks), columns)
    rows = math.ceil(len(tasks) / columns)
    picture = Figure(figsize=(2.6 * columns, 2.8 * rows), layout="constrained")
    for j, task in enumerate(tasks):
        axes = picture.add_subplot(rows, columns, j + 1, title=one.task_label(task))
        draw_walls(axes, one.world(task))
        draw_paths(axes, xy[:, j], active[:, j], agent.sub_policies.n)
    with study.drawing():
        save_figure(picture, study.figures / figure)


@torch.no_grad()
def follow(agent: Hierarchy, cfg: Config, tasks: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Let the agent play PATHS episodes of each of `tasks`, one per master.

    Returns the ants' positions [T, tasks, PATHS, 2] and the active sub-policies [T, tasks, PATHS].
    """
    env = make_env(cfg, len(tasks) * PATHS)
    env.set_task(tasks)
    with env.rollout_context():
        rngs = Streams(0, range(len(tasks)))(0, "paths")
        record, trace = play(play_episodes, env, agent, rngs, cfg.rollout)
    xy, active = (x.unflatten(1, (len(tasks), PATHS)) for x in (record.obs[:-1, :, :2], trace.active))
    return xy, active


def draw_paths(axes: Axes, xy: Tensor, active: Tensor, K: int) -> None:
    """Draw the paths xy [T, E, 2] of episodes, with one colour for each of K sub-policies `active` [T, E]."""
    axes.set_aspect("equal")
    for k in range(K):
        axes.plot(*torch.where(active[..., None] == k, xy, torch.nan).permute(2, 0, 1), f"C{k}", lw=0.6)


def draw_walls(axes: Axes, model: mujoco.MjModel) -> None:
    """Draw the boxes of a world from above: walls grey, the plate of the goal green."""
    for g in (model.geom(i) for i in range(model.ngeom) if model.geom_type[i] == mujoco.mjtGeom.mjGEOM_BOX):
        if g.rgba[3]:
            colour, at = "0.7" if g.conaffinity else "#9fd89f", model.body_pos[g.bodyid[0]] + g.pos
            axes.add_patch(Rectangle((at - g.size)[:2], *(2 * g.size[:2]), fc=colour, ec="none"))


STUDY = Study(
    name="ants",
    horizon=2000,
    analyses=(
        partial(tabulate_adaptation, runs=COURSE, figure="ant-course.png"),
        partial(draw_masters, figure="ant-course-paths.png", run="movement-0", env="AntObstacles-v1", masters={"N": 8}),
        partial(tabulate_adaptation, runs=MAZES),
        partial(tabulate_plans, runs=DIRECTIONS, masters=IN_MAZES),
        partial(draw_masters, figure="ant-maze-paths.png", run="directions-0", env="AntMaze-v1", masters=IN_MAZES),
        partial(draw_primitives, figure="ant-primitives.png", runs=DIRECTIONS),
    ),
)

if __name__ == "__main__":
    run_command(lambda: cli(STUDY.reproduce, description=__doc__)())
