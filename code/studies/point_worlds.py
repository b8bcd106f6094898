"""The original's other point worlds, each with its preset: cd code && python -m studies.point_worlds

You can stop it at any time: finished runs are not repeated. Runs go to runs/point-worlds, the table to the screen.
"""

from functools import partial

from mlsh.errors import run_command
from mlsh.harness.analyses import tabulate_final_tests
from mlsh.harness.study import Study
from mlsh.settings import cli

SEEDS = {"KeyDoor-v0": range(10, 20), "MovementBanditsConv-v0": range(5), "Allwalk-v0": range(5)}

STUDY = Study(
    name="point-worlds",
    analyses=tuple(
        partial(tabulate_final_tests, commands={env: f"train.py --env {env} --record 0 --wandb disabled"}, seeds=seeds)
        for env, seeds in SEEDS.items()
    ),
)

if __name__ == "__main__":
    run_command(lambda: cli(STUDY.reproduce, description=__doc__)())
