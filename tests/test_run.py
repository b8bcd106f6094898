"""Runs that are killed, run out of disk, share a folder, or meet numbers that are not finite."""

import itertools
import json
import os
import random
import resource
import shlex
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conftest import CODE, TINY, wait_for_rows, wait_until
from mlsh import errors, process
from mlsh.baselines.rl2 import RL2Config
from mlsh.config import Config
from mlsh.envs.memory import available_memory
from mlsh.errors import EnvironmentFailed
from mlsh.runs import checkpoint, run
from mlsh.runs.metrics import read_metrics
from mlsh.runs.run import Run
from mlsh.sampling import balanced_tasks
from soak import result, same, soak

SLOW = pytest.mark.slow
SMALL = [*TINY, "--hidden", "8", "--record", "0"]


def start(*flags, **more):
    command = [sys.executable, "train.py", *map(str, flags)]
    return subprocess.Popen(command, cwd=CODE, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **more)


@pytest.mark.parametrize(
    ("env", "what"), [("NaNReward", "a reward"), ("InfiniteReward", "a reward"), ("NaNObservation", "an observation")]
)
def test_a_number_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(command, tmp_path, env, what):
    flags = ["--env", f"faulty:{env}-v0", "-W", 1, "-U", 0, "--no_normalise", "--save_seconds", 0, "--out", tmp_path]
    code, _, err = command("train.py", *SMALL, *flags)  # four rollouts per outer iteration: the second iteration fails
    assert code == 2 and "Traceback" not in err
    assert f"gave {what} that is not finite at step 3, task 1" in err
    assert checkpoint.load(tmp_path, [Config])["iteration"] == 1 and len(read_metrics(tmp_path)) == 2


@pytest.mark.parametrize(("flag", "who"), [("--sub_lr", "sub-policy"), ("--master_lr", "master")])
def test_weights_that_are_not_finite_are_never_saved(command, tmp_path, flag, who):
    code, _, err = command("train.py", *SMALL, flag, 1e38, "--out", tmp_path)
    assert code == 2 and f"{who} " in err and "is not finite after an update" in err
    data = checkpoint.load(tmp_path, [Config])
    assert data["iteration"] == 0 and all(x.isfinite().all() for x in data["sub_policies"].values())


def limit_files(size):
    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def test_a_full_disk_is_reported_at_the_first_save_and_the_folder_can_be_used_again(command, tmp_path):
    run = start(*SMALL, "--tensorboard", "--out", tmp_path, preexec_fn=limit_files(2000))
    _, err = run.communicate(timeout=60)
    assert run.returncode == 2 and "free disk space" in err and "Traceback" not in err
    assert not (tmp_path / "checkpoint.pt").exists()
    assert command("train.py", *SMALL, "--out", tmp_path)[0] == 0


@pytest.mark.slow
def test_a_full_disk_while_logging_leaves_the_last_checkpoint(tmp_path):
    size = 40_000  # more than a checkpoint takes
    flags = [*SMALL, "--tasks", 10**6, "--save_seconds", 0, "--out", tmp_path]
    run = start(*flags, preexec_fn=limit_files(size))
    _, err = run.communicate(timeout=100)
    assert run.returncode == 2 and f"then continue with -c --out {tmp_path}" in err and "Traceback" not in err, err
    done = checkpoint.load(tmp_path, [Config])["iteration"]
    assert done > 20 and (tmp_path / "metrics.csv").stat().st_size == size
    run = start("-c", "--out", tmp_path, "--tasks", done + 1)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 0, err
    assert [int(row["iteration"]) for row in read_metrics(tmp_path)] == [i for i in range(done + 1) for _ in range(2)]


def test_training_continues_when_the_process_of_wandb_is_killed(tmp_path):
    run = start(*SMALL, "--tasks", 10**6, "--wandb", "offline", "--out", tmp_path)
    wait_for_rows(run, tmp_path, 2)
    wait_until(run, lambda: not subprocess.run(["pkill", "-KILL", "-P", str(run.pid), "wandb-core"]).returncode)
    wait_for_rows(run, tmp_path, len(read_metrics(tmp_path)) + 40)
    run.terminate()
    _, err = run.communicate(timeout=100)
    assert run.returncode == 143 and "wandb failed and is off from here on" in err and "Traceback" not in err


