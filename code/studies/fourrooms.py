"""The paper's Four rooms: cd code && python -m studies.fourrooms.

Stop it at will: what is finished is not run again. Runs go to runs/fourrooms, tables to the screen.
"""

from functools import partial
from itertools import product

import numpy as np

from mlsh.errors import run_command
from mlsh.harness.analyses import ALL, Panel, adaptation, learning_curves, sweep
from mlsh.harness.study import Study, Way
from mlsh.settings import cli

ENV = "--env FourroomsUnseen-v0 --wandb disabled"
CRITICS = f"train_option_critic.py {ENV}"
METHODS = {
    "MLSH": f"train.py {ENV} --record 0 --sub_lr",
    "MLSH, 16 sub-policies": f"train.py {ENV} --record 0 --num_sub_policies 16 --sub_lr",
    "shared policy": f"train.py {ENV} --record 0 --num_sub_policies 1 -W 0 -U 50 --sub_lr",
    "option-critic": f"{CRITICS} --lr",
    "actor-critic": f"{CRITICS} --num_options 1 --shared all --lr",
}
GOALS = {"mean of 16 goals": ALL}
CURVES = partial(learning_curves, figure="fourrooms-training.png", panels=GOALS, columns=GOALS)

RATES = (1e-3, 3e-3, 1e-2)
FLAGS = "-N {episodes} --master_lr {rate:g} --master_minibatch 64 --updates {updates} --seeds {learners} --seed {seed} --eval_episodes 20"
SCRATCH = f"train.py {ENV} --num_sub_policies 0 -W 1 -U 0 --tasks 1 --record 0"  # for its settings
NOTHING = f"{CRITICS} --num_options 1 --shared nothing --tasks 1 --rollouts 1"  # likewise
LEARN = partial(Way, env_steps=50_000, learners=(2, 1), choosing_seeds=[100], flags=FLAGS)
ALONE = partial(Way, env_steps=50_000, learners=(10, 2), flags=FLAGS)  # learners count as runs
MASTERS = [*product((2, 10), (3e-3, 1e-2, 3e-2))]
ANEW = partial(
    adaptation,
    figure="fourrooms-adaptation.png",
    panels={"goals of training": Panel(tasks="--tasks 1 6 12 19"), "unseen goals": Panel(tasks="--held_out")},
    ways={
        "MLSH, new master": LEARN("MLSH", MASTERS),
        "MLSH, 16 sub-policies": LEARN("MLSH, 16 sub-policies", MASTERS),
        "shared policy, fine-tuned": LEARN("shared policy", [*product((10,), (3e-4, 1e-3, 3e-3))]),
        "PPO from scratch": ALONE("scratch", [*product((2, 10), RATES)], command=SCRATCH),
        "option-critic, transferred": LEARN("option-critic", [*product((10,), RATES)]),
        "actor-critic, transferred": LEARN("actor-critic", [*product((10,), RATES)]),
        "actor-critic from scratch": ALONE("actor-critic-scratch", [*product((10,), RATES)], command=NOTHING),
    },
    compared=("MLSH, 16 sub-policies", "PPO from scratch"),
    chosen_only=True,
)

# Held-out tasks of FourroomsUnseen-v0 whose goals (cells 88, 93, 100) are none of Fourrooms-v0 either. All cells have
# as many env steps, groups, and minibatches of a master.
UNSEEN = "--env FourroomsUnseen-v0 --tasks 10 15 17 --updates 20 --seeds 2 --eval_episodes 50"
OTHERS = {
    "16 goals, 5 steps": f"train.py {ENV} --high_len 5 --master_minibatch 200",
    "4 goals, 25 steps": "train.py --env Fourrooms-v0 -N 10 --groups 16 --wandb disabled",
}
OPTIONS = {
    ("16 goals, 25 steps", 4): ("MLSH", UNSEEN),
    ("16 goals, 25 steps", 16): ("MLSH, 16 sub-policies", UNSEEN),
    **{
        (trained, K): (f"{command} --record 0 --num_sub_policies {K} --sub_lr", UNSEEN)
        for (trained, command), K in product(OTHERS.items(), (4, 16))
    },
}

STUDY = Study(
    name="fourrooms",
    best_return=71.27,  # of the goals of training, see docs/environments.md
    horizon=100,
    methods=METHODS,
    rates=(1e-3, 3e-3),
    seeds=range(5),
    choosing_seed=100,
    parts=(
        CURVES,
        ANEW,
        partial(
            sweep,
            figure="fourrooms-options.png",
            name="options",
            method="MLSH",
            cells=OPTIONS,
            seeds=range(2),
            title="three unseen goals, percent of the best",
            labels=("goals of training, steps a decision", "sub-policies", "sub-policies"),
            of=np.mean,
        ),
    ),
)

if __name__ == "__main__":
    run_command(lambda: cli(STUDY.make, description=__doc__)())
