import dataclasses
import os
import runpy
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import wandb

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of what the tests start, too: several processes stall each other
torch.set_num_threads(1)

from mlsh import process  # noqa: E402
from mlsh.runs import run  # noqa: E402
from mlsh.runs.metrics import read_metrics  # noqa: E402

CODE = Path(__file__).parent.parent / "code"
TINY = "--env MovementBandits-v0 -N 2 -W 2 -U 1 --tasks 2 -K 2 -T 7 --high_len 3 --groups 2 --test_episodes 3"
TINY = [*TINY.split(), "--wandb", "disabled"]


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Without a seed, what a test draws from torch depends on the tests that ran before it in the same process."""
    torch.manual_seed(0)


def wait_until(run, done):
    """Until done() holds, for two minutes at most and while the process `run` lives."""
    try:
        for _ in range(6000):
            if done():
                return
            assert run.poll() is None, run.communicate()[1]
            time.sleep(0.02)
        pytest.fail("nothing happened in two minutes")
    except BaseException:
        run.kill()
        raise


def wait_for_rows(run, folder, rows):
    """Until the metrics.csv in `folder`, which the process `run` writes, has so many rows."""
    wait_until(run, lambda: len(read_metrics(folder)) >= rows)


@pytest.fixture
def command(monkeypatch, capfd):
    """Run a script of code/ as if typed: command("train.py", flag, ...) -> exit code, stdout, stderr."""

    def start(script, *flags):
        monkeypatch.setattr(sys, "argv", [script, *map(str, flags)])
        capfd.readouterr()
        before = {number: signal.getsignal(number) for number in process.SIGNALS}
        try:
            runpy.run_path(str(CODE / script), run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            while run.LOCKS:  # which a process's end does
                run.LOCKS.pop().release()
            wandb.teardown()  # its service would be shared by the processes a later test starts
        return code, *capfd.readouterr()

    return start


@pytest.fixture
def cfg():
    """A configuration small enough for any test; change it by dataclasses.replace."""
    from mlsh.config import Config

    return dataclasses.replace(Config(), N=3, W=2, U=1, tasks=2, epochs=2, T=7, high_len=3, groups=2, test_episodes=4)
