"""Run folders from somebody else, and damaged ones: no code of theirs runs, nothing is written elsewhere."""

import json
import os
import shutil
import sys
import zipfile

import pytest
import torch

import mlsh
from conftest import CODE, TINY
from mlsh.config import Config
from mlsh.envs import modules
from mlsh.errors import UserError
from mlsh.runs import checkpoint

SMALL = [*TINY, "--hidden", "8", "--record", "1"]
ENVIRONMENT = """
import gymnasium as gym, numpy as np, pathlib
pathlib.Path(__file__).with_suffix(".ran").touch()
from foreign import Walk
gym.register("Payload-v0", Walk, max_episode_steps=7)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run; copy it before changing it."""
    import subprocess

    folder = tmp_path_factory.mktemp("runs") / "run"
    words = [sys.executable, CODE / "train.py", *SMALL, "--out", folder]
    subprocess.run(list(map(str, words)), check=True, capture_output=True)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def edit(folder, **settings):
    """Change settings in a run folder's checkpoint and config.json."""
    data = torch.load(folder / "checkpoint.pt", weights_only=True)
    data["config"] |= settings
    torch.save(data, folder / "checkpoint.pt")
    saved = json.loads((folder / "config.json").read_text())
    saved["config"] |= settings
    (folder / "config.json").write_text(json.dumps(saved))


def commands(folder, out):
    """The commands that read a run folder, and write to `out`."""
    return {
        "render.py": [folder, "--updates", 1, "-N", 2, "--out", out / "x.gif"],
        "evaluate.py": [folder, "--updates", 1, "--seeds", 1, "-N", 2, "--out", out / "evaluation"],
        "train.py": ["-c", "--out", folder, "--tasks", 3],
        "report.py": [folder, "--html", out / "x.html"],
    }


def test_a_run_that_was_trained_on_a_gpu_is_used_without_one(run, command, tmp_path):
    edit(run, device="cuda")
    for script, words in commands(run, tmp_path).items():
        words += ["--device", "cpu"] if script == "train.py" else []
        code, _, err = command(script, *words)
        assert code == 0, err
    edit(run, device="cuda")
    assert mlsh.load(run).sub_policies.device.type == "cpu"
    if not torch.cuda.is_available():
        code, _, err = command("train.py", "-c", "--out", run)
        assert code == 2 and "--device cuda is not available here; use cpu" in err
