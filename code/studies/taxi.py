"""MLSH on the taxi that FAMP compares itself with it on: cd code && python -m studies.taxi

You can stop it at any time: finished runs are not repeated. Runs go to runs/taxi, tables to the screen.
"""

from functools import partial

from mlsh.errors import run_command
from mlsh.harness.analyses import ALL, TaskSelection, compare_adaptation, compare_training
from mlsh.harness.study import AdaptationMethod, Study, grid
from mlsh.settings import cli

TRAIN = "train.py --env TaxiFAMP-v0 --record 0 --wandb disabled"
ADAPT = partial(AdaptationMethod, env_steps=50_000, selection_learners=1, eval_episodes=5)

STUDY = Study(
    name="taxi",
    best_return=0.75,  # mean over the trips of training, by value iteration
    return_scale=2.0,  # what a delivery pays; each unnecessary step costs 5 % of it
    horizon=500,
    methods={"MLSH": f"{TRAIN} --sub_lr", "shared policy": f"{TRAIN} --num_sub_policies 1 -W 0 -U 20 --sub_lr"},
    learning_rates=(1e-3, 3e-3),
    seeds=range(5),
    selection_seed=100,
    analyses=(
        partial(
            compare_training,
            figure="taxi-training.png",
            panels={"mean of the trips": ALL},
            columns={"mean of the trips": ALL},
        ),
        partial(
            compare_adaptation,
            figure="taxi-adaptation.png",
            panels={"held-out trips": TaskSelection(flags="--held_out")},
            methods={
                "MLSH, new master": ADAPT("MLSH", grid((5,), (3e-3, 1e-2, 3e-2)), learners=2),
                "shared policy, fine-tuned": ADAPT("shared policy", grid((5,), (3e-4, 1e-3, 3e-3)), learners=2),
                "PPO from scratch": ADAPT(
                    "scratch",
                    grid((5,), (1e-3, 3e-3, 1e-2)),
                    learners=5,
                    command=f"{TRAIN} --num_sub_policies 0 -W 1 -U 0 --tasks 1",
                ),
            },
            compared=("MLSH, new master", "PPO from scratch"),
            chosen_only=True,
        ),
    ),
)

if __name__ == "__main__":
    run_command(lambda: cli(STUDY.reproduce, description=__doc__)())
