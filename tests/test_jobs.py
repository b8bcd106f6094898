import json
import os
import signal
import subprocess
import sys

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
    (tmp_path / "a" / "results.json").unlink()
    (tmp_path / "a" / "checkpoint.pt").unlink()  # as if stopped before the first save
    assert starts() == 1 and read_metrics(tmp_path / "a") != rows
    with pytest.raises(UserError, match="a belongs to another command"):
        JobRunner(tmp_path).run([Job("a", f"{COMMAND} --seed 1")])


@pytest.mark.slow
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


@pytest.mark.slow
def test_an_interrupt_stops_the_jobs_after_they_have_saved(tmp_path):
    job = Job("a", f"{COMMAND} --tasks 1000000")
    program = f"from pathlib import *; from mlsh.harness.jobs import *; JobRunner({tmp_path!r}).run([{job!r}])"
    run = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    wait_for_rows(run, tmp_path / "a", 4)
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    done = len(read_metrics(tmp_path / "a"))
    assert run.returncode and done >= 4 and (tmp_path / "a" / "curves.png").exists()  # drawn when it stopped
