"""Resident memory of a run of 10,000 iterations of a tiny task, films and wandb included: make soak (Linux)

python tests/memory.py [ITERATIONS]
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

CODE = Path(__file__).parent.parent / "code"
sys.path.insert(0, str(CODE))
from mlsh.runs.metrics import read_metrics  # noqa: E402

FLAGS = "-N 2 -W 2 -U 2 -K 2 -T 7 --high_len 3 --groups 2 --hidden 8 --record 100 --test_episodes 2 --wandb offline"


def resident(pid):
    """Megabytes of a process, from /proc, or None after its end."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    sizes = [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")]
    return sizes[0] if sizes else None


def watch(folder, iterations):
    """Pairs (iterations done, megabytes), about ten, of a run of train.py."""
    tasks = iterations // 4
    command = [sys.executable, "train.py", *FLAGS.split(), "--tasks", str(tasks), "--out", str(folder)]
    run = subprocess.Popen(command, cwd=CODE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seen, wanted = [], tasks // 10
    while run.poll() is None:
        done = len(read_metrics(folder)) // 2
        size = resident(run.pid)
        if wanted <= done < tasks and size:  # not after its end, when Matplotlib draws
            seen.append((4 * done, size))
            print(f"{4 * done:7,} iterations: {size:.0f} MB", flush=True)
            wanted = done + tasks // 10
        time.sleep(0.5)
    if run.returncode:
        raise SystemExit("the run failed")
    return seen


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        seen = watch(Path(folder), int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
    grown = seen[-1][1] - seen[0][1]
    print(f"grown by {grown:.1f} MB from {seen[0][0]:,} to {seen[-1][0]:,} iterations")
    sys.exit(grown > 20)
