"""The paper's Four rooms (section 6.3): cd code && python -m studies.fourrooms

You can stop it at any time: finished runs are not repeated. Runs go to runs/fourrooms, tables to the screen.
"""

from functools import partial

import numpy as np

from mlsh.errors import run_command
from mlsh.harness.analyses import (
    ALL,
    SweepCell,
    TaskSelection,
    compare_adaptation,
    compare_training,
    sweep_two_settings,
)
from mlsh.harness.study import AdaptationMethod, Study, grid
from mlsh.settings import cli

TRAIN = "train.py --env FourroomsUnseen-v0 --wandb disabled"
CRITIC = "train_option_critic.py --env FourroomsUnseen-v0 --wandb disabled"

FROM_RUNS = partial(AdaptationMethod, env_steps=50_000, learners=2, selection_learners=1, eval_episodes=20)
FROM_SCRATCH = partial(AdaptationMethod, env_steps=50_000, learners=10, selection_learners=2, eval_episodes=20)
MASTERS = grid(episodes=(2, 10), learning_rates=(3e-3, 1e-2, 3e-2))
CRITICS = grid(episodes=(10,), learning_rates=(1e-3, 3e-3, 1e-2))

# The goals of these held-out tasks of FourroomsUnseen-v0 (cells 88, 93 and 100) are not among those of Fourrooms-v0
# either. All runs of the sweep have the same number of env steps, episodes per iteration, and minibatches per master.
UNSEEN = "--env FourroomsUnseen-v0 --tasks 10 15 17 --updates 20 --seeds 2 --eval_episodes 50"
SHORT_DECISIONS = f"{TRAIN} --high_len 5 --master_minibatch 200 --record 0"
FOUR_GOALS = "train.py --env Fourrooms-v0 -N 10 --groups 16 --wandb disabled --record 0"

STUDY = Study(
    name="fourrooms",
    best_return=71.27,  # mean over the goals of training, by value iteration
    horizon=100,
    methods={
        "MLSH": f"{TRAIN} --record 0 --sub_lr",
        "MLSH, 16 sub-policies": f"{TRAIN} --record 0 --num_sub_policies 16 --sub_lr",
        "shared policy": f"{TRAIN} --record 0 --num_sub_policies 1 -W 0 -U 50 --sub_lr",
        "option-critic": f"{CRITIC} --lr",
        "actor-critic": f"{CRITIC} --num_options 1 --shared all --lr",
    },
    learning_rates=(1e-3, 3e-3),
    seeds=range(5),
    selection_seed=100,
    analyses=(
        partial(
            compare_training,
            figure="fourrooms-training.png",
            panels={"mean of 16 goals": ALL},
            columns={"mean of 16 goals": ALL},
        ),
        partial(
            compare_adaptation,
            figure="fourrooms-adaptation.png",
            panels={
                "goals of training": TaskSelection(flags="--tasks 1 6 12 19"),
                "unseen goals": TaskSelection(flags="--held_out"),
            },
            methods={
                "MLSH, new master": FROM_RUNS("MLSH", MASTERS),
                "MLSH, 16 sub-policies": FROM_RUNS("MLSH, 16 sub-policies", MASTERS),
                "shared policy, fine-tuned": FROM_RUNS("shared policy", grid((10,), (3e-4, 1e-3, 3e-3))),
                "PPO from scratch": FROM_SCRATCH(
                    "scratch",
                    grid((2, 10), (1e-3, 3e-3, 1e-2)),
                    command=f"{TRAIN} --num_sub_policies 0 -W 1 -U 0 --tasks 1 --record 0",
                ),
                "option-critic, transferred": FROM_RUNS("option-critic", CRITICS),
                "actor-critic, transferred": FROM_RUNS("actor-critic", CRITICS),
                "actor-critic from scratch": FROM_SCRATCH(
                    "actor-critic-scratch",
                    CRITICS,
                    command=f"{CRITIC} --num_options 1 --shared nothing --tasks 1 --rollouts 1",
                ),
            },
            compared=("MLSH, 16 sub-policies", "PPO from scratch"),
            chosen_only=True,
        ),
        partial(
            sweep_two_settings,
            figure="fourrooms-options.png",
            name="options",
            title="three unseen goals, percent of the best",
            cells={
                ("16 goals, 25 steps", 4): SweepCell(UNSEEN, method="MLSH"),
                ("16 goals, 25 steps", 16): SweepCell(UNSEEN, method="MLSH, 16 sub-policies"),
                ("16 goals, 5 steps", 4): SweepCell(UNSEEN, command=f"{SHORT_DECISIONS} --num_sub_policies 4 --sub_lr"),
                ("16 goals, 5 steps", 16): SweepCell(
                    UNSEEN, command=f"{SHORT_DECISIONS} --num_sub_policies 16 --sub_lr"
                ),
                ("4 goals, 25 steps", 4): SweepCell(UNSEEN, command=f"{FOUR_GOALS} --num_sub_policies 4 --sub_lr"),
                ("4 goals, 25 steps", 16): SweepCell(UNSEEN, command=f"{FOUR_GOALS} --num_sub_policies 16 --sub_lr"),
            },
            rate_of="MLSH",
            seeds=range(2),
            row_label="goals of training, steps per decision",
            column_label="sub-policies",
            column_prefix="sub-policies",
            over_tasks=np.mean,
        ),
    ),
)

if __name__ == "__main__":
    run_command(lambda: cli(STUDY.reproduce, description=__doc__)())
