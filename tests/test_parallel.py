"""torchrun: several processes are one run."""

import os
import signal
import socket
import subprocess
import sys

import pytest
import torch

from conftest import CODE, TINY, wait_for_rows, wait_until
from mlsh import parallel
from mlsh.config import Config
from mlsh.errors import UserError
from mlsh.runs import checkpoint
from mlsh.runs.metrics import read_metrics

FLAGS = [*TINY, "--groups", "4", "-U", "2", "--num_sub_policies", "3", "--normalise", "--target_kl", "0.01"]
FLAGS += ["--sub_lr_decay", "0.5"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
VERY_SLOW = (pytest.mark.slow, pytest.mark.very_slow)


def start(launcher, *flags):
    command = [*launcher, "train.py", *map(str, flags)]
    return subprocess.Popen(
        command, cwd=CODE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ONE_THREAD
    )


def torchrun(processes):
    return [*TORCHRUN, "--standalone", "--nproc-per-node", str(processes)]


def finish(*runs):
    for run in runs:
        _, err = run.communicate(timeout=200)
        assert run.returncode == 0, err


def assert_same_result(a, b):
    """To the order of floating-point sums."""
    one, two = checkpoint.load(a, [Config]), checkpoint.load(b, [Config])
    for part in ("sub_policies", "normaliser"):
        for name, tensor in one[part].items():
            torch.testing.assert_close(tensor, two[part][name], rtol=1e-3, atol=1e-5)
    rows = [read_metrics(folder) for folder in (a, b)]
    assert len(rows[0]) == len(rows[1]) == 8
    for row, other in zip(*rows, strict=True):
        for name in row.keys() - {"seconds"}:
            assert float(row[name]) == pytest.approx(float(other[name]), rel=1e-2, abs=1e-4), name


@pytest.fixture
def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    finish(start([sys.executable], *FLAGS, "--record", 1, "--out", folder))
    return folder


@pytest.mark.parametrize("processes", [2, *(pytest.param(n, marks=VERY_SLOW) for n in (1, 4))])
def test_processes_share_one_result(alone, tmp_path, processes):
    finish(start(torchrun(processes), *FLAGS, "--record", 1, "--out", tmp_path))
    assert_same_result(alone, tmp_path)
    videos = [sorted(path.name for path in (folder / "videos").iterdir()) for folder in (alone, tmp_path)]
    assert videos[0] == videos[1] and len(videos[0]) == 12


@pytest.mark.slow
@pytest.mark.very_slow
def test_groups_that_do_not_divide_and_two_machines(alone, tmp_path, free_port):
    """Two launchers, as on two machines: one process on the first, two on the second, for four groups."""
    nodes = f"--nnodes 2 --master-addr 127.0.0.1 --master-port {free_port} --nproc-per-node"
    nodes = [*TORCHRUN, *nodes.split()]
    flags = [*FLAGS, "--groups", 3, "--record", 0]
    pair = [start([*nodes, "1", "--node-rank", str(rank)], *flags, "--out", tmp_path / "two") for rank in (0, 1)]
    finish(*pair)
    finish(start([sys.executable], *flags, "--out", tmp_path / "one"))
    a, b = (checkpoint.load(tmp_path / name, [Config])["sub_policies"]["weight1"] for name in ("one", "two"))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("killed", [0, pytest.param(1, marks=VERY_SLOW)])
def test_a_process_that_dies_ends_the_run_and_another_number_goes_on(tmp_path, killed):
    run = start(torchrun(2), *FLAGS, "--tasks", 10**6, "--save_seconds", 0, "--record", 0, "--out", tmp_path)
    wait_for_rows(run, tmp_path, 9)  # 4 rows per outer iteration; a checkpoint is saved after its rows
    children = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True).stdout.split()
    assert len(children) == 2
    os.kill(int(children[killed]), signal.SIGKILL)
    _, err = run.communicate(timeout=100)
    assert run.returncode != 0 and any(x in err for x in ("has lost another process", "was stopped in", "saved after"))
    assert f"continue with -c --out {tmp_path}" in err or killed == 1
    done = checkpoint.load(tmp_path, [Config])["iteration"]
    assert done >= 2
    finish(start([sys.executable], "-c", "--tasks", done + 1, "--out", tmp_path))
    assert [int(row["iteration"]) for row in read_metrics(tmp_path)] == [i for i in range(done + 1) for _ in range(4)]


@pytest.mark.slow
def test_a_sub_policy_that_is_not_finite_ends_all(tmp_path):
    """The first process finds it in the one that it learns, and tells."""
    run = start(torchrun(2), *FLAGS, "--sub_lr", 1e38, "--out", tmp_path)
    _, err = run.communicate(timeout=100)
    assert run.returncode != 0 and "sub-policy 0 is not finite after an update, in outer iteration 0" in err, err
    assert "sub-policy 1" not in err and "has lost" not in err  # the other process has heard of it


