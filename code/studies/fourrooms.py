"""The paper's Four rooms: cd code && python -m studies.fourrooms.

Stop it at will: what is finished is not run again. Runs go to runs/fourrooms, tables to the screen.
"""

from functools import partial
from itertools import product

import numpy as np

from mlsh.errors import run_command
from mlsh.settings import cli
from mlsh.study import Study, Way
from mlsh.study_parts import ALL, Panel, adaptation, learning_curves, sweep

ENV = "--env FourroomsUnseen-v0 --wandb disabled"
CRITICS = f"train_option_critic.py {ENV}"
METHODS = {
    "MLSH": f"train.py {ENV} --record 0 --llr",
    "shared policy": f"train.py {ENV} --record 0 --num_low 1 -W 0 -U 50 --llr",
    "option-critic": f"{CRITICS} --lr",
    "actor-critic": f"{CRITICS} --num_options 1 --shared all --lr",
}
GOALS = {"mean of 16 goals": ALL}
CURVES = partial(learning_curves, figure="fourrooms-training.png", panels=GOALS, columns=GOALS)

RATES = (1e-3, 3e-3, 1e-2)
FLAGS = "-N {episodes} --hlr {rate:g} --bs 64 --updates {updates} --seeds {learners} --seed {seed} --look 20"
SCRATCH = f"train.py {ENV} --num_low 0 -W 1 -U 0 --tasks 1 --record 0"  # for its settings
NOTHING = f"{CRITICS} --num_options 1 --shared nothing --tasks 1 --rollouts 1"  # likewise
LEARN = partial(Way, env_steps=100_000, learners=(2, 1), choosing_seeds=[100], flags=FLAGS)
ALONE = partial(Way, env_steps=100_000, learners=(10, 2), flags=FLAGS)  # learners count as runs
ANEW = partial(
    adaptation,
    figure="fourrooms-adaptation.png",
    panels={"goals of training": Panel(), "unseen goals": Panel(tasks="--held_out")},
    ways={
        "MLSH, new master": LEARN("MLSH", [*product((2, 10), (3e-3, 1e-2, 3e-2))]),
        "shared policy, fine-tuned": LEARN("shared policy", [*product((10,), (3e-4, 1e-3, 3e-3))]),
        "PPO from scratch": ALONE("scratch", [*product((5, 10), RATES)], command=SCRATCH),
        "option-critic, transferred": LEARN("option-critic", [*product((10,), RATES)]),
        "actor-critic, transferred": LEARN("actor-critic", [*product((10,), RATES)]),
        "actor-critic from scratch": ALONE("actor-critic-scratch", [*product((10,), RATES)], command=NOTHING),
    },
    compared=("MLSH, new master", "PPO from scratch"),
)

NEW_MASTERS = "--updates 20 --seeds 2 --look 50"
OPTIONS = {
    (K, high_len): (
        f"train.py {ENV} --record 0 --num_low {K} --high_len {high_len} --llr",
        f"--held_out {NEW_MASTERS}",
    )
    for K, high_len in product((4, 8, 16), (25, 10, 5))
}
NEITHER = (10, 15, 17)  # tasks of FourroomsUnseen-v0 whose goals, cells 88, 93 and 100, Fourrooms-v0 has not either
TRAINED = {4: "train.py --env Fourrooms-v0 --wandb disabled", 16: f"train.py {ENV}"}  # goals of training
FEWER = {
    (goals, K): (
        f"{command} --record 0 --num_low {K} --llr",
        f"--env FourroomsUnseen-v0 --tasks {' '.join(map(str, NEITHER))} {NEW_MASTERS}",
    )
    for (goals, command), K in product(TRAINED.items(), (4, 16))
}
ON_UNSEEN = partial(sweep, method="MLSH", seeds=range(3), title="unseen goals, percent of the best", of=np.mean)

STUDY = Study(
    name="fourrooms",
    best_return=71.27,  # of the goals of training, see docs/environments.md
    horizon=100,
    methods=METHODS,
    rates=(3e-4, 1e-3, 3e-3),
    seeds=range(5),
    choosing_seed=100,
    parts=(
        CURVES,
        ANEW,
        partial(
            ON_UNSEEN,
            figure="fourrooms-options.png",
            name="options",
            cells=OPTIONS,
            labels=("sub-policies", "steps between decisions", "steps"),
        ),
        partial(
            ON_UNSEEN,
            figure="fourrooms-goals.png",
            name="goals",
            cells=FEWER,
            labels=("goals of training", "sub-policies", "sub-policies"),
        ),
    ),
)

if __name__ == "__main__":
    run_command(lambda: cli(STUDY.make, description=__doc__)())