def test_two_runs_in_one_folder_are_refused(command, tmp_path):
    run = start(*SMALL, "--tasks", 10**6, "--save_seconds", 0, "--out", tmp_path)
    try:
        wait_for_rows(run, tmp_path, 2)
        code, _, err = command("train.py", "-c", "--out", tmp_path)
        assert code == 2 and "another run is writing" in err
        assert run.poll() is None
    finally:
        run.kill()
        run.communicate()
    done = checkpoint.load(tmp_path, [Config])["iteration"]  # a killed run leaves the folder unlocked
    assert command("train.py", "-c", "--out", tmp_path, "--tasks", done + 1)[0] == 0


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    class Clock(run.datetime.datetime):
        @classmethod
        def now(cls):
            return cls(2018, 4, 30)

    monkeypatch.setattr(run.datetime, "datetime", Clock)
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        folders = [*pool.map(lambda _: run.make_run_folder(Config(), continued=False), range(200))]
    names = {f"MovementBandits-v0-20180430-000000{n}" for n in ("", *(f"-{i}" for i in range(2, 201)))}
    assert {str(folder) for folder in folders} == {f"runs/{name}" for name in names}
    while run.LOCKS:
        run.LOCKS.pop().release()
    other = run.make_run_folder(RL2Config(env="corridor:Corridor-v0"), continued=False)
    assert str(other) == "runs/rl2-Corridor-v0-20180430-000000"


@pytest.mark.parametrize(
    "typed",
    [
        "train.py --tasks 1 -W 1 -U 1 -N 2 --test_episodes 2 --compile auto --tensorboard --no_normalise --convolve",
        pytest.param("train_rl2.py --iterations 1 -N 4 --normalise=False --tensorboard=True", marks=pytest.mark.slow),
        pytest.param("train_option_critic.py --tasks 1 --rollouts 2 -N 2 --tensorboard=False", marks=pytest.mark.slow),
    ],
)
def test_the_same_command_with_c_starts_a_run_and_continues_it(command, tmp_path, monkeypatch, typed):
    monkeypatch.chdir(tmp_path)
    script, *flags = typed.split()
    out = Path("MovementBandits-v0")  # also the name of a checkpoint that comes with the package
    flags += ["--env", "MovementBandits-v0", "-T", 7, "--wandb", "disabled", "-c", "--out", out]
    code, _, err = command(script, *flags)
    assert code == 0 and "(1 done)" not in err, err
    code, _, err = command(script, *flags)
    assert code == 0 and "1 (1 done)" in err, err
    (out / "checkpoint.pt").rename(out / "thesis.pt")
    code, _, err = command(script, *flags)
    assert code == 2 and f"{out} is not empty and has no checkpoint to continue; name another folder" in err


@pytest.mark.parametrize("flags", [["-c"], []])
def test_what_was_killed_before_its_first_checkpoint_starts_again(command, tmp_path, monkeypatch, flags):
    def killed(*args):
        (tmp_path / "checkpoint.pt.tmp1234").touch()
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", killed)
        assert command("train.py", *SMALL, "--tensorboard", "--out", tmp_path)[0] == 9
    assert any(path.name.startswith("events.out") for path in tmp_path.iterdir())
    assert command("train.py", *SMALL, *flags, "--out", tmp_path)[0] == 0
    code, _, err = command("train.py", *SMALL, "--out", tmp_path)
    assert code == 2 and "continue it with -c" in err


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_as_if_it_had_never_been_killed(tmp_path):
    """`make soak` kills ten runs four times each, and all other commands."""
    tried, interrupted, identical = soak(tmp_path, runs=1, kills=3, rng=random.Random(0))
    assert tried == 3 and interrupted and identical == 1


