"""The paper's 2D-bandits study from nothing: python bandits.py. Stop it at will; what is finished is not run again.

Runs go to runs/bandits, as many at a time as there are cores; figures to assets, tables to the screen.
"""

import csv
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

from mlsh.errors import UserError, run_command
from mlsh.logger import curve, read_metrics
from mlsh.plots import draw_bands, interval

CODE = Path(__file__).parent
RUNS = CODE / "runs" / "bandits"
ASSETS = CODE.parent / "assets"
SEEDS = range(5)
CHOOSING = 100  # the seed for choosing learning rates, reported nowhere
CHOOSING_MASTERS = range(100, 105)  # seeds of the sub-policies for choosing how MLSH's masters learn
BEST = 43.80  # the best possible return
SOLVED, LEARNED = 0.95 * BEST, 0.9 * BEST

# Four groups in place of eight, so that many runs fit into two hours
SMALL = "train.py --groups 4 --record 0 --wandb disabled"
ROLLOUT = 4 * 40 * 50  # env steps


def budget(W, U, steps):
    """Flags that learn from about `steps` env steps, and let exploration fade over two thirds of them."""
    tasks = max(1, round(steps / ((W + U) * ROLLOUT)))
    return f"-W {W} -U {U} --tasks {tasks} --fade {max(1, 2 * tasks // 3)}"


# 5 M env steps to learn from; without a warm-up all iterations are joint, as many a task, each with half the updates
METHODS = {
    "MLSH": f"{SMALL} {budget(20, 1, 5e6)} --llr",
    "no warm-up": f"{SMALL} {budget(0, 21, 5e6)} --parts_low 15 --llr",
    "timescale 1": f"{SMALL} {budget(20, 1, 5e6)} --high_len 1 --bs 500 --llr",
    "shared policy": f"{SMALL} {budget(0, 21, 5e6)} --num_low 1 --parts_low 15 --llr",
    "RL2": "train_rl2.py --iterations 250 --lr",
}
HIERARCHIES = ("MLSH", "no warm-up", "timescale 1")  # MLSH and its ablations share a learning rate, with the sweep
RATES = (5e-4, 1.5e-3, 4e-3, 1e-2)
SWEEP = list(itertools.product((1, 2, 4), (0, 5, 20, 60)))  # sub-policies, warm-up
SCRATCH = "train.py --num_low 0 -W 1 -U 0 --tasks 1 --record 0 --wandb disabled"  # for its Config
FOUR_GOALS = "train.py --env MovementBandits4-v0 --record 0 --wandb disabled"
# Learning one task: env steps, and what to choose from, episodes a rollout and learning rate
MASTER = 6_000, list(itertools.product((1, 2, 5, 10), (1e-3, 3e-3, 1e-2, 3e-2)))
FINE_TUNING = 100_000, list(itertools.product((10,), (3e-4, 1e-3, 3e-3)))
FROM_SCRATCH = 100_000, list(itertools.product((2, 5, 10, 20), (3e-4, 1e-3, 3e-3)))


LAST = {"train.py": "results.json", "train_rl2.py": "checkpoint.pt", "evaluate.py": "adaptation.csv"}  # file written
STARTED = set()  # processes


def run(job):
    """Start, continue or skip the run `job` (name, command); one thread, as several run side by side."""
    name, command = job
    folder, note = RUNS / name, RUNS / f"{name}.command"
    script, *flags = command.split()
    if note.exists() and note.read_text() != command:
        raise UserError(f"{folder} is of another command ({note.read_text()}); remove it and {note}")
    if (folder / LAST[script]).exists():
        return
    if (folder / "checkpoint.pt").exists():
        flags = ["-c"]
    elif folder.exists():
        shutil.rmtree(folder)
    temporary = Path(f"{note}.tmp")
    temporary.write_text(command)
    temporary.replace(note)
    print(f"{name}: {command}\n", end="", flush=True)  # in one piece, beside other threads
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, script, *flags, "--out", folder]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(words, cwd=CODE, env=environment, **pipes)
    STARTED.add(process)
    _, err = process.communicate()
    STARTED.remove(process)
    if process.returncode:
        raise UserError(f"{name} failed: {err.strip()[-300:]}")


def run_all(jobs):
    """Run jobs, as many at a time as there are cores; if this is interrupted, they save and stop."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            list(pool.map(run, jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(STARTED):
                process.terminate()
            raise


def named(method, rate, seed):
    return f"{method}-{rate:g}-{seed}".replace(" ", "-")


def trained(method, rates):
    return [named(method, rates[method], seed) for seed in SEEDS]


def training_curve(name):
    """Env steps learned from (millions) [n] and returns [2, n] of the tasks, at the end of each outer iteration.

    Of RL², in the last episode of a trial.
    """
    rows = read_metrics(RUNS / name)
    reward, part = [x for x in rows[0] if x.startswith("episode_")][-1:], 1.0
    if not reward:
        cfg = json.loads((RUNS / name / "config.json").read_text())["config"]
        rollouts = cfg["W"] + cfg["U"]
        reward, part = ["joint_reward"], rollouts / (rollouts + 3)  # three more only measure
    curves = [curve(rows, task, *reward) for task in ("0", "1")]
    return part * np.array(curves[0][0]), np.array([y for _, y in curves])


def last_tenth(returns):
    return returns[..., -max(1, returns.shape[-1] // 10) :].mean(-1)


def best_rate(*methods):
    """The learning rate with which the methods' runs for choosing end best, on average."""

    def end(rate):
        return sum(last_tenth(training_curve(named(method, rate, CHOOSING))[1]).mean() for method in methods)

    return max(RATES, key=end)


