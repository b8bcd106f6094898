"""Env steps per second of train.py in two clones, such as those of two commits: python benchmarks/commits.py OLD NEW

Both clones train at the same time, but take turns: one waits while the other makes an outer iteration. The first two
outer iterations, in which torch compiles, do not count. The table shows medians and ranges.
"""

import argparse
import csv
import itertools
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

UNCOUNTED = 2  # outer iterations
COMPILED = "--compile on --env"
SETTINGS = {
    "MovementBandits, 1 group": f"{COMPILED} MovementBandits-v0 --groups 1",
    "MovementBandits, 8 groups": f"{COMPILED} MovementBandits-v0 --groups 8",
    "MovementBandits, 8 groups, uncompiled": "--compile off --env MovementBandits-v0 --groups 8",
    "MovementBandits, 32 groups": f"{COMPILED} MovementBandits-v0 --groups 32",
    "MovementBandits4": f"{COMPILED} MovementBandits4-v0",
    "Fourrooms, 16 sub-policies": f"{COMPILED} Fourrooms-v0 --num_sub_policies 16",
    "TaxiFAMP": f"{COMPILED} TaxiFAMP-v0",
    "KeyDoor": f"{COMPILED} KeyDoor-v0 -U 5",
}


def train_in_turns() -> None:
    """Run train.py of the current folder. Before each outer iteration, wait for a line on standard input.

    After each, write its seconds on standard output. The first one includes the start of the run.
    """
    from mlsh import sampling  # that of the clone

    draw_tasks, start, calls = sampling.balanced_tasks, 0.0, 0

    def balanced_tasks(*args: Any) -> Any:  # train.py calls it at its start, and before each outer iteration
        nonlocal start, calls
        calls += 1
        if calls > 2:
            print(time.perf_counter() - start, flush=True)
        if calls != 2:
            sys.stdin.readline()
            start = time.perf_counter()
        return draw_tasks(*args)

    sampling.balanced_tasks = balanced_tasks
    runpy.run_path("train.py", run_name="__main__")


class Training:
    """train.py of a clone, in a process that waits before each outer iteration."""

    def __init__(self, clone: Path, flags: str, threads: int, out: Path) -> None:
        more = f"--seed 0 --sim_threads {threads} --record 0 --wandb disabled --tasks 1000 --out".split()
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).resolve(), "--turns", *flags.split(), *more, out],
            cwd=clone / "code",
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": "."},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._metrics = out / "metrics.csv"

    def outer_iteration(self) -> float:
        """Make one, and return its seconds."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args} has ended")
        return float(line)

    def env_steps(self) -> list[int]:
        """The env steps of each outer iteration except the first one."""
        with self._metrics.open() as file:
            done = sorted({int(row["env_steps"]) for row in csv.DictReader(file)})
        return [after - before for before, after in itertools.pairwise(done)]

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def measure(clones: list[Path], flags: str, threads: int, repeats: int) -> list[list[float]]:
    """Env steps per second of each outer iteration in each clone."""
    with tempfile.TemporaryDirectory() as folder:
        trainings = [Training(clone, flags, threads, Path(folder, str(i))) for i, clone in enumerate(clones)]
        try:
            seconds = [[training.outer_iteration() for training in trainings] for _ in range(UNCOUNTED + repeats)]
            steps = [training.env_steps()[UNCOUNTED - 1 :] for training in trainings]
        finally:
            for training in trainings:
                training.end()
    columns = [column[UNCOUNTED:] for column in zip(*seconds, strict=True)]
    return [[n / x for n, x in zip(*pair, strict=True)] for pair in zip(steps, columns, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clones", nargs=2, type=Path, metavar="CLONE", help="folder of a clone")
    parser.add_argument("--only", nargs="+", choices=[*SETTINGS], default=[*SETTINGS], metavar="ROW", help="rows")
    parser.add_argument("--repeats", type=int, default=6, help="outer iterations that count (default: 6)")
    args = parser.parse_args()
    print(f"| | threads | {' | '.join(clone.name for clone in args.clones)} | times as fast |\n|--|--|--|--|--|")
    for name in args.only:
        for threads in (1, 2):
            before, after = measure(args.clones, SETTINGS[name], threads, args.repeats)
            cells = [f"{statistics.median(x):,.0f} ({min(x):,.0f} to {max(x):,.0f})" for x in (before, after)]
            ratio = statistics.median(after) / statistics.median(before)
            print(f"| {name} | {threads} | {' | '.join(cells)} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--turns"]:
        del sys.argv[1]
        train_in_turns()
    else:
        main()
