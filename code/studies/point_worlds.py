"""The original's other point worlds, each with its preset: cd code && python -m studies.point_worlds

You can stop it at any time: finished runs are not repeated. Runs go to runs/point-worlds, the table to the screen.
"""

from functools import partial

from mlsh.errors import run_command
from mlsh.harness.analyses import tabulate_final_tests
from mlsh.harness.study import Study
from mlsh.settings import cli

RUNS = {
    "KeyDoor-v0": "train.py --env KeyDoor-v0 --record 0 --wandb disabled",
    "MovementBanditsConv-v0": "train.py --env MovementBanditsConv-v0 --record 0 --wandb disabled",
    "Allwalk-v0": "train.py --env Allwalk-v0 --record 0 --wandb disabled",
}

STUDY = Study(name="point-worlds", analyses=(partial(tabulate_final_tests, commands=RUNS, seeds=range(5)),))

if __name__ == "__main__":
    run_command(lambda: cli(STUDY.reproduce, description=__doc__)())