def table(header, rows):
    print(f"\n| {' | '.join(map(str, header))} |\n{'|--' * len(header)}|")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")


def with_interval(values, digits=1):
    middle, low, high = (float(x) for x in interval(np.asarray(values, float)))
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def learning_curves(rates):
    """Figure and table: training over the distribution of tasks. Which task is the worse one is told by the end."""
    panels = {"both tasks": {}, "the worse task": {}}
    ends = []
    for method, rate in rates.items():
        curves = [training_curve(name) for name in trained(method, rates)]
        steps, returns = curves[0][0], np.array([y for _, y in curves])  # [seeds, 2, n]
        last = last_tenth(returns)  # [seeds, 2]
        panels["both tasks"][method] = steps, returns.mean(1).T
        panels["the worse task"][method] = steps, returns[range(len(last)), last.argmin(1)].T
        cells = [with_interval(x) for x in (last.mean(1), last.max(1), last.min(1))]
        both = f"{(last.min(1) >= LEARNED).sum()} of {len(last)}"
        ends.append([method, f"{rate:g}", *cells, both, f"{steps[-1]:.1f} M"])
    draw_bands(ASSETS / "bandits-training.png", panels, "million env steps")
    header = ["method", "learning rate", "both tasks", "better task", "worse task"]
    table([*header, f"worse ≥ {LEARNED:.1f}", "env steps"], ends)


def adaptation_job(run, N, rate, steps, first, seeds):
    """`run`'s sub-policies frozen, `seeds` masters a task from seed `first` on, `steps` env steps each."""
    flags = f"-N {N} --hlr {rate:g} --bs 64 --updates {steps // (N * 50)} --seeds {seeds} --seed {first} --look 50"
    return f"{run}/adapt-{N}-{rate:g}-{first}", f"evaluate.py {os.path.relpath(RUNS / run, CODE)} {flags}"