def test_the_comparison_of_runs_finds_differences(command, tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        assert command("train.py", *SMALL, "--seed", seed, "--out", tmp_path / name)[0] == 0
    a, b = result(tmp_path / "a"), result(tmp_path / "b")
    assert same(a, a) and not same(a, b) and not same(a, a[:-1])


def test_an_interrupt_within_end_iteration_reports_what_the_checkpoint_has(command, tmp_path, monkeypatch):
    calls, take_snapshot = itertools.count(), Run._take_snapshot

    def interrupted(self):
        if next(calls) == 2:  # after the second outer iteration
            raise KeyboardInterrupt
        take_snapshot(self)

    monkeypatch.setattr(Run, "_take_snapshot", interrupted)
    code, _, err = command("train.py", *SMALL, "--tasks", 5, "--out", tmp_path)
    assert code == 130 and f"saved after 1 of 5 outer iterations; continue with -c --out {tmp_path}" in err
    assert checkpoint.load(tmp_path, [Config])["iteration"] == 1


def test_a_run_says_what_it_trains_and_which_files_there_are(command, tmp_path):
    code, out, err = command("train.py", *SMALL, "--out", tmp_path)
    first, second, *_ = err.splitlines()
    assert code == 0 and first == f"training mlsh on MovementBandits-v0, run folder: {tmp_path}"
    assert second == "outer iterations: 2, device: cpu, threads: 1, compile: off"
    assert out.endswith(f"see results.json and curves.png in {tmp_path}\n")
    code, out, err = command("train.py", "-c", "--out", tmp_path, "--tasks", 3, "--record", 1)
    assert code == 0 and "outer iterations: 3 (2 done), device" in err
    assert out.endswith(f"see results.json, curves.png and videos/ in {tmp_path}\n")


def test_two_signals_at_once_count_as_one_and_a_later_one_counts_again(monkeypatch):
    now = 100.0
    monkeypatch.setattr(process.time, "monotonic", lambda: now)
    monkeypatch.setattr(process, "last_signal", 0.0)
    with pytest.raises(KeyboardInterrupt):
        process.interrupt(signal.SIGINT, None)
    now = 101.0
    process.interrupt(signal.SIGTERM, None)
    now = 104.0
    with pytest.raises(KeyboardInterrupt):
        process.interrupt(signal.SIGINT, None)


@pytest.mark.parametrize(
    "typed",
    [
        "train.py -N 99999999",
        "train.py -T 99999999",
        "train.py -N 1 --groups 1 -T 9999999999",
        "train.py --groups 99999999",
        "train.py --test_episodes 99999999",
        "train.py --env foreign:Listed-v0 -N 999999999",
        "train_rl2.py -N 99999999",
        "benchmark.py --groups 99999999",
    ],
)
def test_what_does_not_fit_into_memory_is_refused_before_it_is_allocated(command, tmp_path, typed):
    script, *flags = typed.split()
    out = [] if script == "benchmark.py" else ["--wandb", "disabled", "--out", tmp_path / "run"]
    code, _, err = command(script, *flags, *out)
    assert (
        code == 2 and err.count("\n") == 1 and "GB of memory or more" in err and "use smaller -N, -T, --groups" in err
    )
    assert not (tmp_path / "run").exists()


def test_available_memory_is_that_of_the_machine_or_of_a_limit():
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    show = [sys.executable, "-c", "from mlsh.envs.memory import available_memory as a; print(a())"]
    command = f"ulimit -v 4000000; exec {shlex.join(show)}"
    run = subprocess.run(["bash", "-c", command], cwd=CODE, capture_output=True, text=True)
    assert int(run.stdout) == min(installed, 4_096_000_000), run.stderr
    assert 0 < available_memory() <= installed


@pytest.mark.parametrize("error", [MemoryError("too much"), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_is_a_user_error(error, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        errors.run_command(main)
    assert stop.value.code == 2 and "use smaller -N" in capsys.readouterr().err


def shell(command, folder, encoding=None):
    """Run a command line in which {python} is the interpreter and {tiny} are the flags of a small run."""
    command = command.format(python=sys.executable, tiny=shlex.join([*SMALL, "--out", str(folder)]))
    return subprocess.run(["bash", "-c", command], cwd=CODE, capture_output=True, text=True, encoding=encoding)


def test_a_reader_that_stops_early_is_no_error(tmp_path):
    run = shell("{python} train.py --help | head -1", tmp_path)
    assert run.stdout.startswith("usage") and not run.stderr


@pytest.mark.parametrize(
    ("redirected", "code"),
    [
        ("| head -c 1; exit ${{PIPESTATUS[0]}}", 0),
        pytest.param("2>&1 | true; exit ${{PIPESTATUS[0]}}", 0, marks=SLOW),
        (">&- 2>&-", 0),
        ("> /dev/full", 2),
        pytest.param("2> /dev/full", 2, marks=SLOW),
    ],
)
def test_output_that_nobody_takes_loses_no_result(tmp_path, redirected, code):
    run = shell(f"{{python}} train.py {{tiny}} --tensorboard {redirected}", tmp_path)
    assert run.returncode == code and "Traceback" not in run.stderr
    assert (tmp_path / "results.json").exists() and (tmp_path / "curves.png").exists()
    if redirected == "> /dev/full":
        assert run.stderr.splitlines()[-1].startswith("train.py: error: not all output could be printed (No space left")


def test_any_encoding_of_the_terminal_will_do(tmp_path):
    commands = "{python} train.py {tiny} && {python} report.py --help"
    run = shell(f"export PYTHONIOENCODING=ascii; {commands}", tmp_path, "ascii")
    assert run.returncode == 0 and "Error" not in run.stderr and " ? " in run.stdout


SENT_WHILE_LOADING = """
import os, signal, sys
signal.signal(signal.{name}, signal.SIG_DFL)  # it may be ignored where the tests run
sys.argv = [{script!r}]
class Finder:
    def find_spec(self, name, *args):
        if name == "torch":
            os.kill(os.getpid(), signal.{name})
sys.meta_path.insert(0, Finder())
sys.path.insert(0, {code!r})
exec(open({script!r}).read())
"""


@pytest.mark.parametrize(
    ("name", "script"), [("SIGINT", "train.py"), ("SIGTERM", "report.py"), ("SIGHUP", "render.py")]
)
def test_a_signal_while_the_program_loads_is_one_line(name, script):
    program = SENT_WHILE_LOADING.format(script=str(CODE / script), name=name, code=str(CODE))
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 128 + getattr(signal, name) and run.stderr == f"{script}: stopped by {name}\n"


def test_a_program_that_imports_the_package_keeps_its_signal_handlers():
    program = "from signal import *; before = getsignal(SIGINT); import mlsh; print(getsignal(SIGINT) is before)"
    run = subprocess.run([sys.executable, "-c", program], cwd=CODE, capture_output=True, text=True)
    assert run.stdout == "True\n", run.stderr


def test_only_our_own_commands_count_as_commands(tmp_path, monkeypatch):
    for path in (*CODE.glob("*.py"), *CODE.glob("studies/[a-z]*.py")):
        monkeypatch.setattr(sys, "argv", [str(path)])
        assert process.is_command(), path
    (tmp_path / "x.py").write_text("import mlsh\n\ndef run_command(x):\n    pass\n")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "x.py")])
    assert not process.is_command()


def test_an_id_with_a_namespace_has_a_run_folder_of_its_own(tmp_path):
    name = run.new_folder(Config(env="mine:of/Walk-v0"), tmp_path)
    assert (tmp_path / name).is_dir() and str(name).startswith("runs/of-Walk-v0-")


def test_sub_policies_begin_with_the_spread_that_the_flag_says(command, tmp_path):
    flags = ["--sub_spread", 0.5, "-W", 1, "-U", 0, "--record", 0, "--out", tmp_path]
    assert command("train.py", *SMALL, *flags)[0] == 0
    first, second = checkpoint.load(tmp_path, [Config])["sub_policies"]["policy_bias"]
    assert first.abs().max() > 0.05 and first.equal(-second)


def test_outer_iterations_are_saved_although_memory_ends(command, tmp_path, monkeypatch):
    def tasks_of(env, streams, iteration, groups):
        if iteration:
            raise MemoryError
        return balanced_tasks(env, streams, iteration, groups)

    monkeypatch.setattr("mlsh.sampling.balanced_tasks", tasks_of)
    code, _, _ = command("train.py", *TINY, "--record", 0, "--save_seconds", 1e6, "--out", tmp_path)
    assert code == 2 and checkpoint.load(tmp_path, [Config])["iteration"] == 1


def test_an_environment_that_fails_in_the_final_test_is_said_to_fail_there(command, tmp_path, monkeypatch):
    def fail(*args):
        raise EnvironmentFailed("it failed")

    monkeypatch.setattr("mlsh.meta_test.final_test", fail)
    code, _, err = command("train.py", *TINY, "--record", 0, "--out", tmp_path)
    assert code == 2 and "it failed, in the final test; the state before it is saved" in err


def test_a_run_under_nohup_outlives_the_terminal(monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda number, handler: handled.append(number))
    for of_terminal, expected in ((signal.SIG_IGN, False), (signal.SIG_DFL, True)):
        handled = []
        monkeypatch.setattr(signal, "getsignal", lambda number, of_terminal=of_terminal: of_terminal)
        process.handle_signals(process.interrupt)
        assert (signal.SIGHUP in handled) == expected and signal.SIGINT in handled


def test_a_signal_that_the_system_repeats_counts_once(monkeypatch):
    monkeypatch.setattr(process, "last_signal", -100.0)
    before = signal.getsignal(signal.SIGXCPU)
    try:
        with pytest.raises(KeyboardInterrupt):
            process.interrupt(signal.SIGXCPU, None)
        assert signal.getsignal(signal.SIGXCPU) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGXCPU, before)


