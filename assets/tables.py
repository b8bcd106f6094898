"""Print the README's tables from run folders: python assets/tables.py RUN [RUN ...]

Of MovementBandits a row a run for the preset, and a row a variant (the flags that differ from the preset) for all
runs; of another environment a row a run and task.
"""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from mlsh.config import CHANGEABLE, PRESETS, Config
from mlsh.logger import read_metrics

THRESHOLD = 41.6  # 95 % of MovementBandits' best possible return, 43.80
PASSED = 42.5  # 97 %
SEPARATED = 30.0
IGNORED = {*CHANGEABLE, "seed", "wandb_project", "wandb_group", "wandb_name"} - {"tasks"}


def variant(config):
    """The flags that differ from the environment's preset, as typed."""
    preset = Config(**{"env": config["env"], **PRESETS.get(config["env"], {})}).as_dict()
    changed = {k: v for k, v in config.items() if k not in IGNORED and v != preset[k]}
    as_typed = {True: "", False: "no_"}
    flags = [f"--{as_typed[v]}{k}" if isinstance(v, bool) else f"--{k} {v}" for k, v in changed.items()]
    return " ".join(flags) or "preset"


def reached(run):
    """Env steps and seconds of the outer iteration from which on every task's trained reward is at the threshold."""
    returns = defaultdict(list)  # (iteration, task) -> trained reward of its groups
    end = {}
    for row in read_metrics(run):
        returns[int(row["iteration"]), row["task"]].append(float(row["trained_reward"]))
        end[int(row["iteration"])] = int(row["env_steps"]), float(row["seconds"])
    below = [i for (i, _), values in returns.items() if statistics.mean(values) < THRESHOLD]
    first = max(below, default=-1) + 1
    return end.get(first)


def tasks_of(results):
    """Print a row a run and task."""
    final = [name for name in results[0]["test"][0] if name.startswith("final_")]
    columns = ["seed", "task", "return", *(name.replace("_", " ") for name in final)]
    print(f"| {' | '.join(columns)} | shares | each alone | env steps | hours |\n{'|--' * (len(columns) + 4)}|")
    for run in sorted(results, key=lambda run: run["seed"]):
        for row in run["test"]:
            cells = [
                run["seed"],
                f"{row['task']} ({row['label']})",
                f"{row['return']:.4f} ± {row['standard_error']:.4f}",
            ]
            cells += [f"{row[name]:.2f}" for name in final]
            cells += [" / ".join(f"{x:.2f}" for x in row["share"])]
            cells += [" / ".join(f"{x:.3f}" for x in row["sub_policy_returns"])]
            cells += [f"{run['env_steps'] / 1e6:.1f} M", f"{run['seconds'] / 3600:.1f}"]
            print(f"| {' | '.join(map(str, cells))} |")


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    others = []
    variants = defaultdict(list)
    for run in map(Path, sys.argv[1:]):
        if not (run / "results.json").exists():
            print(f"{run} has no results.json, left out", file=sys.stderr)
            continue
        results = json.loads((run / "results.json").read_text())
        config = json.loads((run / "config.json").read_text())["config"]
        if not config["env"].startswith("MovementBandits"):
            others.append(results)
            continue
        variants[variant(config)].append((results, reached(run)))
    if others:
        tasks_of(others)
    if not variants:
        return

    runs = sorted(variants.get("preset", []), key=lambda run: run[0]["seed"])
    if runs:
        labels = [f"task {row['task']} ({row['label']})" for row in runs[0][0]["test"]]
        last = f"shares | to {THRESHOLD}: env steps | seconds | in all: env steps | seconds"
        print(f"| seed | {' | '.join(labels)} | {last} |")
        print("|--" * (len(labels) + 6) + "|")
        for results, at in runs:
            cells = [f"{row['return']:.2f} ± {row['standard_error']:.2f}" for row in results["test"]]
            cells.append(" ; ".join(" / ".join(f"{x:.2f}" for x in row["share"]) for row in results["test"]))
            cells += [f"{at[0] / 1e6:.1f} M", f"{at[1]:.0f}"] if at else ["never", "never"]
            cells += [f"{results['env_steps'] / 1e6:.1f} M", f"{results['seconds']:.0f}"]
            print(f"| {results['seed']} | {' | '.join(cells)} |")
        if all(at for _, at in runs):
            for name, pick in (("median", statistics.median), ("worst", max)):
                steps, seconds = (pick(at[k] for _, at in runs) for k in (0, 1))
                print(f"\n{name} to {THRESHOLD}: {steps / 1e6:.1f} M env steps, {seconds:.0f} s")
        print()

    print(f"| variant | runs | all tasks ≥ {PASSED} | all tasks > {SEPARATED:.0f} | worse task, mean | env steps |")
    print("|--|--|--|--|--|--|")
    for name, runs in variants.items():
        worse = [min(row["return"] for row in results["test"]) for results, _ in runs]
        passed, separated = sum(w >= PASSED for w in worse), sum(w > SEPARATED for w in worse)
        steps = statistics.mean(results["env_steps"] for results, _ in runs)
        mean = statistics.mean(worse)
        print(f"| `{name}` | {len(runs)} | {passed} | {separated} | {mean:.1f} | {steps / 1e6:.1f} M |")


if __name__ == "__main__":
    main()
