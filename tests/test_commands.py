"""The commands as a user types them."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys

import imageio.v3 as iio
import pytest
import torch

from conftest import CODE, TINY, wait_for_rows
from mlsh import parallel
from mlsh.config import Config
from mlsh.envs import make_env
from mlsh.models import Hierarchy
from mlsh.runs import checkpoint
from mlsh.sampling import Streams


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def subs(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["sub_policies"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def initial_subs(cfg):
    agent = Hierarchy.build(cfg, make_env(cfg, 1))
    agent.sub_policies.reset(Streams(cfg.seed, range(cfg.num_sub_policies))(0, "sub-policies"))
    return agent.sub_policies.state_dict()


def test_training_fills_the_run_folder(command, tmp_path):
    code, out, err = command("train.py", *TINY, "--record", 1, "--seed", 3, "--out", tmp_path)
    assert code == 0, err
    assert "task 0 (orange): return" in out and "task 1 (blue)" in out
    names = {"checkpoint.pt", "config.json", "curves.png", "metrics.csv", "results.json", "videos", ".lock"}
    assert {path.name for path in tmp_path.iterdir()} == names
    moments = ("pretrain", "warmup", "afterjoint")
    videos = {f"0000{i}-{moment}-video-{task}.gif" for i in (0, 1) for moment in moments for task in (0, 1)}
    assert {path.name for path in (tmp_path / "videos").iterdir()} == videos
    metrics = rows(tmp_path)
    assert [(r["iteration"], r["group"]) for r in metrics] == [("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")]
    assert {r["task"] for r in metrics[:2]} == {r["task"] for r in metrics[2:]} == {"0", "1"}
    a_rollout = 2 * 2 * 7  # G · N · T
    assert metrics[-1]["env_steps"] == str(2 * (2 + 1 + 3) * a_rollout)  # W + U, and three that only measure
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["env_steps"] == 2 * 6 * a_rollout and results["seconds"] > 0 and results["seed"] == 3
    assert [row["task"] for row in results["test"]] == [0, 1]


def test_continuous_actions_train_and_continue(command, tmp_path):
    flags = [*TINY, "--env", "AntBandits-v1", "--record", 1]
    code, out, err = command("train.py", *flags, "--out", tmp_path)
    assert code == 0, err
    assert "task 0 (right)" in out and "task 1 (up)" in out
    films = len(list((tmp_path / "videos").iterdir()))
    assert films == 12 or (films == 0 and err.count("no videos: no OpenGL") == 1)
    assert {row["diverged"] for row in rows(tmp_path)} == {"0"}
    before, normaliser = subs(tmp_path), checkpoint.load(tmp_path, [Config])["normaliser"]
    assert normaliser["count"] == 3 * 2 * 2 * 7  # the first observations, and the two joint iterations'
    assert command("train.py", "-c", "--out", tmp_path, "--tasks", 3, "--record", 0)[0] == 0
    after = subs(tmp_path)
    assert not any(torch.equal(before[name], after[name]) for name in before)


def test_same_seed_same_run_and_another_seed_another(command, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert command("train.py", *TINY, "--record", 0, "--seed", seed, "--out", tmp_path / name)[0] == 0
    assert rows(tmp_path / "a") == rows(tmp_path / "b") != rows(tmp_path / "c")
    assert same(subs(tmp_path / "a"), subs(tmp_path / "b"))


def test_warm_up_leaves_the_sub_policies_as_they_are(command, tmp_path):
    assert command("train.py", *TINY, "-U", 0, "--out", tmp_path / "warm-up")[0] == 0
    cfg = checkpoint.load(tmp_path / "warm-up", [Config])["config"]
    assert same(subs(tmp_path / "warm-up"), initial_subs(cfg))
    assert command("train.py", *TINY, "-W", 0, "--out", tmp_path / "joint")[0] == 0
    trained, initial = subs(tmp_path / "joint"), initial_subs(cfg)
    assert not any(torch.equal(trained[k], initial[k]) for k in trained)


@pytest.mark.parametrize(
    "flags",
    [
        "--num_sub_policies 1",
        "--num_sub_policies 3",
        "--high_len 1",
        "--high_len 99",
        "--groups 1",
        "--env MovementBandits4-v0",
    ],
)
def test_ablations_run(command, tmp_path, flags):
    code, _, err = command("train.py", *TINY, *flags.split(), "--out", tmp_path)
    assert code == 0, err
    for row in rows(tmp_path):
        shares = [float(x) for name, x in row.items() if name.startswith("share_")]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert float(row["env_steps"]) > 0 and 0 <= float(row["trained_reward"]) <= 7


def test_a_learning_rate_that_falls_counts_from_the_second_outer_iteration_on(command, tmp_path):
    for name, decay, tasks in (("a", 1, 1), ("b", 0.5, 1), ("c", 1, 2), ("d", 0.5, 2)):
        flags = ("--sub_lr_decay", decay, "--tasks", tasks, "--out", tmp_path / name)
        assert command("train.py", *TINY, *flags, "--record", 0)[0] == 0
    assert same(subs(tmp_path / "a"), subs(tmp_path / "b")) and not same(subs(tmp_path / "c"), subs(tmp_path / "d"))


def test_continuing_ends_where_an_uninterrupted_run_ends(command, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = (*TINY, "--sub_lr_decay", 0.5)
    assert command("train.py", *flags, "--tasks", 4, "--out", whole)[0] == 0
    assert command("train.py", *flags, "--tasks", 2, "--out", parts)[0] == 0
    code, _, err = command("train.py", "-c", "--tasks", 4, "--out", parts)
    assert code == 0, err
    assert rows(whole) == rows(parts)
    a, b = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (whole, parts))
    assert same(a["sub_policies"], b["sub_policies"]) and same(a["normaliser"], b["normaliser"])
    for one, two in zip(a["optimizer"]["state"].values(), b["optimizer"]["state"].values(), strict=True):
        assert same(one, two)
    assert a["optimizer"]["param_groups"][0]["lr"] == a["config"]["sub_lr"] * 0.5**3
    tests = [json.loads((folder / "results.json").read_text())["test"] for folder in (whole, parts)]
    assert tests[0] == tests[1]


@pytest.mark.parametrize("env", ["MovementBandits-v0", "foreign:Terminated-v0"])
def test_rl2_continues_too(command, tmp_path, env):
    flags = ["--env", env, *"-N 4 -K 1 -T 7 --episodes 2 --wandb disabled".split()]
    assert command("train_rl2.py", *flags, "--iterations", 4, "--out", tmp_path / "whole")[0] == 0
    assert command("train_rl2.py", *flags, "--iterations", 2, "--out", tmp_path / "parts")[0] == 0
    code, _, err = command("train_rl2.py", "-c", "--iterations", 4, "--out", tmp_path / "parts")
    assert code == 0, err
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts") and len(rows(tmp_path / "whole")) >= 4
    a, b = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["policy"] for name in ("whole", "parts"))
    assert same(a, b) and ("normaliser.mean" in a) == (env != "MovementBandits-v0")  # which is scaled already


def test_rl2_is_no_run_of_several_processes(command, monkeypatch):
    monkeypatch.setattr(parallel, "SIZE", 2)
    code, _, err = command("train_rl2.py")
    assert code == 2 and "start it without torchrun" in err


def test_the_normaliser_starts_from_the_first_rollout(command, tmp_path):
    flags = ["--normalise", "-W", 1, "-U", 0, "--tasks", 1]
    assert command("train.py", *TINY, *flags, "--out", tmp_path / "a")[0] == 0
    normaliser = checkpoint.load(tmp_path / "a", [Config])["normaliser"]
    assert normaliser["count"] == 2 * 2 * 7 and 0.4 < normaliser["mean"][0] < 0.6  # the untrained agent's, ÷ 400
    a_rollout = 2 * 2 * 7
    assert rows(tmp_path / "a")[0]["env_steps"] == str(5 * a_rollout)  # that one, three looks, and one learned from
    assert command("train.py", *TINY, *flags, "--num_sub_policies", 0, "--out", tmp_path / "flat")[0] == 0
    assert checkpoint.load(tmp_path / "flat", [Config])["normaliser"]["count"] == 2 * a_rollout  # goes on with training


def test_continuing_without_metrics_and_with_another_wandb_part(command, tmp_path):
    offline = [*TINY[:-1], "offline"]
    assert command("train.py", *offline, "--out", tmp_path)[0] == 0
    (tmp_path / "metrics.csv").unlink()
    code, _, err = command("train.py", "-c", "--out", tmp_path, "--tasks", 3)
    assert code == 0, err
    assert {row["iteration"] for row in rows(tmp_path)} == {"2"}
    run_id = checkpoint.load(tmp_path, [Config])["run_id"]
    parts = list((tmp_path / "wandb").glob(f"offline-run-*-{run_id}"))
    assert len(parts) == 2 and f"offline-run-*-{run_id}" in err


def saved_by(sent, folder):
    """A run in `folder` that the signal has ended: its exit code, and the outer iterations that it has saved."""
    flags = [*TINY, "--compile", "off", "--tasks", "1000000", "--out", str(folder)]
    flags[flags.index("disabled")] = "offline"
    run = subprocess.Popen([sys.executable, "train.py", *flags], cwd=CODE, stderr=subprocess.PIPE, text=True)
    wait_for_rows(run, folder, 7)
    run.send_signal(sent)
    try:
        _, err = run.communicate(timeout=60)
    finally:
        run.kill()  # if it did not listen
    done = checkpoint.load(folder, [Config])["iteration"]
    assert "Traceback" not in err and f"saved after {done} of" in err
    assert done >= 3 and (folder / "curves.png").exists()
    return run.returncode, done


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU])
def test_a_signal_saves(tmp_path, sent):
    if sent == signal.SIGHUP and signal.getsignal(sent) == signal.SIG_IGN:
        pytest.skip("the tests run under nohup, which runs outlive")
    assert saved_by(sent, tmp_path)[0] == 128 + sent


def test_a_signal_saves_and_the_run_continues(tmp_path):
    code, done = saved_by(signal.SIGUSR1, tmp_path)
    assert code == 128 + signal.SIGUSR1
    go_on = [sys.executable, "train.py", "-c", "--out", str(tmp_path), "--tasks", str(done + 1), "--wandb", "disabled"]
    run = subprocess.run(go_on, cwd=CODE, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert [int(r["iteration"]) for r in rows(tmp_path)] == [i for i in range(done + 1) for _ in range(2)]
    whole = [sys.executable, "train.py", *TINY, "--tasks", str(done + 1), "--out", str(tmp_path / "whole")]
    subprocess.run(whole, cwd=CODE, check=True, capture_output=True)
    assert same(subs(tmp_path), subs(tmp_path / "whole"))


def test_what_is_refused_leaves_nothing_behind(command, tmp_path):
    used = tmp_path / "used"
    used.mkdir()
    (used / "thesis.txt").write_text("mine")
    refused = {
        "-W -1": "-W is -1",
        "--env NoSuchThing-v0": "NoSuchThing",
        "--env CartPole-v1": "no task distribution",
        "--device abacus": "abacus",
        f"--out {used}": "not empty",
        f"-c --out {used}": "no checkpoint",
        "-N many": "many",
        "--blind 6": "use less than 6",
        "--env MovementBanditsConv-v0 --blind 1": "use 0",
        "--master_sees 7": "at most 6",
        "--env MovementBanditsConv-v0 --master_sees 1": "use 0",
        "--no_such_flag 1": "no_such_flag",
    }
    for flags, reason in refused.items():
        out = [] if "--out" in flags else ["--out", tmp_path / "new"]
        code, _, err = command("train.py", *flags.split(), "--wandb", "disabled", *out)
        assert code not in (0, None), flags
        assert reason in err and "Traceback" not in err, flags
    assert [path.name for path in tmp_path.iterdir()] == ["used"]
    assert [path.name for path in used.iterdir()] == ["thesis.txt"]


def test_one_line_errors_from_the_shell(tmp_path):
    run = subprocess.run([sys.executable, "train.py", "--gamma", "2"], cwd=CODE, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr == "train.py: error: --gamma is 2.0: use a number from 0 to 1\n"


UNREADABLE = {
    "train.py -N many": "-N/--N: invalid literal for int()",
    "train_rl2.py --tasks 3": "Unrecognized options: --tasks",
    "train_option_critic.py --shared some": "invalid choice 'some' for argument '--shared'",
    "evaluate.py --seeds x": "--seeds: invalid literal",
    "render.py": ": PATH Run folder or checkpoint",
    "report.py --figure x": "did you mean --figures?",
    "benchmark.py --groups x": "--groups: ",
    "studies/bandits.py --figure x": "did you mean --figures?",
}


@pytest.mark.parametrize("typed", UNREADABLE)
def test_what_cannot_be_read_is_one_line_of_every_script(command, typed):
    script, *flags = typed.split()
    code, out, err = command(script, *flags)
    assert code == 2 and not out
    assert err.startswith(f"{(CODE / script).name}: error: ") and err.count("\n") == 1 and UNREADABLE[typed] in err


def test_rendering_writes_beside_the_run_or_where_one_is(command, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(CODE)
    run = tmp_path / "assets"
    assert command("train.py", *TINY, "--out", run)[0] == 0
    shutil.copy(run / "checkpoint.pt", run / "alone.pt")
    films = {"task-0-untrained.gif", "task-0-trained.gif"}
    for named, folder in ((run, run), (run / "checkpoint.pt", run), (run / "alone.pt", here)):
        assert command("render.py", named)[0] == 0
        assert {path for path in tmp_path.rglob("task-*.gif")} == {folder / film for film in films}
        for film in films:
            (folder / film).unlink()


def test_rendering(command, tmp_path):
    assert command("train.py", *TINY, "--out", tmp_path / "run")[0] == 0
    code, out, err = command("render.py", tmp_path / "run", "--task", 1, "--out", tmp_path / "x.gif", "--episodes", 2)
    assert code == 0, err
    for name in ("x-untrained.gif", "x-trained.gif"):
        assert str(tmp_path / name) in out
        assert iio.imread(tmp_path / name, index=None).shape[1:] == (520, 520, 3)
    (tmp_path / "run" / "checkpoint.pt").rename(tmp_path / "alone.pt")
    for more, frames in (([], 3), (["-T", 11], 4)):  # of 8 and 12
        assert command("render.py", tmp_path / "alone.pt", "--out", tmp_path / "y.mp4", "--every", 3, *more)[0] == 0
        assert len(iio.imread(tmp_path / "y-trained.mp4")) == frames
    refused = {
        ("--task", 7): "--task is 7: use 0, 1",
        ("--task", "true"): "use 0, 1",
        ("--out", tmp_path / "x.jpeg"): ".gif or .mp4",
        ("--out", tmp_path / "no" / "x.gif"): "no folder",
        ("--episodes", 0): "--episodes is 0",
        ("--every", 0): "--every is 0",
        ("--env", "MovementBandits4-v0"): "does not fit",
        ("--updates", -1): "--updates is -1",
        ("--master_sees", 7): "--master_sees is 7",
        ("--follow",): "--follow is for MuJoCo families",
    }
    for flags, reason in refused.items():
        code, _, err = command("render.py", tmp_path / "alone.pt", *flags)
        assert code and reason in err and "Traceback" not in err
    assert "no checkpoint" in command("render.py", tmp_path / "nothing.pt")[2]


@pytest.mark.parametrize("home", [pytest.param(".", marks=pytest.mark.slow), "/dev/null/none"])
def test_no_environment_variables_are_needed(tmp_path, home):
    """No display, no wandb account, no network, no home to write to: an empty environment will do."""
    run = subprocess.run(
        [sys.executable, "train.py", *TINY[:-2], "--record", "1", "--out", str(tmp_path / "run")],
        cwd=CODE,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path / home)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "wandb is offline" in run.stderr
    assert not any(word in run.stderr for word in ("Warning", "INFO", "ERROR", "mkdir", "wandb failed"))


@pytest.mark.slow
def test_scaling(monkeypatch, capsys):
    """The runs of torchrun are real, and those of single processes are made up."""
    monkeypatch.syspath_prepend(CODE)
    import benchmark

    whole_loop = benchmark.whole_loop

    def mostly_made_up(flags, tasks, launcher=(), copies=1, **environment):
        return whole_loop(flags, tasks, launcher, **environment) if launcher else [(1000.0, 0.5)] * copies

    monkeypatch.setattr(benchmark, "whole_loop", mostly_made_up)
    benchmark.compare_processes(TINY, Config(groups=2), benchmark.Args(processes=2, tasks=2, repeats=1))
    first, *rows, last = capsys.readouterr().out.splitlines()
    speeds = [float(row[26:36].replace(",", "")) for row in rows]
    assert first.startswith("MovementBandits-v0 --groups 2") and speeds[:2] == [2000, 4000] and speeds[2] > 0
    assert float(last.split()[2]) == pytest.approx(100 * speeds[2] / speeds[1], abs=1)


def test_loops_in_turn(monkeypatch, capsys):
    monkeypatch.syspath_prepend(CODE)
    import benchmark

    asked = []

    def whole_loop(flags, tasks, **environment):
        asked.append((*flags, tasks, environment["OMP_NUM_THREADS"]))
        return [(100.0 * len(asked), 2)]

    monkeypatch.setattr(benchmark, "whole_loop", whole_loop)
    ways = [(["--groups", str(groups)], Config(groups=groups, compile="on")) for groups in (1, 8)]
    benchmark.measure_in_turn(ways, benchmark.Args(tasks=3, repeats=2, threads=(1, 2)))
    round_ = [("--groups", groups, "--sim_threads", n, 3, n) for groups in "18" for n in "12"]
    assert asked == round_ * 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[5] == (
        "MovementBandits-v0 --groups 1 --compile on, 2 threads: 300 env steps/s; median of 2: 200 (100 to 300)"
    )


def test_every_second_of_a_loop_counts_in_one_part(monkeypatch):
    monkeypatch.syspath_prepend(CODE)
    import benchmark

    now, spent = [0.0], {"inner": 0.0, "outer": 0.0}
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now[0])

    def wait(seconds, *calls):
        now[0] += seconds
        return sum(call() for call in calls) + seconds

    inner, outer, failing = (
        benchmark.timed(function, part, spent, "cpu")
        for function, part in ((lambda: wait(2), "inner"), (wait, "outer"), (lambda: wait(1, lambda: 1 / 0), "inner"))
    )
    assert outer(3, inner, lambda: wait(4), lambda: outer(5, inner)) == 16
    assert spent == {"inner": 4, "outer": 12}
    with pytest.raises(ZeroDivisionError):
        outer(6, failing)
    assert spent == {"inner": 5, "outer": 18}


def test_benchmark(command):
    code, out, err = command("benchmark.py", "--groups", 1, "--tasks", 2)
    assert code == 0, err
    *lines, last = out.splitlines()
    seconds, shares = zip(*((float(line.split()[-4]), int(line.split()[-2])) for line in lines[1:]), strict=True)
    assert out.startswith("MovementBandits-v0 --groups 1, ") and "env steps/s" in out
    assert len(shares) == 6 and shares[-1] == 100 and abs(sum(shares[:-1]) - 100) <= 3
    assert min(shares) >= 0 and min(seconds[:4]) > 0
    # by hand, of 64 rollouts of 50 steps: 21 for playing, 53 for the masters' updates; 9 for a joint one, not padded
    assert 83 <= int(last.split()[0]) <= 92 and int(last.split()[-3].replace(",", "")) > 1e5
    for flag, value, least in (("--tasks", 1, 2), ("--repeats", -1, 0), ("--groups", 0, 1), ("--processes", -1, 0)):
        code, _, err = command("benchmark.py", flag, value)
        assert code == 2 and f"{flag} is {value}: use {least} or more" in err
    code, _, err = command("benchmark.py", "--groups", 2, "--processes", 3)
    assert code == 2 and "use 2 to 2" in err
    for more in ((), ("--repeats", 1, "--processes", 2), ("--repeats", 1, "--sim_threads", 1)):
        code, _, err = command("benchmark.py", "--threads", 1, *more)
        assert code == 2 and "--threads needs --repeats" in err
    code, out, err = command("benchmark.py", "--env", "MovementBandits-v0", "Nonsense-v0")
    assert code == 2 and not out and "Nonsense" in err
