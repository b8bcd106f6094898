"""The examples as a user runs them."""

import json
import os
import re
import subprocess
import sys

from conftest import CODE

BEST = 41  # of the 50 steps of an episode, the first nine cannot pay


def test_the_corridor_is_learned(tmp_path):
    flags = "--env corridor:Corridor-v0 --groups 2 -N 20 -W 5 -U 5 --tasks 4 --test_episodes 20 --seed 1"
    command = [sys.executable, "train.py", *flags.split(), "--record", "0", "--wandb", "disabled", "--out", tmp_path]
    path = os.pathsep.join(filter(None, (str(CODE.parent / "examples"), os.environ.get("PYTHONPATH"))))
    run = subprocess.run(command, cwd=CODE, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    test = json.loads((tmp_path / "results.json").read_text())["test"]
    returns = {row["task"]: row["return"] for row in test}
    assert set(returns) == {0, 1}
    assert all(BEST / 2 < x <= BEST for x in returns.values()), returns  # an agent that knows one task has 41 and 0


def test_the_readme_shows_the_corridor_as_it_is():
    page, example = ((CODE.parent / name).read_text() for name in ("README.md", "examples/corridor.py"))
    (shown,) = re.findall(r"```python\n(.*?)```", page, re.S)
    lines = shown.splitlines()
    assert len(lines) > 10 and all(line in example.splitlines() for line in lines)
