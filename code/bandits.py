"""The paper's 2D-bandits study from nothing: python bandits.py. Stop it at will; what is finished is not run again.

Runs go to runs/bandits, as many at a time as there are cores; figures to assets, tables to the screen.
"""

import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mlsh.config import EvaluationConfig
from mlsh.errors import run_command
from mlsh.evaluation import evaluate
from mlsh.logger import curve, read_metrics
from mlsh.plots import draw_bands, interquartile_mean, interval

RUNS = Path("runs/bandits")
ASSETS = Path(__file__).parent.parent / "assets"
SEEDS = range(5)
OUTER = 4 * 40 * 50  # env steps of a rollout of four groups
# Small enough for many runs: four groups in place of eight, a shorter warm-up
COMMON = "--groups 4 --record 0 --wandb disabled --llr 1.5e-3"


def budget(W, U, steps):
    """Flags that spend about `steps` env steps, and let exploration fade over two thirds of them."""
    tasks = max(1, round(steps / ((W + U + 3) * OUTER)))
    return f"-W {W} -U {U} --tasks {tasks} --fade {max(1, 2 * tasks // 3)}"


METHODS = {  # of which each is trained for 5 M env steps
    "MLSH": budget(20, 1, 5e6),
    "no warm-up": budget(0, 21, 5e6),  # as many iterations a task, all of them joint
    "timescale 1": budget(20, 1, 5e6) + " --high_len 1",
    "shared policy": budget(0, 21, 5e6) + " --num_low 1",
}
SWEEP = list(itertools.product((1, 2, 4), (0, 5, 20, 60)))  # sub-policies, warm-up


def jobs():
    """Name -> script and flags, of every run."""
    for method, flags in METHODS.items():
        for seed in SEEDS:
            yield f"{method}-{seed}".replace(" ", "-"), f"train.py {COMMON} {flags} --seed {seed}"
    for seed in SEEDS:
        yield f"RL2-{seed}", f"train_rl2.py --iterations 250 --seed {seed}"
        yield f"full-{seed}", f"train.py --record 0 --wandb disabled --seed {seed}"
    for K, W in SWEEP:
        for seed in range(3):
            yield f"sweep-{K}-{W}-{seed}", f"train.py {COMMON} --num_low {K} {budget(W, 1, 3e6)} --seed {seed}"
    yield "scratch-0", "train.py --num_low 0 -W 1 -U 0 --tasks 1 --record 0 --wandb disabled"
    for seed in range(3):
        flags = "--env MovementBandits4-v0 --record 0 --wandb disabled"
        yield f"four-goals-{seed}", f"train.py {flags} --seed {seed}"


def run(name, command):
    """Start, continue or skip a run; one thread each, as they run side by side."""
    folder = RUNS / name
    script, *flags = command.split()
    if script == "train.py":
        if (folder / "results.json").exists():
            return
        if (folder / "checkpoint.pt").exists():
            flags = ["-c"]
    elif (folder / "checkpoint.pt").exists():
        return
    elif folder.exists():
        shutil.rmtree(folder)  # RL² begins again
    print(f"{name}: {command}", flush=True)
    done = subprocess.run(
        [sys.executable, script, *flags, "--out", folder],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr.splitlines()[-1]}")


def results(name):
    return json.loads((RUNS / name / "results.json").read_text())


def table(header, rows):
    print(f"\n| {' | '.join(header)} |\n{'|--' * len(header)}|")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")


def with_interval(values, digits=1):
    middle, low, high = (float(x) for x in interval(np.asarray(values, float)))
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def rl2_curve(rows, task):
    """Env steps and the return in the last episode of the trials on `task` (None: on any)."""
    last = [name for name in rows[0] if name.startswith("episode_")][-1]
    values, steps = defaultdict(list), {}
    for row in rows:
        if task in (None, row["task"]):
            values[row["iteration"]].append(float(row[last]))
            steps[row["iteration"]] = int(row["env_steps"]) / 1e6
    return list(steps.values()), [np.mean(x) for x in values.values()]


