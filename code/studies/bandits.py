"""The paper's study of its 2D bandits: cd code && python -m studies.bandits. It takes two hours of one core.

Stop it at will: what is finished is not run again. Runs go to runs/bandits, tables to the screen.
"""

from functools import partial
from itertools import product

from mlsh.envs.movement_bandits import BEST_RETURN
from mlsh.errors import run_command
from mlsh.harness.analyses import ALL, BEST_TASK, WORST_TASK, Panel, adaptation, final_tests, learning_curves, sweep
from mlsh.harness.study import Study, Way
from mlsh.settings import cli

# Four groups in place of eight, so that many runs fit into an hour: an iteration has 8,000 env steps
SMALL = "train.py --groups 4 --record 0 --wandb disabled"
# 4 M env steps to learn from; without a warm-up all iterations are joint, as many a task, of a quarter of the updates
WARMED = f"{SMALL} -W 20 -U 1 --tasks 24 --fade 16"
JOINT = f"{SMALL} -W 0 -U 21 --tasks 24 --fade 16 --sub_minibatches 8"
METHODS = {
    "MLSH": f"{WARMED} --sub_lr",
    "no warm-up": f"{JOINT} --sub_lr",
    "timescale 1": f"{WARMED} --high_len 1 --master_minibatch 500 --sub_lr",
    "shared policy": f"{JOINT} --num_sub_policies 1 --sub_lr",
    "RL2": "train_rl2.py --iterations 200 --wandb disabled --lr",
}
CURVES = partial(
    learning_curves,
    figure="bandits-training.png",
    panels={"both tasks": ALL, "the worse task": WORST_TASK},
    columns={"both tasks": ALL, "better task": BEST_TASK, "worse task": WORST_TASK},
)

MASTERS = [*product((1, 2), (1e-3, 3e-3, 1e-2, 3e-2))]
FINE_TUNING = [*product((10,), (3e-4, 1e-3, 3e-3))]
FROM_SCRATCH = [*product((10, 20), (3e-4, 1e-3, 3e-3))]
SCRATCH = "train.py --num_sub_policies 0 -W 1 -U 0 --tasks 1 --record 0 --wandb disabled"  # for its settings
USUAL = f"{SCRATCH} --gamma 0.99 --clip 0.2"
ANEW = partial(
    adaptation,
    figure="bandits-adaptation.png",
    panels={"the run's worse task": Panel(WORST_TASK), "the run's better task": Panel(BEST_TASK)},
    ways={
        "MLSH, new master": Way("MLSH", MASTERS, 6_000, (10, 10), range(100, 103)),
        "shared policy, fine-tuned": Way("shared policy", FINE_TUNING, 100_000, (2, 10), [100]),
        "PPO from scratch": Way("scratch", FROM_SCRATCH, 100_000, (10, 10), command=SCRATCH),
        "the same, γ .99, clip .2": Way("scratch-usual", FROM_SCRATCH, 100_000, (10, 10), command=USUAL),
    },
    compared=("MLSH, new master", "PPO from scratch"),
)

FOUR_GOALS = {"four-goals": "train.py --env MovementBandits4-v0 --record 0 --wandb disabled"}

# Outer iterations of a warm-up, in 2.4 M env steps
TASKS = {0: "300 --fade 200", 5: "50 --fade 33", 20: "14 --fade 9", 60: "5 --fade 3"}
CELLS = {
    (K, W): (
        f"{SMALL} --num_sub_policies {K} -W {W} -U 1 --tasks {tasks} --sub_lr",
        "--updates 20 --seeds 5 --eval_episodes 200",
    )
    for K, (W, tasks) in product((2, 4), TASKS.items())
}
LABELS = ("sub-policies", "warm-up iterations W", "W")
MAP = partial(sweep, figure="bandits-sweep.png", title="worse task, percent of the best", labels=LABELS)

STUDY = Study(
    name="bandits",
    best_return=BEST_RETURN,
    horizon=50,
    methods=METHODS,
    rates=(1e-3, 3e-3, 1e-2),
    sharing=("MLSH", "no warm-up", "timescale 1"),
    seeds=range(5),
    choosing_seed=100,
    parts=(
        partial(final_tests, commands=FOUR_GOALS, seeds=range(10)),
        CURVES,
        ANEW,
        partial(MAP, name="sweep", method="MLSH", cells=CELLS, seeds=range(3)),
    ),
)

if __name__ == "__main__":
    run_command(lambda: cli(STUDY.make, description=__doc__)())
