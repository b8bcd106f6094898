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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mlsh import checkpoint
from mlsh.config import EvaluationConfig
from mlsh.errors import UserError, run_command
from mlsh.evaluation import evaluate
from mlsh.logger import curve, read_metrics
from mlsh.plots import draw_bands, interquartile_mean, interval

CODE = Path(__file__).parent
RUNS = CODE / "runs" / "bandits"
ASSETS = CODE.parent / "assets"
SEEDS = range(5)
CHOOSING = 100  # the seed for choosing learning rates, reported nowhere
SOLVED = 0.95 * 43.80  # of the best possible return

# Four groups in place of eight, so that many runs fit into two hours
SMALL = "train.py --groups 4 --record 0 --wandb disabled"
ROLLOUT = 4 * 40 * 50  # env steps


def budget(W, U, steps):
    """Flags that learn from about `steps` env steps, and let exploration fade over two thirds of them."""
    tasks = max(1, round(steps / ((W + U) * ROLLOUT)))
    return f"-W {W} -U {U} --tasks {tasks} --fade {max(1, 2 * tasks // 3)}"


METHODS = {  # 5 M env steps each; without a warm-up all iterations are joint, as many a task
    "MLSH": f"{SMALL} {budget(20, 1, 5e6)} --llr",
    "no warm-up": f"{SMALL} {budget(0, 21, 5e6)} --llr",
    "timescale 1": f"{SMALL} {budget(20, 1, 5e6)} --high_len 1 --llr",
    "shared policy": f"{SMALL} {budget(0, 21, 5e6)} --num_low 1 --llr",
    "RL2": "train_rl2.py --iterations 250 --lr",
}
RATES = (5e-4, 1.5e-3, 4e-3)
FULL = "train.py --record 0 --wandb disabled"
SWEEP = list(itertools.product((1, 2, 4), (0, 5, 20, 60)))  # sub-policies, warm-up
FIXED = {  # name of a run, without the seed -> command, number of seeds
    "full": (FULL, 5),
    "shared-full": (f"{FULL} --num_low 1 -W 0 -U 61", 5),
    "scratch": (f"{FULL} --num_low 0 -W 1 -U 0 --tasks 1", 1),
    "four-goals": (f"{FULL} --env MovementBandits4-v0", 3),
    **{f"sweep-{K}-{W}": (f"{SMALL} --num_low {K} {budget(W, 1, 3e6)}", 3) for K, W in SWEEP},
}


def run(job):
    """Start, continue or skip the run `job` (name, command); one thread, as several run side by side."""
    name, command = job
    folder = RUNS / name
    script, *flags = command.split()
    finished = folder / ("results.json" if script == "train.py" else "checkpoint.pt")
    if finished.exists():
        return
    if (folder / "checkpoint.pt").exists():
        flags = ["-c"]
    elif folder.exists():
        shutil.rmtree(folder)
    print(f"{name}: {command}", flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, script, *flags, "--out", folder]
    done = subprocess.run(
        words, cwd=CODE, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise UserError(f"{name} failed: {done.stderr.strip()[-300:]}")


def run_all(jobs):
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run, jobs))


def named(method, rate, seed):
    return f"{method}-{rate:g}-{seed}".replace(" ", "-")


def training_curve(method, rate, seed):
    """Env steps (millions) [n] and returns [2, n] of the tasks, after the joint iterations of each outer one."""
    rows = read_metrics(RUNS / named(method, rate, seed))
    reward = "joint_reward" if "joint_reward" in rows[0] else [x for x in rows[0] if x.startswith("episode_")][-1]
    curves = [curve(rows, task, reward) for task in ("0", "1")]
    return curves[0][0], np.array([y for _, y in curves])


