"""How fast a new task is learned, the sub-policies frozen: python evaluate.py --help"""

import csv
import dataclasses
import io
from collections import defaultdict
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from tabulate import tabulate

from mlsh.baselines import option_critic as option_critic  # it registers itself in LEARNERS, as every method
from mlsh.baselines import rl2 as rl2
from mlsh.envs import make_env
from mlsh.errors import UserError, run_command
from mlsh.meta_test import LEARNERS, transferred
from mlsh.runs import checkpoint
from mlsh.runs.files import make_folder, write_whole, writing
from mlsh.runs.plots import draw_bands, steps_to_fraction
from mlsh.sampling import Streams, distinct, drawn_tasks, find_task
from mlsh.settings import Count, CountOrNone, NotNegative, Settings, cli, short

COLUMNS = """Columns of the table, of mean returns over the seeds:
    after n             return after n updates of the master
    to 90 %, to 95 %    env steps on the task until it is that part of the last (of -0.1, 95 % is -0.105)
    area                mean over the env steps

Columns of adaptation.csv, a row a run, task, seed and update:
    env_steps           that the master has had on the task by then
    return              mean of its episodes after them
    best_return         the best possible of the task, where it is known
    final_…             with --eval_episodes, of MLSH and option-critic: means of what the info of their last step reports, which
                        the table has after the last update"""
SHOWN = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # updates in the table


@dataclass
class Args(Settings):
    """Learn each task anew with what runs have learned, and write the return after every update.

    MLSH trains a fresh master over frozen sub-policies; a shared policy (--num_sub_policies 1) is fine-tuned; a run without
    sub-policies (--num_sub_policies 0) is PPO from scratch; an RL² policy just plays on, an episode in place of an update
    (--updates, --master_lr, --master_minibatch and --eval_episodes are not for it). Option-critic and actor-critic go on learning, whatever their
    tasks --shared; an update is a rollout, they learn within it, and --master_lr is the rate of their values.
    Prints a table, and writes adaptation.csv and adaptation.png.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Run folders or checkpoints, a line each in the figure."""
    out: str = ""
    """Folder for the files; default: the first run's. There must be no adaptation.csv in it."""
    env: str = ""
    """Another environment than the run's own, with the same spaces (transfer), played with its preset's -T and
    --high_len, if it has them; so is the run's own, if it is named."""
    tasks: tuple[str, ...] = ()
    """Tasks: numbers in a finite family, else JSON. Default: all, or a sample of --sample."""
    held_out: bool = False
    """In place of all: the tasks that the environment holds out of training."""
    sample: Count = 10
    """Tasks drawn from a continuous family; equal ones are learned once."""
    updates: CountOrNone = 20
    """PPO updates of each master."""
    seeds: Count = 10
    """Masters a task, each with its own randomness."""
    seed: CountOrNone = 0
    """Seed of everything random."""
    look: CountOrNone = 0
    """Episodes that measure each master after every update and count as no env steps; 0: those it learns from."""
    N: Annotated[CountOrNone, short("-N")] = 0
    """Episodes a rollout; 0 for the run's (of RL²: trials a seed, 10)."""
    T: Annotated[CountOrNone, short("-T")] = 0
    """Env steps of an episode; 0 for the run's, or those of --env."""
    master_lr: NotNegative = 0.0
    """Learning rate; 0 for the run's."""
    master_minibatch: CountOrNone = 0
    """Minibatch of a master, in decisions; 0 for the run's."""
    copies: Count = 64
    """Copies of an environment that is stepped one by one, but not fewer than a master's -N; with other parts PPO from
    scratch and RL² draw other random numbers."""
    device: str = "cpu"
    """Torch device."""
    sim_threads: CountOrNone = 0
    """Threads that simulate, in MuJoCo's families; 0 for all cores."""


