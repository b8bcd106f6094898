"""Stable-Baselines3 learns masters over shipped sub-policies. It needs an environment of its own: see .ci/run."""

import csv
import subprocess
import sys

import gymnasium as gym
import pytest

import mlsh
from conftest import CODE

sb3 = pytest.importorskip("stable_baselines3")
pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_options_are_an_environment_as_stable_baselines3_expects_one():
    from stable_baselines3.common.env_checker import check_env

    env = mlsh.OptionActions(gym.make("mlsh:AntObstacles-v1", max_episode_steps=40), "AntMovement-v1", high_len=10)
    check_env(env)
    sb3.PPO("MlpPolicy", env, n_steps=8, batch_size=8).learn(16)


@pytest.mark.parametrize(("algorithm", "task"), [("PPO", 0), ("DQN", 1)])
def test_a_master_of_stable_baselines3_learns_movement_bandits(tmp_path, algorithm, task):
    script = CODE.parent / "examples" / "sb3_masters.py"
    flags = f"--algorithm {algorithm} --task {task} --env_steps 12000 --every 12000 --episodes 50 --seeds 300"
    run = subprocess.run([sys.executable, script, *flags.split()], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    start, end = csv.DictReader((tmp_path / "sb3.csv").read_text().splitlines())
    assert (start["env_steps"], end["env_steps"]) == ("0", "12000")
    assert float(end["return"]) > 40  # the best possible is 43.8; the other sub-policy alone is below 15
