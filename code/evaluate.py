"""How fast a new task is learned, the sub-policies frozen: python evaluate.py --help"""

import csv
import dataclasses
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from mlsh import checkpoint, rl2
from mlsh.adapt import as_flat, learn, with_new_masters
from mlsh.config import Config, RL2Config, flag_of
from mlsh.envs import find_task, make_env
from mlsh.errors import UserError, run_command
from mlsh.plots import draw_bands
from mlsh.rollout import streams

SHOWN = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # updates in the table


@dataclass
class Args:
    """Learn each task anew with what a run has learned, and write the return after every update.

    MLSH trains a fresh master over frozen sub-policies; a shared policy (--num_low 1) is fine-tuned; a run without
    sub-policies (--num_low 0) is PPO from scratch; an RL² policy just plays on. Writes adaptation.csv and
    adaptation.png.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders or checkpoints, a line each in the figure."""
    env: str = ""
    """Another environment than the runs' own, with the same spaces (transfer)."""
    tasks: tuple[str, ...] = ()
    """Tasks: numbers in a finite family, else JSON. Default: all, or a sample of --sample."""
    sample: int = 10
    """Tasks drawn from a continuous family."""
    updates: int = 20
    """PPO updates of each master."""
    seeds: int = 10
    """Masters a task, each with its own randomness."""
    seed: int = 0
    """Seed of everything random."""
    N: Annotated[int, tyro.conf.arg(aliases=["-N"])] = 0
    """Episodes a rollout; 0 for the run's."""
    hlr: float = 0.0
    """Learning rate; 0 for the run's."""
    bs: int = 0
    """Minibatch of a master, in decisions; 0 for the run's."""
    device: str = "cpu"
    """Torch device."""
    sim_threads: int = 0
    """Threads that simulate, in MuJoCo's families; 0 for all cores."""
    out: str = ""
    """Folder for the files; default: the first run's."""


def test_tasks(env, args):
    """The tasks of --tasks, or all of a finite family, or a sample; and a label for each."""
    tasks = [find_task(env, text, "--tasks") for text in args.tasks] or env.train_tasks
    if tasks is None:
        tasks = [env.sample_task(rng) for rng in streams(args.seed, 0, "evaluate: task", range(args.sample))]
    return tasks, [f"task {task} ({env.task_label(task)})" for task in tasks]


def learn_anew(data, cfg, args):
    """Env steps [updates + 1] that a master has taken, its return [updates + 1, tasks, seeds], the tasks' labels."""
    env = make_env(cfg, 1)
    tasks, labels = test_tasks(env, args)
    agent = checkpoint.agent_of(data | {"config": cfg}, env)
    env.close()
    blocks = [task for task in tasks for _ in range(args.seeds)]
    if cfg.num_low == 1:
        agent, cfg = as_flat(agent, cfg, len(blocks))
    else:
        agent = with_new_masters(agent, len(blocks), cfg.seed)
    cfg = dataclasses.replace(cfg, **{k: v for k in ("N", "hlr", "bs") if (v := getattr(args, k))})
    cfg.validate()
    env = make_env(cfg, cfg.N * len(blocks))
    returns, steps = [], [0.0]
    for rollout in learn(agent, env, blocks, cfg, args.updates + 1):  # the last update is for nothing
        returns.append(rollout.episode_return.mean(1).view(len(tasks), args.seeds).numpy(force=True))
        steps.append(steps[-1] + rollout.steps / len(blocks))
    env.close()
    return np.array(steps[:-1]), np.stack(returns), labels


def play_on(data, cfg, args):
    """The same of an RL² policy, an episode in place of an update; each seed is the mean of --N trials (default 10)."""
    env = make_env(cfg, 1)
    tasks, labels = test_tasks(env, args)
    policy = rl2.build(cfg, env)
    policy.load_state_dict(data["policy"])
    env.close()
    N = args.N or 10
    env = make_env(cfg, len(tasks) * args.seeds * N)
    env.set_task(tasks)
    (rng,) = streams(args.seed, 0, "evaluate: rl2", [0])
    trials = rl2.play(policy, env, rng, **cfg.trial)
    env.close()
    returns = trials.episode_return.view(cfg.episodes, len(tasks), args.seeds, N).mean(-1).numpy(force=True)
    return np.arange(cfg.episodes) * trials.steps / (env.num_envs * cfg.episodes), returns, labels


def evaluate(run, args):
    """Env steps [n], returns [n, tasks, seeds] and the tasks' labels for one run folder or checkpoint."""
    data = checkpoint.load(run, kinds=(Config, RL2Config))
    cfg = dataclasses.replace(data["config"], seed=args.seed, device=args.device, sim_threads=args.sim_threads)
    cfg.env = args.env or cfg.env
    cfg.validate()
    return (learn_anew if isinstance(cfg, Config) else play_on)(data, cfg, args)


def steps_to(part, steps, returns):
    """The first env steps at which the seeds' mean return is as good as `part` of its last value says.

    "95 % of −0.1" is −0.105: what is missing is measured by the size of the last value.
    """
    mean = returns.mean(1)
    return steps[(mean >= mean[-1] - (1 - part) * abs(mean[-1])).argmax()]


def print_table(results):
    """A row a run and task: returns after some updates, env steps to 90 % and 95 % of the last one, mean over all."""
    shown = [n for n in SHOWN if n < max(len(steps) for steps, *_ in results.values())]
    rows = [["run", "task", *(f"after {n}" for n in shown), "to 90 %", "to 95 %", "area"]]
    for name, (steps, returns, labels) in results.items():
        for j, label in enumerate(labels):
            mean = returns[:, j].mean(1)
            cells = [f"{mean[n]:.4g}" if n < len(mean) else "" for n in shown]
            cells += [f"{steps_to(part, steps, returns[:, j]):,.0f}" for part in (0.9, 0.95)] + [f"{mean.mean():.4g}"]
            rows.append([name, label, *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(
                cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
        )


def main():
    args = tyro.cli(Args, use_underscores=True)
    for name, least in (("updates", 0), ("seeds", 1), ("seed", 0), ("sample", 1), ("N", 0), ("bs", 0)):
        if getattr(args, name) < least:
            raise UserError(f"{flag_of(name)} is {getattr(args, name)}: use {least} or more")
    if not args.runs:
        raise UserError("name a run folder or a checkpoint")
    first = args.runs[0]
    out = Path(args.out or (first if first.is_dir() else first.parent))
    results = {run.stem if run.is_file() else run.name: evaluate(run, args) for run in args.runs}
    print_table(results)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {out} ({error.strerror}); name another with --out") from None
    write(results, out)


def write(results, out):
    """Write adaptation.csv and adaptation.png of `results` (name -> what `evaluate` gave) to the folder `out`."""
    panels = defaultdict(dict)
    try:
        with open(out / "adaptation.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["run", "task", "seed", "update", "env_steps", "return"])
            for name, (steps, returns, labels) in results.items():
                for j, label in enumerate(labels):
                    panels[label][name] = steps, returns[:, j]
                    for (n, seed), x in np.ndenumerate(returns[:, j]):
                        writer.writerow([name, label, seed, n, f"{steps[n]:.0f}", f"{x:.6g}"])
        draw_bands(out / "adaptation.png", panels, "env steps on the new task")
    except OSError as error:
        raise UserError(f"cannot write to {out} ({error.strerror}); name another folder with --out") from None


if __name__ == "__main__":
    run_command(main)
