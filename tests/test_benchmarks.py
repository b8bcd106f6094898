"""benchmarks/gpu.py as a user types it, on a machine that need not have a GPU; benchmarks/commits.py."""

import os
import runpy
import subprocess
import sys
import time

import pytest

from conftest import CODE

SCRIPT = CODE.parent / "benchmarks" / "gpu.py"


def gpu(*flags, python=(), **environment):
    command = [sys.executable, *python, SCRIPT, *flags]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.very_slow
def test_the_script_for_a_gpu_runs_on_a_cpu_with_another_device_name():
    run = gpu("--device", "cpu", "--quick", "--groups", "2", CXX="missing")
    assert run.returncode == 0, run.stderr
    header, line, *rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in run.stdout.splitlines()]
    assert header[0].startswith("cpu, ") and set("".join(line)) == {"-"}
    results = dict(rows)
    assert len(results) == 5 and "failed" not in run.stdout
    assert results.pop("tests that need a GPU").endswith(("skipped", "passed"))
    compiled = "MovementBandits-v0 --groups 2, compiled (CUDA graphs, which train.py does not use)"
    assert results.pop(compiled) == "not measured, because PyTorch finds no compiler"
    assert results.pop("MovementBandits-v0: time until both tasks are solved").startswith("not solved in ")
    assert all(text.endswith(" env steps/s") for text in results.values())


def test_what_is_not_reached_in_time_is_printed_as_such():
    run = gpu("--device", "cpu", "--groups", "8", "--seconds", "1", CXX="missing")
    assert run.returncode == 2 and run.stdout.count("not reached in 0 s") == 4, run.stdout  # the tests did not finish


@pytest.mark.parametrize(
    ("python", "flags", "said"),
    [
        ((), ["--device", "cuda:99"], "--device cpu --quick"),
        ((), ["--device", "cpu", "--groups", "0"], "must be positive"),
        (("-S",), [], "pip install torch"),  # without installed packages
    ],
)
def test_what_is_missing_is_said_in_one_line(python, flags, said):
    run = gpu(*flags, python=python)
    assert run.returncode == 2 and run.stderr.count("\n") == 1
    assert run.stderr.startswith("gpu.py: error: ") and said in run.stderr


def test_a_family_is_solved_from_when_on_every_task_is():
    def rows(*means):
        return [
            {"iteration": str(i), "task": task, "trained_reward": str(mean + change)}
            for i, pair in enumerate(means)
            for task, mean in zip("01", pair, strict=True)
            for change in (-1, 1)
        ]

    solved_at = runpy.run_path(str(SCRIPT))["solved_at"]
    assert solved_at(rows((42, 42), (42, 40), (42, 43), (42, 42)), 41.6)["iteration"] == "2"
    assert solved_at(rows((42, 43), (43, 41)), 41.6) is None


@pytest.mark.slow
@pytest.mark.very_slow
def test_two_clones_train_in_turns():
    commits = runpy.run_path(str(CODE.parent / "benchmarks" / "commits.py"))
    flags = "--env MovementBandits-v0 --groups 1 -N 2 -T 10 -W 1 -U 1 --compile off"
    start = time.perf_counter()
    speeds = commits["measure"]([CODE.parent, CODE.parent], flags, 1, 3)
    elapsed = time.perf_counter() - start
    assert [len(column) for column in speeds] == [3, 3]
    assert 0 < sum(100 / speed for column in speeds for speed in column) < elapsed  # two rollouts, three evaluations
