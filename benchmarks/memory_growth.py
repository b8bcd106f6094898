"""Memory of a long run: the resident set of train.py on a tiny task, with films and wandb (Linux only; make soak).

    python benchmarks/memory_growth.py [ITERATIONS]

It fails if the median of the second half of the run is more than 10 MB above that of the first half. Single values
differ by as much, because films and garbage come and go.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mlsh.runs.metrics import read_metrics

CODE = Path(__file__).absolute().parents[1] / "code"
FLAGS = "-N 2 -W 2 -U 2 -K 2 -T 7 --high_len 3 --groups 2 --hidden 8 --record 100 --test_episodes 2 --wandb offline"
PER_TASK = 4  # iterations
MOST = 10  # MB


def resident_megabytes(pid: int) -> float | None:
    """The resident memory of a process, or None if it has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    sizes = [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")]
    return sizes[0] if sizes else None


def watch(folder: Path, iterations: int) -> list[tuple[int, float]]:
    """Run train.py, and return about ten pairs of iterations done and megabytes."""
    tasks = iterations // PER_TASK
    command = [sys.executable, "train.py", *FLAGS.split(), "--tasks", str(tasks), "--out", str(folder)]
    run = subprocess.Popen(command, cwd=CODE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seen, next_tasks = [], tasks // 10
    while run.poll() is None:
        done = len(read_metrics(folder)) // 2  # one row per group
        size = resident_megabytes(run.pid)
        if next_tasks <= done < tasks and size:  # not after the last task, when Matplotlib draws
            seen.append((PER_TASK * done, size))
            print(f"{PER_TASK * done:7,} iterations: {size:.0f} MB", flush=True)
            next_tasks = done + tasks // 10
        time.sleep(0.5)
    if run.returncode:
        raise SystemExit("the run failed")
    return seen


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        seen = watch(Path(folder), int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
    half = max(len(seen) // 2, 1)
    before, after = (statistics.median(size for _, size in part) for part in (seen[:half], seen[-half:]))
    print(f"median of the first half {before:.0f} MB, of the second half {after:.0f} MB")
    sys.exit(after - before > MOST)
