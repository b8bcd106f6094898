"""Environments of other people, stepped by several processes."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import CODE, TINY, wait_until
from mlsh.config import Config
from mlsh.envs import boundary, make_env
from mlsh.envs.gymnasium_tasks import GymnasiumTasks
from mlsh.envs.workers import worthwhile_processes
from mlsh.errors import EnvironmentFailed
from mlsh.runs import checkpoint
from mlsh.runs.metrics import read_metrics


def family(env, workers, num_envs=6, **more):
    made = make_env(Config(env=env, T=9, env_workers=workers), num_envs, **more)
    assert isinstance(made, GymnasiumTasks)
    return made


def played(env, workers):
    """What the env returns in six slots, in some of which a second episode begins after four steps."""
    tasks = family(env, workers)
    drawn = [tasks.sample_task(np.random.default_rng(i)) for i in range(6)]
    tasks.set_task(drawn)
    results = [tasks.reset(seed=[1, 2])[0]]
    shape = tasks.action_space.shape
    actions = np.random.default_rng(0).uniform(-1, 1, shape) if tasks.single_action_space.shape else np.arange(6) % 3
    for t in range(8):
        if t == 4:
            results += [tasks.reset(options={"reset_mask": torch.tensor([0, 1, 0, 0, 1, 1]).bool()})[0]]
        *step, info = tasks.step(torch.as_tensor(actions))
        results += [*step, *info.values()]
    assert len(tasks._workers) == workers - 1
    tasks.close()
    return torch.cat([x.double().flatten() for x in results])


FOREIGN = (
    "Sampled Listed NoGenerator Original Truncated DictObservations Images Maps ReportsInfo Many OldTasks "
    "BoxActions HalfBounded"
)
AWKWARD = "WhenMade OddInfo Underflows"
KINDS = [*(f"foreign:{kind}-v0" for kind in FOREIGN.split()), *(f"awkward:{kind}-v0" for kind in AWKWARD.split())]


@pytest.mark.parametrize("env", KINDS)
def test_results_do_not_depend_on_the_number_of_processes(env):
    torch.testing.assert_close(played(env, 1), played(env, 3), rtol=0, atol=0, equal_nan=True)


def test_a_run_does_not_depend_on_the_number_of_processes(command, tmp_path):
    kept = []
    for workers in (1, 2, 5):
        out = tmp_path / str(workers)
        flags = ["--env", "foreign:Terminated-v0", "--record", 0, "--env_workers", workers]
        code, _, err = command("train.py", *TINY, *flags, "--out", out)
        assert code == 0, err
        rows = [{name: x for name, x in row.items() if name != "seconds"} for row in read_metrics(out)]
        kept.append((rows, checkpoint.load(out, [Config])["sub_policies"]))
    for rows, sub_policies in kept[1:]:
        assert rows == kept[0][0]
        assert all(torch.equal(x, sub_policies[name]) for name, x in kept[0][1].items())


@pytest.mark.parametrize("env", ["awkward:NormalizeReward-v0", "awkward:Unpicklable-v0"])
def test_what_cannot_be_sent_stays_in_one_process(env, capfd):
    boundary.say_once.cache_clear()
    assert not family(env, 3)._workers
    assert capfd.readouterr().err.count(", so one process steps all copies\n") == 1


def test_warnings_at_the_start_are_shown_once(capfd):
    boundary.shown.clear()
    with pytest.warns(UserWarning, match="its own warning"):
        family("awkward:Warns-v0", 2).close()
    assert "its own warning" not in capfd.readouterr().err


def test_films_are_made_in_one_process():
    assert not family("awkward:Walk-v0", 3, render_mode="rgb_array")._workers


def test_ctrl_c_while_copies_are_made_ends_the_command():
    with pytest.raises(KeyboardInterrupt):
        family("awkward:Interrupted-v0", 1, render_mode="rgb_array")


def test_what_an_environment_raises_in_a_worker_is_reported_as_elsewhere():
    env = family("awkward:Raises-v0", 2)
    for _ in range(2):  # after the first failure, it can be played again
        env.reset(seed=0)
        for _ in range(2):
            env.step(torch.ones(6))
        with pytest.raises(EnvironmentFailed, match=r"failed at step 3, task 0, in .*awkward.py:\d+ \(RuntimeError"):
            env.step(torch.ones(6))


def test_an_exception_that_was_not_received_does_not_spoil_the_next_call():
    """The first process may have raised one of its own in the meantime."""
    env = family("awkward:Walk-v0", 2)
    env._workers[0].send("no such method")
    env.reset(seed=0)


def test_a_copy_that_cannot_be_made_in_a_worker_is_reported():
    with pytest.raises(Exception, match=r"when copy 4 of 6 was made, in .*awkward.py:\d+ \(RuntimeError"):
        family("awkward:OnlyHere-v0", 2)


@pytest.mark.parametrize("kind", ["Dies", "Forks"])  # a process that it has forked keeps the connection open
def test_a_worker_that_dies_is_an_error_and_costs_nothing(command, tmp_path, kind):
    flags = ["--env", f"awkward:{kind}-v0", "--record", 0, "--env_workers", 2, "--out", tmp_path]
    code, _, err = command("train.py", *TINY, *flags)
    assert code == 2 and "a worker process ended unexpectedly (exit code 7); --env_workers 1 uses no workers" in err
    assert "the state before it is saved in" in err and "Traceback" not in err


def test_workers_import_what_the_first_process_imports(tmp_path):
    """Not what is in the current folder, nor another version of the package that is installed."""
    (tmp_path / "installed").mkdir()
    for name in ("mlsh", "queue", "torch", "installed/mlsh"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not this file')")
    path = os.pathsep.join([str(tmp_path / "installed"), str(Path(__file__).parent)])
    flags = [*TINY, "--env", "awkward:Prints-v0", "--record", "0", "--env_workers", "2", "--out", "run"]
    environment = os.environ | {"PYTHONPATH": path, "PYTHONIOENCODING": "ascii"}  # in which é cannot be printed
    train = [sys.executable, str(CODE / "train.py"), *flags]
    run = subprocess.run(train, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the workers in /proc")
@pytest.mark.parametrize(
    ("number", "env"), [(signal.SIGTERM, "awkward:Resists-v0"), (signal.SIGKILL, "awkward:Sleeps-v0")]
)
def test_no_process_is_left_when_a_run_is_killed(tmp_path, number, env):
    mark = f"MLSH_TEST={tmp_path}".encode()

    def running():
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    found.append(process)
            except OSError:
                pass
        return found

    path = os.pathsep.join([str(CODE), str(Path(__file__).parent)])
    environment = os.environ | {"MLSH_TEST": str(tmp_path), "PYTHONPATH": path}
    more = ["--tasks", "100000", "--env", env, "--record", "0", "--env_workers", "3", "--out", str(tmp_path / "run")]
    train = [sys.executable, str(CODE / "train.py"), *TINY, *more]
    run = subprocess.Popen(train, env=environment, stderr=subprocess.PIPE, text=True)
    wait_until(run, lambda: (tmp_path / "run" / "asleep").exists())
    assert len(running()) >= 3
    run.send_signal(number)
    run.wait(60)
    for _ in range(600):
        if not running():
            return
        time.sleep(0.1)
    pytest.fail(f"still running: {running()}")


def test_long_commands_use_as_many_processes_as_are_fastest(monkeypatch):
    long = Config(env="foreign:Listed-v0")
    assert long.env_processes == 1  # a program that imports the package may not be prepared for workers
    monkeypatch.setattr("mlsh.settings.is_command", lambda: True)
    assert long.env_processes is None
    assert dataclasses.replace(long, tasks=1).env_processes == 1
    assert dataclasses.replace(long, tasks=1, env_workers=3).env_processes == 3


def test_the_fastest_number_of_processes():
    """A worker costs 0.5 ms, so fast environments and few copies get none."""
    assert worthwhile_processes(20e-6, copies=40, cores=8) == 1  # 0.8 ms; with two processes 0.9 ms
    assert worthwhile_processes(64e-6, copies=20, cores=2) == 1  # HalfCheetah: 1.28 ms; 1.14 ms, too small a gain
    assert worthwhile_processes(100e-6, copies=40, cores=2) == 2  # 4 ms; 2.5 ms
    assert worthwhile_processes(100e-6, copies=40, cores=8) == 3  # 4 ms; 2.33 ms with 3, 2.5 with 2 or 4
    assert worthwhile_processes(1, copies=3, cores=8) == 3


def test_slow_environments_get_workers_in_commands(monkeypatch, capfd):
    boundary.say_once.cache_clear()
    monkeypatch.setattr("mlsh.settings.is_command", lambda: True)
    monkeypatch.setattr("mlsh.envs.gymnasium_tasks.own_cores", lambda: 3)
    slow, fast, shared = (family(f"awkward:{kind}-v0", 0) for kind in ("Slow", "Walk", "DrawsInSteps"))
    assert len(slow._workers) == 2 and not fast._workers
    assert not shared._workers  # the number of processes would change its episodes
    assert capfd.readouterr().err == "note: 3 processes step the copies, as with --env_workers 3\n"
    slow.close()
