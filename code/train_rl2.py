"""Train RL², the recurrent baseline of the paper: python train_rl2.py --help"""

import csv
import sys
import time

import torch
import tyro
from tqdm import tqdm

from mlsh import checkpoint, rl2
from mlsh.config import RL2Config
from mlsh.envs import make_env
from mlsh.errors import run_command
from mlsh.logger import make_run_folder, writing
from mlsh.rollout import balanced_tasks, streams


def main():
    cfg = tyro.cli(RL2Config, use_underscores=True)
    cfg.validate()
    env = make_env(cfg, cfg.N)
    policy = rl2.build(cfg, env)
    (rng,) = streams(cfg.seed, 0, "rl2: weights", [0])
    policy.reset(rng)
    folder = make_run_folder(cfg, "rl2-")
    optimizer = torch.optim.Adam(policy.parameters(), cfg.lr, eps=1e-5)
    env_steps, start = 0, time.monotonic()
    with writing(folder), open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["iteration", "task", "env_steps", "seconds", *(f"episode_{e}" for e in range(cfg.episodes))])
        for i in tqdm(range(cfg.iterations), unit="it", dynamic_ncols=True):
            (rng,) = streams(cfg.seed, i, "rl2", [0])
            tasks = balanced_tasks(env, cfg.seed, i, cfg.N)
            env.set_task(tasks)
            trials = rl2.play(env, policy, rng, **cfg.trial)
            rl2.learn(policy, optimizer, trials, rng, **cfg.ppo)
            env_steps += trials.steps
            for task in {str(t): t for t in tasks}.values():
                returns = trials.episode_return[:, [t == task for t in tasks]].mean(1).tolist()
                seconds = time.monotonic() - start
                writer.writerow([i, task, env_steps, f"{seconds:.2f}", *(f"{x:.6g}" for x in returns)])
            file.flush()
    state = {"policy": {name: x.cpu() for name, x in policy.state_dict().items()}, "iteration": cfg.iterations}
    state |= {"env_steps": env_steps, "seconds": time.monotonic() - start, "run_id": ""}
    checkpoint.save({"format": checkpoint.FORMAT, "config": cfg.as_dict(), **state}, folder / "checkpoint.pt")
    print(f"{env_steps:,} env steps in {state['seconds']:.0f} s; see {folder}", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
