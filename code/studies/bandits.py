"""The paper's study of its 2D bandits: cd code && python -m studies.bandits

It takes about two hours on one core. You can stop it at any time: finished runs are not repeated. Runs go to
runs/bandits, tables to the screen.
"""

from functools import partial

from mlsh.envs.movement_bandits import BEST_RETURN
from mlsh.errors import run_command
from mlsh.harness.analyses import (
    ALL,
    BEST_TASK,
    WORST_TASK,
    SweepCell,
    TaskSelection,
    compare_adaptation,
    compare_training,
    sweep_two_settings,
    tabulate_final_tests,
)
from mlsh.harness.study import AdaptationMethod, Study, grid
from mlsh.settings import cli

# Four task groups instead of the preset's eight, so that many runs fit into an hour: 8,000 env steps per iteration.
# Every method learns from 4 M env steps. Without a warm-up each task has as many iterations, all of them joint, with a
# quarter of the preset's minibatches.
TRAIN = "train.py --groups 4 --record 0 --wandb disabled"
SCRATCH = "train.py --num_sub_policies 0 -W 1 -U 0 --tasks 1 --record 0 --wandb disabled"
FROM_SCRATCH = partial(
    AdaptationMethod,
    settings=grid(episodes=(10, 20), learning_rates=(3e-4, 1e-3, 3e-3)),
    env_steps=100_000,
    learners=10,
    selection_learners=10,
)

# Each run of the sweep has 2.4 M env steps.
TASKS_AFTER_WARM_UP = {
    0: "--tasks 300 --fade 200",
    5: "--tasks 50 --fade 33",
    20: "--tasks 14 --fade 9",
    60: "--tasks 5 --fade 3",
}

STUDY = Study(
    name="bandits",
    best_return=BEST_RETURN,
    horizon=50,
    methods={
        "MLSH": f"{TRAIN} -W 20 -U 1 --tasks 24 --fade 16 --sub_lr",
        "no warm-up": f"{TRAIN} -W 0 -U 21 --tasks 24 --fade 16 --sub_minibatches 8 --sub_lr",
        "timescale 1": f"{TRAIN} -W 20 -U 1 --tasks 24 --fade 16 --high_len 1 --master_minibatch 500 --sub_lr",
        "shared policy": f"{TRAIN} -W 0 -U 21 --tasks 24 --fade 16 --sub_minibatches 8 --num_sub_policies 1 --sub_lr",
        "RL2": "train_rl2.py --iterations 200 --wandb disabled --lr",
    },
    learning_rates=(1e-3, 3e-3, 1e-2),
    same_rate=("MLSH", "no warm-up", "timescale 1"),
    seeds=range(5),
    selection_seed=100,
    analyses=(
        partial(
            tabulate_final_tests,
            commands={"four-goals": "train.py --env MovementBandits4-v0 --record 0 --wandb disabled"},
            seeds=range(10),
        ),
        partial(
            compare_training,
            figure="bandits-training.png",
            panels={"both tasks": ALL, "the worse task": WORST_TASK},
            columns={"both tasks": ALL, "better task": BEST_TASK, "worse task": WORST_TASK},
        ),
        partial(
            compare_adaptation,
            figure="bandits-adaptation.png",
            panels={
                "the run's worse task": TaskSelection(WORST_TASK),
                "the run's better task": TaskSelection(BEST_TASK),
            },
            methods={
                "MLSH, new master": AdaptationMethod(
                    "MLSH",
                    grid(episodes=(1, 2), learning_rates=(1e-3, 3e-3, 1e-2, 3e-2)),
                    env_steps=6_000,
                    learners=10,
                    selection_learners=10,
                    selection_seeds=range(100, 103),
                ),
                "shared policy, fine-tuned": AdaptationMethod(
                    "shared policy",
                    grid(episodes=(10,), learning_rates=(3e-4, 1e-3, 3e-3)),
                    env_steps=100_000,
                    learners=2,
                    selection_learners=10,
                ),
                "PPO from scratch": FROM_SCRATCH("scratch", command=SCRATCH),
                "the same, γ .99, clip .2": FROM_SCRATCH("scratch-usual", command=f"{SCRATCH} --gamma 0.99 --clip 0.2"),
            },
            compared=("MLSH, new master", "PPO from scratch"),
        ),
        partial(
            sweep_two_settings,
            figure="bandits-sweep.png",
            name="sweep",
            title="worse task, percent of the best",
            cells={
                (K, W): SweepCell(
                    command=f"{TRAIN} --num_sub_policies {K} -W {W} -U 1 {tasks} --sub_lr",
                    evaluation="--updates 20 --seeds 5 --eval_episodes 200",
                )
                for K in (2, 4)
                for W, tasks in TASKS_AFTER_WARM_UP.items()
            },
            rate_of="MLSH",
            seeds=range(3),
            row_label="sub-policies",
            column_label="warm-up iterations W",
            column_prefix="W",
        ),
    ),
)

if __name__ == "__main__":
    run_command(lambda: cli(STUDY.reproduce, description=__doc__)())