@pytest.mark.parametrize("missing", ["pygame-ce", "wandb"])
def test_a_library_that_is_missing_is_no_traceback(command, tmp_path, monkeypatch, missing):
    def version(package):
        if package == missing:
            raise run.PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr(run, "version", version)
    run.describe_machine.cache_clear()
    flags = SMALL
    if missing == "wandb":
        monkeypatch.setitem(sys.modules, "mlsh.runs.tracking", None)  # as if wandb could not be imported
        flags = [*SMALL, "--wandb", "auto"]
    code, out, err = command("train.py", *flags, "--out", tmp_path)
    run.describe_machine.cache_clear()
    assert code == 0 and "see results.json" in out
    assert ("wandb did not start, continuing without it" in err) == (missing == "wandb")
    assert json.loads((tmp_path / "config.json").read_text())["machine"]["packages"][missing] is None


def test_a_tilde_is_the_home_folder_wherever_it_stands(command, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command("train.py", *SMALL, "--out", "~/a")[0] == 0
    assert command("train.py", "-c", "--out=~/a", "--tasks", 3)[0] == 0
    assert checkpoint.load(tmp_path / "a", [Config])["iteration"] == 3


def test_an_environment_that_changes_the_working_folder_changes_no_path(command, tmp_path, monkeypatch):
    (tmp_path / "start").mkdir()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "start")
    monkeypatch.syspath_prepend(CODE)
    monkeypatch.setenv("GOES_TO", str(tmp_path / "other"))
    flags = [*SMALL, "--env", "faulty:GoesElsewhere-v0"]
    for out, shown in ((["--out", "a"], "a"), ([], "runs")):
        monkeypatch.chdir(tmp_path / "start")
        code, printed, err = command("train.py", *flags, *out)
        assert code == 0 and f"run folder: {shown}" in err and f"curves.png in {shown}" in printed, err
    monkeypatch.chdir(tmp_path / "start")
    assert command("evaluate.py", "a", "--updates", 1, "--seeds", 1, "-N", 2, "--out", "b")[0] == 0
    assert {path.name for path in (tmp_path / "start").iterdir()} == {"a", "b", "runs"}
    assert not [*(tmp_path / "other").iterdir()]
