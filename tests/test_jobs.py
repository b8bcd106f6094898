import json
import os
import signal
import subprocess
import sys

import pytest

from conftest import CODE, TINY, wait_for_rows
from mlsh.errors import UserError
from mlsh.harness.jobs import Job, Jobs
from mlsh.runs.metrics import read_metrics

COMMAND = " ".join(["train.py", *TINY])


@pytest.mark.slow
def test_a_job_is_done_once_continued_and_begun_again(tmp_path, capsys):
    job = Job("a", COMMAND)

    def starts():
        Jobs(tmp_path).run([job, job])
        return capsys.readouterr().out.count("a: train.py")

    assert starts() == 1 and starts() == 0
    rows = read_metrics(tmp_path / "a")
    (tmp_path / "a" / "results.json").unlink()  # as if stopped in the final test
    assert starts() == 1 and read_metrics(tmp_path / "a") == rows  # clock times too: nothing was trained again
    (tmp_path / "a" / "results.json").unlink()
    (tmp_path / "a" / "checkpoint.pt").unlink()  # as if stopped before the first save
    assert starts() == 1 and read_metrics(tmp_path / "a") != rows
    with pytest.raises(UserError, match="a is of another command"):
        Jobs(tmp_path).run([Job("a", f"{COMMAND} --seed 1")])


@pytest.mark.slow
def test_seeds_are_jobs_and_an_evaluation_has_a_folder_in_its_runs(tmp_path):
    a, b = Job.seeded("a", COMMAND, (3, 4))
    assert (a.name, b.name) == ("a-3", "a-4") and b.command == f"{COMMAND} --seed 4"
    Jobs(tmp_path).run([a, b])
    seeds = [json.loads((tmp_path / job.name / "results.json").read_text())["seed"] for job in (a, b)]
    assert seeds == [3, 4]
    flags = f"evaluate.py {os.path.relpath(tmp_path / 'a-3', CODE)} --updates 1 --seeds 2"
    Jobs(tmp_path).run([Job("a-3/x", flags)])
    assert (tmp_path / "a-3" / "x" / "adaptation.csv").exists()


def test_a_job_that_fails_is_named_and_the_others_save_and_stop(tmp_path):
    endless = Job("endless", f"{COMMAND} --tasks 1000000")
    with pytest.raises(UserError, match="fails failed: .*None-v0 is unknown"):
        Jobs(tmp_path).run([endless, Job("fails", "train.py --env None-v0")])
    assert not (tmp_path / "endless" / "results.json").exists()


@pytest.mark.slow
def test_interrupted_it_goes_on_where_it_was(tmp_path):
    program = f"from pathlib import Path; from mlsh.harness.jobs import *; Jobs(Path({str(tmp_path)!r})).run([Job('a', '''{{}}''')])"
    run = subprocess.Popen([sys.executable, "-c", program.format(f"{COMMAND} --tasks 1000000")], stdout=subprocess.PIPE)
    wait_for_rows(run, tmp_path / "a", 4)
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    done = len(read_metrics(tmp_path / "a"))
    assert run.returncode and done >= 4 and (tmp_path / "a" / "curves.png").exists()  # drawn when it stopped


@pytest.mark.slow
def test_a_module_is_a_command_too(tmp_path):
    job = Job("a", "-m mlsh.rl2 -N 4 -K 1 -T 7 --episodes 2 --iterations 2 --wandb disabled")
    Jobs(tmp_path).run([job])
    (tmp_path / "a" / "results.json").unlink()
    rows = read_metrics(tmp_path / "a")
    Jobs(tmp_path).run([job])  # continued, to the end where it was
    assert read_metrics(tmp_path / "a") == rows and (tmp_path / "a" / "results.json").exists()
