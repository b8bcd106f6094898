"""Env steps per second of flat PPO on an ant: CleanRL, Stable-Baselines3 and this project.

    python benchmarks/other_libraries.py [--repeats 6] [--threads 1 2] [--cleanrl FILE]

The first call installs the other libraries into .venv/others. CleanRL's file is downloaded unless --cleanrl names it.

All use rollouts of about 2,000 steps, ten epochs, minibatches of 64, and two hidden layers of 64. The others play one
copy of Gymnasium's Ant-v4, this project two copies of AntBandits-v1: the same body, with five substeps of 10 ms per
step, but with episodes of always 1,000 steps. CleanRL and Stable-Baselines3 report their own speed, the latter before
its last update. For this project the first outer iteration does not count.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
import venv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from mlsh.runs.metrics import read_metrics

ROOT = Path(__file__).absolute().parents[1]
CLEANRL = (
    "https://raw.githubusercontent.com/vwxyzjn/cleanrl/fe8d8a03c41a7ef5b523e2e354bd01c363e786bb/"
    "cleanrl/ppo_continuous_action.py"
)
PACKAGES = "torch==2.13.0 mujoco==4.0.0 gymnasium==0.29.1 imageio stable-baselines3==2.9.2 tyro tensorboard".split()
STEPS = 20_480
STABLE_BASELINES = (
    f"from stable_baselines3 import PPO; PPO('MlpPolicy', 'Ant-v4', device='cpu', verbose=1).learn({STEPS})"
)
OURS = (
    "--env AntBandits-v1 --num_sub_policies 0 -W 12 -U 0 -N 2 -T 1000 --epochs 10 --master_minibatch 64 "
    "--master_lr 0.0003 --groups 1 --tasks 2 --record 0 --wandb disabled --test_episodes 2"
)


def virtual_environment(folder: Path) -> Path:
    """The interpreter of a virtual environment with the other libraries, which is made if it does not exist."""
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", *PACKAGES], check=True)
        (folder / "installed").touch()
    return python


def output_of(*command: str | Path, threads: int, folder: Path) -> str:
    """Run a command with so many threads in `folder`, and return what it prints."""
    environ = os.environ | {"OMP_NUM_THREADS": str(threads)}
    return subprocess.run(command, env=environ, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout


def cleanrl_speed(python: Path, file: Path, threads: int, folder: Path) -> float:
    flags = ["--env-id", "Ant-v4", "--total-timesteps", str(STEPS)]
    printed = output_of(python, file, *flags, threads=threads, folder=folder)
    return float(re.findall(r"SPS: (\d+)", printed)[-1])


def stable_baselines_speed(python: Path, threads: int, folder: Path) -> float:
    printed = output_of(python, "-c", STABLE_BASELINES, threads=threads, folder=folder)
    return float(re.findall(r"fps +\| (\d+)", printed)[-1])


def our_speed(compile: str, threads: int, folder: Path) -> float:
    """The env steps learned from, per second of the second outer iteration."""
    flags = [*OURS.split(), "--compile", compile, "--sim_threads", str(threads)]
    with tempfile.TemporaryDirectory(dir=folder) as out:
        output_of(sys.executable, ROOT / "code" / "train.py", *flags, "--out", out, threads=threads, folder=folder)
        first, last = read_metrics(out)
    steps, seconds = (float(last[name]) - float(first[name]) for name in ("train_env_steps", "seconds"))
    return steps / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--threads", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--cleanrl", type=Path, help="ppo_continuous_action.py, for machines without a network")
    args = parser.parse_args()
    python = virtual_environment(ROOT / ".venv" / "others")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = args.cleanrl and args.cleanrl.absolute()
        if not file:
            file = folder / "ppo_continuous_action.py"
            urllib.request.urlretrieve(CLEANRL, file)
        programs: dict[str, Callable[..., float]] = {
            "CleanRL, Ant-v4": partial(cleanrl_speed, python, file),
            "Stable-Baselines3, Ant-v4": partial(stable_baselines_speed, python),
            "this project, --compile off": partial(our_speed, "off"),
            "this project, --compile on": partial(our_speed, "on"),
        }
        speeds: dict[tuple[str, int], list[float]] = {(x, threads): [] for threads in args.threads for x in programs}
        for repeat in range(args.repeats):
            for (program, threads), measured in speeds.items():
                measured.append(programs[program](threads=threads, folder=folder))
                print(f"{repeat + 1}/{args.repeats} {program}, {threads} threads: {measured[-1]:,.0f}", flush=True)
    print("env steps per second: median (lowest to highest)")
    for (program, threads), measured in speeds.items():
        print(f"{program:<36}{threads} threads {median(measured):8,.0f} ({min(measured):,.0f} to {max(measured):,.0f})")


if __name__ == "__main__":
    main()