@pytest.mark.slow
def test_the_final_test_of_flat_policies_needs_one_process_only(tmp_path):
    """Their normaliser learns in the final test, which the first process plays alone."""
    flags = [*TINY, "--num_sub_policies", 0, "-U", 0, "--normalise", "--record", 0]
    finish(start(torchrun(2), *flags, "--out", tmp_path))
    assert (tmp_path / "results.json").exists()


@pytest.mark.slow
def test_what_the_first_process_refuses_ends_all(tmp_path):
    used = tmp_path / "used"
    used.mkdir()
    (used / "thesis.txt").touch()
    for flags, reason in (
        (["--groups", 1], "2 processes for 1 task groups; use --groups 2 or more"),
        (["--gamma", 2], "--gamma is 2.0"),
        (["-c", "--out", used], "is not empty and has no checkpoint"),
    ):
        run = start(torchrun(2), *TINY, "--out", tmp_path / "new", *flags)
        _, err = run.communicate(timeout=100)
        assert run.returncode != 0 and reason in err
        assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.very_slow
def test_a_warning_that_torchrun_passes_on_saves_and_the_same_command_continues(tmp_path):
    launcher = [*torchrun(2), "--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1"]
    flags = [*FLAGS, "--tasks", 10**6, "--record", 0, "-c", "--out", tmp_path]
    run = start(launcher, *flags)
    wait_for_rows(run, tmp_path, 8)
    run.send_signal(signal.SIGUSR1)
    _, err = run.communicate(timeout=100)
    done = checkpoint.load(tmp_path, [Config])["iteration"]
    assert run.returncode == 1 and f"saved after {done} of" in err  # torchrun's own code
    finish(start(launcher, *flags, "--tasks", done + 1))
    assert len(read_metrics(tmp_path)) == 4 * (done + 1)


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "", "WORLD_SIZE": ""},
        {"RANK": "1"},
        pytest.param({"RANK": "one"}, marks=pytest.mark.slow),
        pytest.param({"WORLD_SIZE": "0"}, marks=pytest.mark.slow),
    ],
)
def test_variables_that_name_no_processes_are_refused_or_empty(tmp_path, monkeypatch, variables):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    program = (
        "from mlsh import errors, parallel; errors.run_command(parallel.start); print(parallel.RANK, parallel.SIZE)"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=CODE, capture_output=True, text=True)
    if "" in variables.values():
        assert run.returncode == 0 and run.stdout == "0 1\n"
    else:
        ((name, value),) = variables.items()
        assert run.returncode == 2 and run.stderr.count("\n") == 1 and f"{name} is {value}" in run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train.py", "train_rl2.py", "train_option_critic.py"])
def test_no_command_trains_with_a_stray_rank(command, tmp_path, monkeypatch, script):
    monkeypatch.setattr(parallel, "RANK", 1)
    code, _, err = command(script, "--wandb", "disabled", "--out", tmp_path / "run")
    assert code == 2 and "RANK is " in err and not (tmp_path / "run").exists()


def start_by_hand(port, *of_each):
    """Start one process for each list of flags, of a run of two, without torchrun."""
    at = ONE_THREAD | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, "train.py", *map(str, flags)],
            **{"cwd": CODE, "env": at | {"RANK": str(rank)}, "stderr": subprocess.PIPE, "text": True},
        )
        for rank, flags in enumerate(of_each)
    ]


def test_processes_with_different_flags_are_refused(tmp_path, free_port):
    flags = [*FLAGS, "--out", tmp_path / "run"]
    first, second = start_by_hand(free_port, [*flags, "--seed", 1], [*flags, "--seed", 2])
    _, err = first.communicate(timeout=100)
    assert first.returncode == 2 and second.wait(timeout=100)  # it is aborted if the first has gone before it could end
    assert "process 1 has another command" in err and err.count("\n") == 1 and not (tmp_path / "run").exists()


def test_processes_with_different_code_are_refused(monkeypatch):
    monkeypatch.setattr(parallel, "SIZE", 2)
    monkeypatch.setattr(parallel, "gather", lambda x: [x, {"code": "b"}])
    monkeypatch.setattr(parallel, "from_first", lambda call: call())
    with pytest.raises(UserError, match="process 1 has another code .b. than process 0 .a."):
        parallel.refuse_differences(code="a")


@pytest.mark.parametrize("sent", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_process_that_waits_for_another_one_hears_signals(tmp_path, free_port, sent):
    (run,) = start_by_hand(free_port, [*FLAGS, "--out", tmp_path / "run"])

    def waits():
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", free_port)) == 0

    try:
        wait_until(run, waits)
        run.send_signal(sent)
        _, err = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 128 + sent and err == f"train.py: stopped by {sent.name}\n"
