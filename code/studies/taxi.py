"""The taxi that FAMP compares itself with MLSH on: cd code && python -m studies.taxi.

Stop it at will: what is finished is not run again. Runs go to runs/taxi, tables to the screen.
"""

from functools import partial
from itertools import product

from mlsh.errors import run_command
from mlsh.harness.analyses import ALL, Panel, adaptation, learning_curves
from mlsh.harness.study import Study, Way
from mlsh.settings import cli

MLSH = "train.py --env TaxiFAMP-v0 --record 0 --wandb disabled"
METHODS = {
    "MLSH": f"{MLSH} --sub_lr",
    "shared policy": f"{MLSH} --num_sub_policies 1 -W 0 -U 20 --sub_lr",
}
SCRATCH = f"{MLSH} --num_sub_policies 0 -W 1 -U 0 --tasks 1"  # for its settings
FLAGS = "-N {episodes} --master_lr {rate:g} --master_minibatch 64 --updates {updates} --seeds {learners} --seed {seed} --eval_episodes 5"
LEARN = partial(Way, env_steps=50_000, learners=(2, 1), choosing_seeds=[100], flags=FLAGS)
RATES = (1e-3, 3e-3, 1e-2)
TRIPS = {"mean of the trips": ALL}

STUDY = Study(
    name="taxi",
    best_return=0.75,  # of the trips of training, see docs/environments.md
    unit=2.0,  # what a delivery pays: a step too many is 5 %
    horizon=500,
    methods=METHODS,
    rates=(1e-3, 3e-3),
    seeds=range(5),
    choosing_seed=100,
    parts=(
        partial(learning_curves, figure="taxi-training.png", panels=TRIPS, columns=TRIPS),
        partial(
            adaptation,
            figure="taxi-adaptation.png",
            panels={"held-out trips": Panel(tasks="--held_out")},
            ways={
                "MLSH, new master": LEARN("MLSH", [*product((5,), (3e-3, 1e-2, 3e-2))]),
                "shared policy, fine-tuned": LEARN("shared policy", [*product((5,), (3e-4, 1e-3, 3e-3))]),
                "PPO from scratch": LEARN("scratch", [*product((5,), RATES)], learners=(5, 1), command=SCRATCH),
            },
            compared=("MLSH, new master", "PPO from scratch"),
            chosen_only=True,
        ),
    ),
)

if __name__ == "__main__":
    run_command(lambda: cli(STUDY.make, description=__doc__)())