def learning_curves():
    """Figure and table: training over the distribution of tasks."""
    panels = {"both tasks": {}, "the worse task": {}}
    ends = []
    for method in (*METHODS, "RL2"):
        of_seed = []
        for seed in SEEDS:
            rows = read_metrics(RUNS / f"{method}-{seed}".replace(" ", "-"))
            draw = rl2_curve if method == "RL2" else lambda rows, task: curve(rows, task, "trained_reward")
            of_seed.append([draw(rows, task) for task in ("0", "1")])
        steps = of_seed[0][0][0]
        returns = np.array([[y for _, y in tasks] for tasks in of_seed])  # [seeds, 2, n]
        panels["both tasks"][method] = steps, returns.mean(1).T
        panels["the worse task"][method] = steps, returns.min(1).T
        last = returns[:, :, -max(1, returns.shape[2] // 10) :].mean(2)  # of the last tenth
        better, worse = last.max(1), last.min(1)
        ends.append(
            [method, with_interval(last.mean(1)), with_interval(better), with_interval(worse), f"{steps[-1]:.1f} M"]
        )
    draw_bands(ASSETS / "bandits-training.png", panels, "million env steps")
    table(["method", "both tasks", "better task", "worse task", "env steps"], ends)


# run, and what it may choose from: episodes a rollout, learning rate, minibatch, updates
ADAPTATION = {
    "MLSH, new master": ("full", [(2, 1e-2, 64), (2, 3e-2, 64), (5, 1e-2, 64), (10, 1e-2, 64)], 30),
    "shared policy, fine-tuned": (
        "shared-policy",
        [(N, lr, 64) for N in (5, 10, 20) for lr in (3e-4, 1e-3, 3e-3)],
        100,
    ),
    "PPO from scratch": ("scratch", [(N, lr, 64) for N in (5, 10, 20) for lr in (3e-4, 1e-3, 3e-3)], 150),
}


def stays(steps, returns):
    """Env steps after which a curve [n] reaches 95 % of its end, the mean of its last tenth, for the first time."""
    end = returns[-max(1, len(returns) // 10) :].mean()
    return steps[(returns >= 0.95 * end).argmax()], end


def adapt(name, choice, updates, seeds, first):
    """Env steps [n] and returns [n, tasks, seeds] of `seeds` masters, spread over the training seeds."""
    N, lr, bs = choice
    parts = []
    runs = [f"{name}-{seed}" for seed in SEEDS] if name != "scratch" else ["scratch-0"]
    for i, trained in enumerate(runs):
        ev = EvaluationConfig(updates=updates, seeds=seeds // len(runs), seed=first + i, look=50, N=N, hlr=lr, bs=bs)
        cache = RUNS / f"adaptation-{trained}-{N}-{lr}-{bs}-{ev.seed}-{ev.seeds}-{updates}.npz"
        if not cache.exists():
            steps, returns, _ = evaluate(RUNS / trained, ev)
            with open(f"{cache}.tmp", "wb") as file:
                np.savez(file, steps=steps, returns=returns)
            os.replace(f"{cache}.tmp", cache)
        saved = np.load(cache)
        parts.append(saved["returns"])
    return saved["steps"], np.concatenate(parts, 2)


def slowness(name, updates, choice):
    """Mean env steps that a setting takes, on seeds for choosing."""
    steps, returns = adapt(name, choice, updates, 5, first=1000)
    return np.mean([stays(steps, returns[:, j, s])[0] for j in (0, 1) for s in range(5)])


def adaptation():
    """Figure and table: learning one task. The best setting is chosen on other seeds than it is reported for."""
    panels, rows = {"task 0": {}, "task 1": {}}, []
    for label, (name, grid, updates) in ADAPTATION.items():
        best = min(grid, key=functools.partial(slowness, name, updates))
        steps, returns = adapt(name, best, updates, 10, first=0)
        for j in (0, 1):
            panels[f"task {j}"][label] = steps, returns[:, j]
        needed, end = np.array([stays(steps, returns[:, j, s]) for j in (0, 1) for s in range(10)]).T
        setting = f"N {best[0]}, lr {best[1]:g}"
        rows.append([label, setting, with_interval(needed, 0), with_interval(end), with_interval(returns[0].ravel())])
    draw_bands(ASSETS / "bandits-adaptation.png", panels, "env steps on the task", symlog=100)
    table(["method", "setting", "env steps to 95 %", "return in the end", "return before"], rows)


def sweep():
    """Figure and table: number of sub-policies by length of warm-up, the return on the worse task."""
    worse = {
        cell: [min(row["return"] for row in results(f"sweep-{cell[0]}-{cell[1]}-{seed}")["test"]) for seed in range(3)]
        for cell in SWEEP
    }
    subs, warm_ups = ([*dict.fromkeys(cell[k] for cell in SWEEP)] for k in (0, 1))
    mean = np.array([[interquartile_mean(worse[K, W]) for W in warm_ups] for K in subs])
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(mean, vmin=0, vmax=43.8, origin="lower", aspect="auto")
    for (i, j), x in np.ndenumerate(mean):
        axes.text(j, i, f"{x:.1f}", ha="center", va="center", color="w" if x < 25 else "k")
    axes.set(xticks=range(len(warm_ups)), xticklabels=warm_ups, yticks=range(len(subs)), yticklabels=subs)
    axes.set(xlabel="warm-up iterations W", ylabel="sub-policies", title="return on the worse task")
    figure.colorbar(image)
    figure.savefig(ASSETS / "bandits-sweep.png", dpi=110)
    header = ["sub-policies", *(f"W {W}" for W in warm_ups)]
    table(header, [[K, *(" / ".join(f"{x:.1f}" for x in worse[K, W]) for W in warm_ups)] for K in subs])


def four_goals():
    """Table: MovementBandits4, four sub-policies."""
    rows = []
    for seed in range(3):
        run = results(f"four-goals-{seed}")
        returns = [row["return"] for row in run["test"]]
        rows.append([seed, *(f"{x:.1f}" for x in returns), f"{min(returns):.1f}", f"{run['env_steps'] / 1e6:.1f} M"])
    table(["seed", *(f"goal {g}" for g in range(4)), "worst", "env steps"], rows)


def main():
    RUNS.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda job: run(*job), jobs()))
    learning_curves()
    adaptation()
    sweep()
    four_goals()


if __name__ == "__main__":
    run_command(main)
