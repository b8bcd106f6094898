"""The original's other point worlds, each by its preset: cd code && python -m studies.point_worlds.

Stop it at will: what is finished is not run again. Runs go to runs/point-worlds, the table to the screen.
"""

from functools import partial

from mlsh.errors import run_command
from mlsh.harness.analyses import final_tests
from mlsh.harness.study import Study
from mlsh.settings import cli

ENVS = ("KeyDoor-v0", "MovementBanditsConv-v0", "Allwalk-v0")
RUNS = {env: f"train.py --env {env} --record 0 --wandb disabled" for env in ENVS}

STUDY = Study(name="point-worlds", parts=(partial(final_tests, commands=RUNS, seeds=range(5)),))

if __name__ == "__main__":
    run_command(lambda: cli(STUDY.make, description=__doc__)())