def last_tenth(returns):
    return returns[..., -max(1, returns.shape[-1] // 10) :].mean(-1)


def best_rate(method):
    return max(RATES, key=lambda rate: last_tenth(training_curve(method, rate, CHOOSING)[1]).mean())


def table(header, rows):
    print(f"\n| {' | '.join(map(str, header))} |\n{'|--' * len(header)}|")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")


def with_interval(values, digits=1):
    middle, low, high = (float(x) for x in interval(np.asarray(values, float)))
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def learning_curves(rates):
    """Figure and table: training over the distribution of tasks."""
    panels = {"both tasks": {}, "the worse task": {}}
    ends = []
    for method, rate in rates.items():
        curves = [training_curve(method, rate, seed) for seed in SEEDS]
        steps, returns = curves[0][0], np.array([y for _, y in curves])  # [seeds, 2, n]
        panels["both tasks"][method] = steps, returns.mean(1).T
        panels["the worse task"][method] = steps, returns.min(1).T
        last = last_tenth(returns)
        cells = [with_interval(x) for x in (last.mean(1), last.max(1), last.min(1))]
        ends.append([method, f"{rate:g}", *cells, f"{steps[-1]:.1f} M"])
    draw_bands(ASSETS / "bandits-training.png", panels, "million env steps")
    table(["method", "learning rate", "both tasks", "better task", "worse task", "env steps"], ends)


# Learning one task: the runs, the env steps a master gets, and what it may choose from (episodes, learning rate)
ADAPTATION = {
    "MLSH, new master": ("full", 6_000, list(itertools.product((2, 5, 10), (3e-3, 1e-2, 3e-2)))),
    "shared policy, fine-tuned": ("shared-full", 75_000, list(itertools.product((5, 10, 20), (3e-4, 1e-3, 3e-3)))),
    "PPO from scratch": ("scratch", 75_000, list(itertools.product((5, 10, 20), (3e-4, 1e-3, 3e-3)))),
}


def adapt(name, steps, choice, first, seeds):
    """Env steps [n] and returns [n, tasks, runs], of each training run the mean of `seeds` masters."""
    N, rate = choice
    of_run = []
    for seed in SEEDS:
        path = RUNS / (f"{name}-{seed}" if name in FIXED and FIXED[name][1] > 1 else f"{name}-0")
        ev = EvaluationConfig(updates=steps // (N * 50), seeds=seeds, seed=first + seed, look=50, N=N, hlr=rate, bs=64)
        key = f"{path.name}-{checkpoint.load(path)['run_id']}-{N}-{rate:g}-{ev.seed}-{seeds}-{ev.updates}"
        cache = RUNS / f"adaptation-{key}.npz"
        if not cache.exists():
            env_steps, returns, _ = evaluate(path, ev)
            with open(f"{cache}.tmp", "wb") as file:
                np.savez(file, env_steps=env_steps, returns=returns.mean(2))
            os.replace(f"{cache}.tmp", cache)
        saved = np.load(cache)
        of_run.append(saved["returns"])
    return saved["env_steps"], np.stack(of_run, 2)


def quality(name, steps, choice):
    """Area under the curves of masters with seeds for choosing; every choice gets the same env steps."""
    env_steps, returns = adapt(name, steps, choice, first=1000, seeds=1)
    return np.trapezoid(returns.mean((1, 2)), env_steps) / env_steps[-1]


def solved(env_steps, returns):
    """The first env steps at which a curve [n] is at 95 % of the best possible return; infinite if it never is."""
    good = returns >= SOLVED
    return env_steps[good.argmax()] if good.any() else np.inf


def adaptation():
    """Figure and table: learning one task anew."""
    panels, rows = {"task 0": {}, "task 1": {}}, []
    for label, (name, steps, choices) in ADAPTATION.items():
        N, rate = best = max(choices, key=functools.partial(quality, name, steps))
        env_steps, returns = adapt(name, steps, best, first=0, seeds=2)
        for j in (0, 1):
            panels[f"task {j}"][label] = env_steps, returns[:, j]
            needed = np.array([solved(env_steps, returns[:, j, run]) for run in SEEDS])
            reached = needed[np.isfinite(needed)]
            cells = [with_interval(reached, 0) if len(reached) else "", f"{len(reached)} of {len(needed)}"]
            cells += [with_interval(returns[0, j]), with_interval(last_tenth(returns[:, j].T))]
            rows.append([label, f"{N} episodes, {rate:g}", j, *cells])
    draw_bands(ASSETS / "bandits-adaptation.png", panels, "env steps on the task", symlog=100)
    table(["method", "setting", "task", f"env steps to {SOLVED:.1f}", "reached by", "before", "in the end"], rows)


def sweep():
    """Figure and table: number of sub-policies by warm-up, the worse task's return of a master after 20 updates."""
    worse = {}
    for K, W in SWEEP:
        ends = []
        for seed in range(3):
            ev = EvaluationConfig(updates=20, seeds=1, seed=seed, look=200)
            ends.append(evaluate(RUNS / f"sweep-{K}-{W}-{seed}", ev)[1][-1].min())
        worse[K, W] = ends
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
        results = json.loads((RUNS / f"four-goals-{seed}" / "results.json").read_text())
        returns = [row["return"] for row in results["test"]]
        rows.append(
            [seed, *(f"{x:.1f}" for x in returns), f"{min(returns):.1f}", f"{results['env_steps'] / 1e6:.1f} M"]
        )
    table(["seed", *(f"goal {g}" for g in range(4)), "worst", "env steps"], rows)


def main():
    RUNS.mkdir(parents=True, exist_ok=True)
    jobs = [(named(m, rate, CHOOSING), f"{c} {rate} --seed {CHOOSING}") for m, c in METHODS.items() for rate in RATES]
    run_all(jobs)
    rates = {method: best_rate(method) for method in METHODS}
    jobs = [(named(m, rates[m], s), f"{c} {rates[m]} --seed {s}") for m, c in METHODS.items() for s in SEEDS]
    jobs += [(f"{name}-{s}", f"{command} --seed {s}") for name, (command, n) in FIXED.items() for s in range(n)]
    run_all(jobs)
    learning_curves(rates)
    adaptation()
    sweep()
    four_goals()


if __name__ == "__main__":
    run_command(main)
