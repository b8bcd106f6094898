"""Runs of version 0.2, which had other names for many settings and for the sub-policies, are read and continued."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from mlsh.baselines.option_critic import OptionCriticConfig
from mlsh.baselines.rl2 import RL2Config
from mlsh.config import Config
from mlsh.envs import make_env
from mlsh.meta_test import load_agent
from mlsh.runs import checkpoint
from mlsh.runs.metrics import read_metrics

RUNS = Path(__file__).parent / "data" / "runs-0.2"
KINDS = {
    "mlsh": (Config, "train.py", "--tasks"),
    "rl2": (RL2Config, "train_rl2.py", "--iterations"),
    "option-critic": (OptionCriticConfig, "train_option_critic.py", "--tasks"),
}
SETTINGS = {  # name today: value in the stored run
    "mlsh": {
        "num_sub_policies": 2,
        "sub_minibatches": 30,
        "master_lr": 0.01,
        "sub_lr": 0.0015,
        "sub_lr_decay": 1.0,
        "master_minibatch": 200,
        "clip": 0.4,
        "value_coef": 0.5,
        "master_entropy": 0.0,
        "sub_entropy": 0.02,
        "blind": 0,
        "epochs": 2,
        "hidden": 4,
    },
    "rl2": {"clip": 0.2, "value_coef": 0.5, "entropy_coef": 0.01, "minibatches": 2, "epochs": 2, "lr": 0.01},
    "option-critic": {"entropy_coef": 0.01, "num_options": 4, "lr_critic": 0.003},
}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_the_settings_have_their_names_of_today(kind):
    data = checkpoint.load(RUNS / kind, [settings for settings, *_ in KINDS.values()])
    assert data["kind"] == kind and data["iteration"] == 2
    assert data["config"].only(*SETTINGS[kind]) == SETTINGS[kind]
    assert not {"wandb_group", "wandb_name"} & data["config"].as_dict().keys()


def test_a_run_is_continued(kind, command, tmp_path):
    settings, script, length = KINDS[kind]
    shutil.copytree(RUNS / kind, tmp_path / "run")
    code, _, err = command(script, "-c", "--out", tmp_path / "run", length, 3)
    assert code == 0, err
    assert json.loads((tmp_path / "run" / "results.json").read_text())["iteration"] == 3
    rows, old = read_metrics(tmp_path / "run"), read_metrics(RUNS / kind)
    assert rows[: len(old)] == old and {row["iteration"] for row in rows[len(old) :]} == {"2"}
    data = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert data["format"] == checkpoint.FORMAT and ("sub_policies" in data) == (kind == "mlsh") and "subs" not in data
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert config.keys() == data["config"].keys() == settings().as_dict().keys()


def test_a_run_is_evaluated(kind, command, tmp_path):
    flags = ["--updates", 1, "--seeds", 2, "-N", 2, "--out", tmp_path]
    code, out, err = command("evaluate.py", RUNS / kind, *flags)
    assert code == 0, err
    assert "task 1" in out and (tmp_path / "adaptation.csv").exists()


def test_a_run_is_reported(command):
    code, out, err = command("report.py", RUNS / "mlsh")
    assert code == 0, err
    (variant,) = [line for line in out.splitlines() if line.startswith("| `")]
    assert "--hidden 4" in variant and "--sub_lr" not in variant  # which is that of the preset


def test_the_shipped_checkpoint_is_read():
    data = checkpoint.load("AntBandits-v1", [Config])  # it was written by version 0.2
    env = make_env(data["config"], 1)
    assert load_agent(data, env).normaliser.count == data["normaliser"]["count"] > 0