def read_adaptation(name):
    """Env steps [updates + 1] and returns [updates + 1, tasks, seeds] of an evaluation."""
    with open(RUNS / name / "adaptation.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    shape = [len({row[key] for row in rows}) for key in ("task", "seed", "update")]
    returns = np.array([float(row["return"]) for row in rows])  # a task after the other, then update, then seed
    return np.unique([float(row["env_steps"]) for row in rows]), returns.reshape(shape[0], shape[2], shape[1]).swapaxes(
        0, 1
    )


def solved(env_steps, returns):
    """The env steps at which a curve [n] reaches 95 % of the best possible return; infinite if it never does.

    A mean over five measurements around it has to: one alone is as noisy as its 50 episodes.
    """
    good = np.convolve(np.pad(returns, 2, mode="edge"), np.full(5, 0.2), "valid") >= SOLVED
    return env_steps[good.argmax()] if good.any() else np.inf


def learners(rates):
    """Ways to learn one task: the training runs for choosing, those reported, masters a task of each of these, their
    env steps, and what to choose from."""
    mlsh = [named("MLSH", rates["MLSH"], seed) for seed in CHOOSING_MASTERS]
    shared = [named("shared policy", rates["shared policy"], CHOOSING)]
    return {
        "MLSH, new master": (mlsh, trained("MLSH", rates), 10, *MASTER),
        "shared policy, fine-tuned": (shared, trained("shared policy", rates), 2, *FINE_TUNING),
        "PPO from scratch": (["scratch"], ["scratch"], 10, *FROM_SCRATCH),
    }


def choosing(others, _, __, steps, choices):
    """Setting -> its evaluations, with ten masters of each run, reported nowhere."""
    return {x: [adaptation_job(run, *x, steps, CHOOSING, 10) for run in others] for x in choices}


def area(evaluations):
    """Mean return over env steps, and over the evaluations; all settings get the same env steps."""
    curves = [read_adaptation(name) for name, _ in evaluations]
    return np.mean([np.trapezoid(y.mean((1, 2)), steps) / steps[-1] for steps, y in curves])


def spread(values):
    """Median, lowest and highest; what never happened is more than anything."""
    shown = [f"{x:,.0f}" if np.isfinite(x) else "never" for x in (np.median(values), min(values), max(values))]
    return "{} ({} to {})".format(*shown)


def adaptation(rates):
    """Figure and table: learning one task anew; of each training run apart the task that it did worse in the end.

    The figure has the best setting of each way, the table all learning rates with its rollout size. Curves and
    intervals are of the training runs, a run the mean of its masters; from scratch every master is a run.
    """
    ways = learners(rates)
    trials = {label: choosing(*way) for label, way in ways.items()}
    run_all(job for trial in trials.values() for evaluations in trial.values() for job in evaluations)
    best = {label: max(trial, key=lambda x: area(trial[x])) for label, trial in trials.items()}
    jobs = {
        (label, setting): [adaptation_job(run, *setting, steps, seed, masters) for seed, run in enumerate(runs)]
        for label, (_, runs, masters, steps, choices) in ways.items()
        for setting in choices
        if setting[0] == best[label][0]
    }
    run_all(itertools.chain(*jobs.values()))
    panels, rows, medians = {"the run's worse task": {}, "the run's better task": {}}, [], {}
    for (label, setting), evaluations in jobs.items():
        curves = [read_adaptation(name) for name, _ in evaluations]
        env_steps, runs = curves[0][0], ways[label][1]
        if len(runs) > 1:  # the worse task first
            order = [last_tenth(training_curve(run)[1]).argsort() for run in runs]
            returns = [y[:, tasks] for (_, y), tasks in zip(curves, order, strict=True)]
            of_runs = np.stack([y.mean(2) for y in returns], 2)  # [n, 2, runs]
            returns = np.concatenate(returns, 2)  # [n, 2, masters]
        else:  # from scratch: task 0 first
            of_runs = returns = curves[0][1]
        for j, (title, panel) in enumerate(panels.items()):
            if setting == best[label]:
                panel[label] = env_steps, of_runs[:, j]
            needed = np.array([solved(env_steps, y) for y in returns[:, j].T])
            medians[label, setting, j] = np.median(needed)
            stayed = last_tenth(returns[:, j].T) >= LEARNED
            counts = [f"{x.sum()} of {len(x)}" for x in (np.isfinite(needed), stayed)]
            cells = [with_interval(x) for x in (of_runs[0, j], last_tenth(of_runs[:, j].T))]
            shown = "{} episodes, {:g}".format(*setting) + " (chosen)" * (setting == best[label])
            rows.append([label, shown, title, spread(needed), *counts, *cells])
    draw_bands(ASSETS / "bandits-adaptation.png", panels, "env steps on the task", symlog=100)
    header = ["method", "setting", "", f"env steps to {SOLVED:.1f}", "reached by", f"≥ {LEARNED:.1f} in the end"]
    table([*header, "before", "in the end"], rows)
    for (label, (_, rate), j), few in medians.items():
        scratch = medians["PPO from scratch", best["PPO from scratch"], j]
        if label == "MLSH, new master" and 0 < few < np.inf:
            print(f"{label}, {rate:g}, {list(panels)[j]}: {scratch / few:.1f} times fewer env steps than from scratch")


def sweep():
    """Figure and table: number of sub-policies by warm-up, the worse task's return after 20 updates, mean of 5 masters.

    A single sub-policy is not fine-tuned: it stays as it is.
    """
    runs = {(K, W): [f"sweep-{K}-{W}-{seed}" for seed in range(3)] for K, W in SWEEP}
    jobs = []
    for (K, _), names in runs.items():
        flags = f"--updates {20 if K > 1 else 0} --seeds 5 --look 200"
        jobs += [(f"{x}/adapt", f"evaluate.py {os.path.relpath(RUNS / x, CODE)} {flags}") for x in names]
    run_all(jobs)
    worse = {cell: [read_adaptation(f"{x}/adapt")[1][-1].mean(1).min() for x in names] for cell, names in runs.items()}
    subs, warm_ups = ([*dict.fromkeys(cell[k] for cell in SWEEP)] for k in (0, 1))
    mean = np.array([[np.mean(worse[K, W]) for W in warm_ups] for K in subs])
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(mean, vmin=0, vmax=BEST, origin="lower", aspect="auto")
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
    shared = best_rate(*HIERARCHIES)
    rates = {method: shared if method in HIERARCHIES else best_rate(method) for method in METHODS}
    jobs = [(named(m, rates[m], s), f"{c} {rates[m]} --seed {s}") for m, c in METHODS.items() for s in SEEDS]
    mlsh = [(named("MLSH", shared, s), f"{METHODS['MLSH']} {shared} --seed {s}") for s in CHOOSING_MASTERS]
    run_all([*jobs, *mlsh, ("scratch", SCRATCH)])
    learning_curves(rates)
    adaptation(rates)
    run_all([(f"four-goals-{s}", f"{FOUR_GOALS} --seed {s}") for s in range(3)])
    four_goals()
    jobs = [
        (f"sweep-{K}-{W}-{s}", f"{SMALL} --num_low {K} {budget(W, 1, 3e6)} --llr {shared} --seed {s}")
        for K, W in SWEEP
        for s in range(3)
    ]
    run_all(jobs)
    sweep()


if __name__ == "__main__":
    run_command(main)
