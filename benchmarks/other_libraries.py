"""Env steps a second of flat PPO on an ant, by other people's code and by ours; no test.

    PYTHONPATH=code python tests/others.py

It makes an environment for the others, once, in .venv/others, and downloads CleanRL's file, unless --cleanrl names one.
All have rollouts of about 2,000 steps, ten epochs of minibatches of 64, networks of 64 and 64. They have Gymnasium's
Ant-v4, one copy, ours AntBandits-v1, two: the same body, and five substeps of 10 ms a step; ours always plays 1,000.
CleanRL and Stable-Baselines3 say what they have had by then themselves, the latter before its last update; ours leaves
the first outer iteration out.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
import venv
from functools import partial
from pathlib import Path
from statistics import median

from mlsh.runs.metrics import read_metrics

ROOT = Path(__file__).absolute().parent.parent
CLEANRL = (
    "https://raw.githubusercontent.com/vwxyzjn/cleanrl/fe8d8a03c41a7ef5b523e2e354bd01c363e786bb/"
    "cleanrl/ppo_continuous_action.py"
)
PACKAGES = "torch==2.13.0 mujoco==4.0.0 gymnasium==0.29.1 imageio stable-baselines3==2.9.2 tyro tensorboard".split()
BASELINES = "from stable_baselines3 import PPO; PPO('MlpPolicy', 'Ant-v4', device='cpu', verbose=1).learn({steps})"
OURS = (
    "--env AntBandits-v1 --num_sub_policies 0 -W 12 -U 0 -N 2 -T 1000 --epochs 10 --master_minibatch 64"
    " --master_lr 0.0003 --groups 1 --record 0 --wandb disabled --test_episodes 2"
)


def environment(folder):
    """The interpreter of a virtual environment with the others' packages, made if it is not there."""
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", *PACKAGES], check=True)
        (folder / "installed").touch()
    return python


def run(*command, threads, folder):
    """What a command prints, run with so many threads."""
    environ = os.environ | {"OMP_NUM_THREADS": str(threads)}
    return subprocess.run(command, env=environ, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout


def of_cleanrl(python, file, threads, folder, steps=20_480):
    printed = run(python, file, "--env-id", "Ant-v4", "--total-timesteps", str(steps), threads=threads, folder=folder)
    return float(re.findall(r"SPS: (\d+)", printed)[-1])


def of_baselines(python, threads, folder, steps=20_480):
    printed = run(python, "-c", BASELINES.format(steps=steps), threads=threads, folder=folder)
    return float(re.findall(r"fps +\| (\d+)", printed)[-1])


def of_ours(compile, threads, folder):
    """Env steps that are learned from, a second of all, after the first outer iteration."""
    flags = [*OURS.split(), "--compile", compile, "--sim_threads", str(threads), "--tasks", "2"]
    with tempfile.TemporaryDirectory(dir=folder) as out:
        run(sys.executable, ROOT / "code" / "train.py", *flags, "--out", out, threads=threads, folder=folder)
        first, last = read_metrics(out)
    steps, seconds = (float(last[name]) - float(first[name]) for name in ("train_env_steps", "seconds"))
    return steps / seconds


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--threads", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--cleanrl", type=Path, help="ppo_continuous_action.py, where there is no network")
    args = parser.parse_args()
    python = environment(ROOT / ".venv" / "others")
    with tempfile.TemporaryDirectory() as folder:
        file = args.cleanrl and args.cleanrl.absolute()
        if not file:
            file = Path(folder, "ppo_continuous_action.py")
            urllib.request.urlretrieve(CLEANRL, file)
        ways = {
            "CleanRL, Ant-v4": partial(of_cleanrl, python, file),
            "Stable-Baselines3, Ant-v4": partial(of_baselines, python),
            **{f"ours, --compile {compile}": partial(of_ours, compile) for compile in ("off", "on")},
        }
        speeds = {(way, threads): [] for threads in args.threads for way in ways}
        for again in range(args.repeats):
            for (way, threads), each in speeds.items():
                each.append(ways[way](threads=threads, folder=folder))
                print(f"{again + 1}/{args.repeats} {way}, {threads} threads: {each[-1]:,.0f}", flush=True)
    print("env steps a second: median, lowest and highest")
    for (way, threads), each in speeds.items():
        print(f"{way:<36}{threads} threads {median(each):8,.0f} ({min(each):,.0f} to {max(each):,.0f})")


if __name__ == "__main__":
    main()