def evaluate(run, args):
    """Learn the tasks anew from a run folder or checkpoint.

    Returns env steps [n] on a task, measures [n, tasks, seeds] by name from the untrained on, the tasks' labels, and
    the best possible return of each, or "" where it is not known.
    """
    data = checkpoint.load(run, LEARNERS)
    cfg = dataclasses.replace(data["config"], **args.only("seed", "device", "sim_threads", "copies"))
    cfg = transferred(cfg, args.env)
    cfg.T = args.T or cfg.T
    env = make_env(cfg, 1)
    family = env.test_tasks if args.held_out else env.train_tasks
    tasks = distinct(find_task(env, text, "--tasks") for text in args.tasks) or family
    if tasks is None:
        tasks = drawn_tasks(env, Streams(args.seed, range(args.sample))(0, "evaluate: task"), args.held_out)
    if not tasks:
        raise UserError(f"--held_out: {cfg.env} holds no tasks out; give it test_tasks, or sample_test_task(rng)")
    labels, optimal = [f"task {task} ({env.task_label(task)})" for task in tasks], env.optimal_returns(cfg.T)
    best = [optimal[task] if optimal else "" for task in tasks]
    return *LEARNERS[type(cfg)](data, cfg, env, tasks, args), labels, best


def print_table(results):
    """A row a run and task: returns after some updates, env steps to 90 % and 95 % of the last, mean over env steps.

    And what that means.
    """
    last = max(len(steps) for steps, *_ in results.values()) - 1
    shown = sorted({last, *(n for n in SHOWN if n < last)})
    rows, finals = [], final_names(results)
    for name, (steps, measured, labels, _) in results.items():
        returns = measured["return"]
        for j, label in enumerate(labels):
            mean = returns[:, j].mean(1)
            cells = [f"{mean[n]:.4g}" if n < len(mean) else "" for n in shown]
            cells += [f"{steps_to_fraction(part, steps, returns[:, j]):,.0f}" for part in (0.9, 0.95)]
            cells.append(f"{np.trapezoid(mean, steps) / steps[-1]:.4g}" if steps[-1] else "")
            cells += [f"{measured[x][-1, j].mean():.4g}" if x in measured else "" for x in finals]
            rows.append([name, label, *cells])
    headers = ["run", "task", *(f"after {n}" for n in shown), "to 90 %", "to 95 %", "area", *finals]
    align = ["left", "left", *["right"] * (len(headers) - 2)]
    print(tabulate(rows, headers, "plain", disable_numparse=True, colalign=align))
    print(f"\n{COLUMNS}")


def final_names(results):
    """Of what there is beside returns."""
    return [x for x in dict.fromkeys(x for _, measured, *_ in results.values() for x in measured) if x != "return"]


def write(results, out):
    """Write adaptation.csv and adaptation.png of `results` (name -> what `evaluate` gave) to the folder `out`."""
    panels, text = defaultdict(dict), io.StringIO(newline="")
    writer = csv.writer(text)
    finals = final_names(results)
    writer.writerow(["run", "task", "seed", "update", "env_steps", "return", "best_return", *finals])
    for name, (steps, measured, labels, best) in results.items():
        for j, label in enumerate(labels):
            panels[label][name] = steps, measured["return"][:, j]
            for n, seed in np.ndindex(len(steps), measured["return"].shape[2]):
                x, *more = (f"{measured[k][n, j, seed]:.6g}" if k in measured else "" for k in ("return", *finals))
                writer.writerow([name, label, seed, n, f"{steps[n]:.0f}", x, best[j], *more])
    with writing(out):
        draw_bands(out / "adaptation.png", panels, "env steps on the new task")
    write_whole(out / "adaptation.csv", text.getvalue())


def main():
    args = cli(Args, description=f"{cleandoc(Args.__doc__)}\n\n{COLUMNS}")
    args.validate()
    if not args.runs:
        raise UserError("name a run folder or a checkpoint")
    for run in args.runs:
        checkpoint.load(run, LEARNERS)  # what is none is refused before anything is written
    runs = [run.resolve() for run in args.runs]
    runs = [run.parent if run.name == "checkpoint.pt" else run for run in runs]
    names = [run.stem if run.is_file() else run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    if len(set(names)) < len(names):
        raise UserError("a run is named twice; name each once")
    out = Path(args.out or (runs[0].parent if runs[0].is_file() else runs[0]))
    if (out / "adaptation.csv").exists():
        raise UserError(f"{out} has an adaptation.csv already; name another folder with --out, or move it away")
    make_folder(out)
    results = {name: evaluate(run, args) for name, run in zip(names, runs, strict=True)}
    print_table(results)
    write(results, out)


if __name__ == "__main__":
    run_command(main)
