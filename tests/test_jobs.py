import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from conftest import CODE, TINY, wait_for_rows
from mlsh.errors import UserError
from mlsh.harness.jobs import Job, JobRunner
from mlsh.runs.metrics import read_metrics

COMMAND = " ".join(["train.py", *TINY])


@pytest.mark.slow
def test_jobs_are_skipped_continued_or_restarted(tmp_path, capsys):
    job = Job("a", COMMAND)

    def starts():
        JobRunner(tmp_path).run([job, job])
        return capsys.readouterr().out.count("a: train.py")

    assert starts() == 1 and starts() == 0
    rows = read_metrics(tmp_path / "a")
    (tmp_path / "a" / "results.json").unlink()  # as if stopped in the final test
    assert starts() == 1 and read_metrics(tmp_path / "a") == rows  # clock times too: nothing was trained again
    for path in (tmp_path / "a").glob("*.*"):  # as if stopped before the first save
        path.unlink()
    (tmp_path / "a" / ".starting").touch()
    assert starts() == 1 and len(read_metrics(tmp_path / "a")) == len(rows)
    (tmp_path / "a" / "results.json").unlink()
    (tmp_path / "a" / "checkpoint.pt").unlink()
    with pytest.raises(UserError, match="is not empty and has no checkpoint"):  # nothing is removed
        starts()
    with pytest.raises(UserError, match="a belongs to another command"):
        JobRunner(tmp_path).run([Job("a", f"{COMMAND} --seed 1")])


def test_the_jobs_of_a_study_are_a_group_on_wandb(tmp_path, monkeypatch):
    from test_tracking import decode

    for name in ("WANDB_RUN_GROUP", "WANDB_NAME", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    job = Job("a", COMMAND)
    (tmp_path / "my-study").mkdir()
    JobRunner(tmp_path / "my-study", "offline").run([job])
    (run,) = decode(tmp_path / "my-study" / "a")["run"]
    assert (run.run_group, run.display_name) == ("my-study", "a")
    assert (tmp_path / "my-study" / "a.command").read_text() == COMMAND  # so that the study can go on without wandb


@pytest.mark.slow
@pytest.mark.very_slow
def test_one_job_per_seed_and_an_evaluation_inside_a_run_folder(tmp_path):
    a, b = Job.for_seeds("a", COMMAND, (3, 4))
    assert (a.name, b.name) == ("a-3", "a-4") and b.command == f"{COMMAND} --seed 4"
    JobRunner(tmp_path).run([a, b])
    seeds = [json.loads((tmp_path / job.name / "results.json").read_text())["seed"] for job in (a, b)]
    assert seeds == [3, 4]
    flags = f"evaluate.py {os.path.relpath(tmp_path / 'a-3', CODE)} --updates 1 --seeds 2"
    JobRunner(tmp_path).run([Job("a-3/x", flags)])
    assert (tmp_path / "a-3" / "x" / "adaptation.csv").exists()


def test_a_failed_job_is_named_and_the_others_stop(tmp_path):
    endless = Job("endless", f"{COMMAND} --tasks 1000000")
    with pytest.raises(UserError, match="fails failed: .*None-v0 is unknown"):
        JobRunner(tmp_path).run([endless, Job("fails", "train.py --env None-v0")])
    assert not (tmp_path / "endless" / "results.json").exists()


def test_a_job_that_is_killed_names_the_signal(tmp_path):
    (tmp_path / "killed.py").write_text("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(UserError, match="a was killed by SIGKILL .perhaps for lack of memory.; start the study again"):
        JobRunner(tmp_path).run([Job("a", f"{tmp_path}/killed.py")])


@pytest.mark.slow
def test_an_interrupt_stops_the_jobs_after_they_have_saved(tmp_path):
    job = Job("a", f"{COMMAND} --tasks 1000000")
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # it may be ignored here
    program += f"from pathlib import *; from mlsh.harness.jobs import *; JobRunner({tmp_path!r}).run([{job!r}])"
    run = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    wait_for_rows(run, tmp_path / "a", 4)
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    done = len(read_metrics(tmp_path / "a"))
    assert run.returncode and done >= 4 and (tmp_path / "a" / "curves.png").exists()  # drawn when it stopped


STAND_IN = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
assert "-c" in sys.argv and os.environ["OMP_NUM_THREADS"] == "1"
assert all(sys.argv[sys.argv.index(flag) + 1] == "1" for flag in ("--sim_threads", "--env_workers"))
assert not (folder / "results.json").exists()
folder.mkdir(exist_ok=True)
with open(folder / "steps", "a+") as steps:
    steps.seek(0)
    for step in range(len(steps.readlines()), 20):
        while step == 10 and not (folder.parent / f"{folder.name}.go").exists():
            time.sleep(0.01)
        print(step, os.getpid(), os.getppid(), file=steps, flush=True)
        time.sleep(0.01)
(folder / "results.json").write_text("{}")
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="pins processes to one core each")
def test_processes_share_jobs_and_take_over_those_of_the_dead(tmp_path, capfd):
    """Four processes; one is killed alone and one together with its job. Every step is done exactly once, in order."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    jobs = [Job(f"job-{i}", f"{tmp_path}/stand_in.py") for i in range(6)]

    def share():
        os.setsid()
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        JobRunner(tmp_path).run(jobs)

    def steps():
        return [[line.split() for line in path.read_text().splitlines()] for path in sorted(tmp_path.glob("*/steps"))]

    def begun():
        return [len(job) for job in steps()] == [10] * 4  # each process has one job, which waits half-way

    processes = [multiprocessing.get_context("fork").Process(target=share, daemon=True) for _ in range(4)]
    for process in processes:
        process.start()

    def wait_until(done):
        deadline = time.monotonic() + 60
        while not done() and time.monotonic() < deadline:
            time.sleep(0.05)

    wait_until(begun)
    owners = [int(job[0][2]) for job in steps()]
    os.kill(owners[0], signal.SIGKILL)  # the first job goes on alone, and longer than all others
    os.killpg(owners[1], signal.SIGKILL)  # the second one dies, too
    for job in jobs[1:]:
        (tmp_path / f"{job.name}.go").touch()
    wait_until(lambda: len(list(tmp_path.glob("*/results.json"))) == 5)
    time.sleep(3)
    (tmp_path / "job-0.go").touch()
    for process in processes:
        process.join(60)
    assert sorted(owners) == sorted(process.pid for process in processes)
    assert sorted(process.exitcode for process in processes) == [-9, -9, 0, 0]
    done = steps()
    assert [[int(step) for step, _, _ in job] for job in done] == [[*range(20)]] * 6
    assert [len({pid for _, pid, _ in job}) for job in done] == [1, 2, 1, 1, 1, 1]
    assert {int(parent) for _, _, parent in done[1][10:]} <= set(owners[2:])
    assert capfd.readouterr().out.count("stand_in.py") == 7
