"""Environments of other people with default settings: cd code && PYTHONPATH=../examples python -m studies.others

You can stop it at any time: finished runs are not repeated. Runs go to runs/others, tables to the screen.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from mlsh.config import Config
from mlsh.errors import run_command
from mlsh.harness.analyses import print_table
from mlsh.harness.jobs import Job
from mlsh.harness.study import Study, read_adaptation
from mlsh.runs.plots import draw_bands, last_tenth, steps_to_level
from mlsh.settings import cli

TRAIN = "train.py --record 0 --wandb disabled --env"
SETTINGS_ONLY = "--num_sub_policies 0 -W 1 -U 0 --tasks 1 --test_episodes 2"  # a run made only for its settings
NEW_MASTERS, SHARED, SCRATCH = "MLSH, new masters", "shared policy", "PPO from scratch"
MASTER_UPDATES = 40
REACHED = 0.9  # of the way from an untrained flat policy to new masters at the end


class Family(NamedTuple):
    """An environment without a preset."""

    env: str
    tasks: int  # for training
    T: int = 0  # 0 for its own limit
    evaluated: str = ""  # flag of evaluate.py
    seeds: Sequence[int] = range(3)


class Curve(NamedTuple):
    """Returns while learners adapt."""

    env_steps: np.ndarray  # [n], on each task
    returns: np.ndarray  # [n, seeds], means over tasks


FAMILIES = (
    Family("variants:Pendulums-v0", 3),
    Family("robotics:PointMaze-v0", 4),
    Family("running:HalfCheetahDir-v0", 2, 200),
    Family("running:AntDir-v0", 2, 200),
    Family("variants:CartPoles-v0", 4),
    Family("rooms:Goals-v0", 4),
    Family("meta_world:ML1-reach-v3", 50, 100, "--tasks 0 10 20 30 40"),
    Family("rooms:GoalImages-v0", 4, seeds=range(1)),  # convolutions take ten times as long
)


def jobs_of(study: Study, family: Family, way: str) -> tuple[list[Job], list[Job]]:
    """The jobs that train in one way, and those that adapt what has been trained: one of each per seed."""
    default = {name: x.value for name, x in Config.derived(family.env, family.T).items()}
    iterations = default["W"] + default["U"]
    updates = math.ceil(iterations * default["tasks"] * default["groups"] / family.tasks)  # as many env steps as MLSH
    training_flags, evaluation_flags = {
        NEW_MASTERS: ("", f"--updates {MASTER_UPDATES} --eval_episodes 10 --seeds 1 --seed 1{{seed}}"),
        SHARED: (
            f"--num_sub_policies 1 --sub_spread 0 -W 0 -U {iterations}",
            "--updates 0 --eval_episodes 20 --seeds 1 --seed {seed}",
        ),
        SCRATCH: (SETTINGS_ONLY, f"--updates {updates} --master_lr 0.0003 --seeds 1 --seed {{seed}}"),
    }[way]
    horizon = f"-T {family.T}" if family.T else ""
    command = " ".join(f"{TRAIN} {family.env} {horizon} {training_flags}".split())
    training = Job.for_seeds(f"{family.env.split(':')[-1]}-{way.split()[0].strip(',')}", command, family.seeds)
    return training, [
        study.evaluation_job(job, "adapt", f"{evaluation_flags.format(seed=seed)} {family.evaluated}".strip())
        for job, seed in zip(training, family.seeds, strict=True)
    ]


def read(study: Study, evaluations: Sequence[Job]) -> Curve:
    results = [read_adaptation(study, job) for job in evaluations]
    returns = [x.measures["return"].mean((1, 2)) for x in results]
    return Curve(results[0].env_steps, np.stack(returns, 1))


def compare(study: Study, figure: str) -> None:
    """Table and figure of new masters over trained sub-policies, a shared policy, and PPO from scratch."""
    panels, rows = {}, []
    for family in FAMILIES:
        jobs = {way: jobs_of(study, family, way) for way in (NEW_MASTERS, SHARED, SCRATCH)}
        study.run_jobs(*(training for training, _ in jobs.values()))
        study.run_jobs(*(evaluations for _, evaluations in jobs.values()))
        curves = {way: read(study, evaluations) for way, (_, evaluations) in jobs.items()}
        panels[family.env.split(":")[-1]] = {way: curves[way] for way in (NEW_MASTERS, SCRATCH)}
        rows.append([f"`{family.env}`", *cells(curves)])
    with study.drawing():
        draw_bands(study.figures / figure, panels, "env steps on the task", columns=4)
    print_table(
        [
            "environment",
            "env steps per task",
            "untrained",
            NEW_MASTERS,
            SHARED,
            SCRATCH,
            "share of PPO",
            f"env steps to {REACHED:.0%} of MLSH: MLSH / PPO",
        ],
        rows,
    )


def cells(curves: dict[str, Curve]) -> list[str]:
    """One row of the table, after the name of the environment."""
    new, shared, scratch = (curves[way] for way in (NEW_MASTERS, SHARED, SCRATCH))
    untrained = scratch.returns[0].mean()
    ends = [last_tenth(new.returns.T), shared.returns[-1], last_tenth(scratch.returns.T)]
    learned, _, learned_from_scratch = (x.mean() for x in ends)
    level = untrained + REACHED * (learned - untrained)
    steps = [steps_to_level(level, x.env_steps, x.returns.mean(1)) for x in (new, scratch)]
    return [
        f"{scratch.env_steps[-1]:,.0f}",
        f"{untrained:.4g}",
        *(f"{x.mean():.4g} ({x.min():.4g} to {x.max():.4g})" for x in ends),
        f"{(learned - untrained) / (learned_from_scratch - untrained):.0%}",
        " / ".join(f"{x:,.0f}" if math.isfinite(x) else "never" for x in steps),
    ]


STUDY = Study(name="others", analyses=(partial(compare, figure="others.png"),))

if __name__ == "__main__":
    run_command(lambda: cli(STUDY.reproduce, description=__doc__)())
