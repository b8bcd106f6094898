"""Kill runs with SIGKILL at random moments, continue them, and compare with a run that was never killed: make soak

python tests/soak.py [RUNS] [KILLS PER RUN]
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.utils._pytree import tree_flatten

CODE = Path(__file__).parent.parent / "code"
sys.path.insert(0, str(CODE))
from mlsh.config import Config  # noqa: E402
from mlsh.runs import checkpoint  # noqa: E402
from mlsh.runs.metrics import read_metrics  # noqa: E402

TASKS = 40
FLAGS = (
    f"--tasks {TASKS} -N 2 -W 2 -U 1 -K 2 -T 7 --high_len 3 --groups 2 --hidden 256 --record 15 --test_episodes 2 "
    "--wandb disabled --save_seconds 0"
).split()


def start(folder):
    """Start a run in the folder, or continue the one that has a checkpoint there."""
    flags = ["-c", "--out", folder] if (folder / "checkpoint.pt").exists() else [*FLAGS, "--out", folder]
    return subprocess.Popen(
        [sys.executable, "train.py", *map(str, flags)],
        cwd=CODE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def result(folder):
    """Return what a run has learned and written, except times and names: a list of tensors and plain values."""
    ignored = ("seconds", "run_id", "config")
    data = {name: x for name, x in checkpoint.load(folder, [Config]).items() if name not in ignored}
    rows = [[(k, v) for k, v in row.items() if k != "seconds"] for row in read_metrics(folder)]
    results = json.loads((folder / "results.json").read_text())
    results = [(name, x) for name, x in results.items() if name not in ignored]
    return tree_flatten([data, rows, results])[0]


def same(a, b):
    if len(a) != len(b):
        return False
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b, strict=True))


def finish(run):
    _, err = run.communicate()
    if run.returncode:
        raise SystemExit(f"a run failed: {err.decode()}")


def soak(folder, runs, kills, rng):
    """Kill each of `runs` runs `kills` times, and then let it end.

    Half of the kills come at any moment, including the start-up, the other half after a run has made progress. Returns
    the number of kills, the number of them that hit a run before its end, and the number of runs that ended
    bit-identical to a run that was never killed.
    """
    begin = time.monotonic()
    finish(start(folder / "whole"))
    duration = time.monotonic() - begin
    print(f"one run takes {duration:.1f} s", flush=True)
    whole, identical, interrupted = result(folder / "whole"), 0, 0
    for i in range(runs):
        part = folder / str(i)
        for _ in range(kills):
            rows = len(read_metrics(part))
            run = start(part)
            if rng.random() < 0.5:
                time.sleep(rng.uniform(0, duration))
            else:
                while run.poll() is None and len(read_metrics(part)) <= rows:
                    time.sleep(0.005)
                time.sleep(rng.uniform(0, duration / 2 / kills))
            interrupted += run.poll() is None
            run.kill()
            run.communicate()
        finish(start(part))
        equal = same(whole, result(part))
        identical += equal
        print(f"run {i}: {'identical' if equal else 'DIFFERENT'}", flush=True)
    return runs * kills, interrupted, identical


if __name__ == "__main__":
    runs, kills = map(int, sys.argv[1:3]) if len(sys.argv) > 2 else (50, 1)
    with tempfile.TemporaryDirectory() as folder:
        tried, interrupted, identical = soak(Path(folder), runs, kills, random.Random(0))
    print(f"{tried} kills, {interrupted} of them before the end of a run")
    print(f"{identical} of {runs} runs ended bit-identical")
    sys.exit(identical != runs or not interrupted)
