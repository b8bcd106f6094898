"""evaluate.py as a user types it."""

import csv

import numpy as np
import pytest
import torch

from conftest import CODE, TINY
from evaluate import locked
from mlsh import meta_test
from mlsh.config import Config
from mlsh.envs import make_env
from mlsh.models import Hierarchy
from mlsh.outcome import Outcome
from mlsh.rollout import collect
from mlsh.rollout import evaluate as play
from mlsh.runs import checkpoint
from mlsh.sampling import Streams

RL2 = "--env MovementBandits-v0 -N 4 --iterations 2 -K 1 -T 7 --episodes 3 --wandb disabled".split()


def train(command, out, *flags):
    code, _, err = command("train.py", *TINY, "--record", 0, "--out", out, *flags)
    assert code == 0, err
    return out


def adaptation(folder):
    with open(folder / "adaptation.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_every_method_is_a_line(command, tmp_path):
    mlsh = train(command, tmp_path / "mlsh")
    shared = train(command, tmp_path / "shared", "--num_sub_policies", 1, "-W", 0)
    scratch = train(command, tmp_path / "scratch", "--num_sub_policies", 0, "-U", 0)
    assert command("train_rl2.py", *RL2, "--out", tmp_path / "rl2")[0] == 0
    (mlsh / "checkpoint.pt").rename(tmp_path / "alone.pt")  # a checkpoint without its run folder
    runs = [tmp_path / "alone.pt", shared, scratch, tmp_path / "rl2"]
    code, out, err = command("evaluate.py", *runs, "--updates", 2, "--seeds", 3, "-N", 5, "--out", tmp_path / "x")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].split()[:4] == ["run", "task", "after", "0"] and lines.index("") == 1 + 4 * 2
    assert "to 90 %, to 95 %    env steps until" in out and "Columns of adaptation.csv" in out
    rows = adaptation(tmp_path / "x")
    assert len(rows) == 4 * 2 * 3 * 3  # runs, tasks, seeds, updates (or episodes) with the one before the first
    assert {row["run"] for row in rows} == {"alone", "shared", "scratch", "rl2"}
    steps = {row["run"]: [r["env_steps"] for r in rows if r["run"] == row["run"]][::3][:3] for row in rows}
    assert steps["alone"] == steps["shared"] == steps["scratch"] == ["0", "35", "70"]  # a rollout is 5 · 7
    assert steps["rl2"] == ["0", "7", "14"]
    assert (tmp_path / "x" / "adaptation.png").stat().st_size > 1000
    again = command("evaluate.py", *runs, "--updates", 2, "--seeds", 3, "-N", 5, "--out", tmp_path / "y")
    assert again[1] == out and adaptation(tmp_path / "y") == rows


def test_a_shared_policy_is_tuned_as_it_is(command, tmp_path):
    data = checkpoint.load(train(command, tmp_path, "--num_sub_policies", 1, "-W", 0), [Config])
    env = make_env(data["config"], 6)
    agent = meta_test.load_agent(data, env)
    flat, cfg = meta_test.as_flat(agent, data["config"], 3)
    assert (
        cfg.master_lr == cfg.sub_lr and cfg.num_sub_policies == 0 and cfg.master_minibatch == 1
    )  # 2 episodes of 7 steps in 15 minibatches
    for name, tensor in agent.sub_policies.state_dict().items():  # three copies of the one policy
        assert torch.equal(flat.master.state_dict()[name], tensor.expand_as(flat.master.state_dict()[name]))
    before = flat.master.policy_bias.clone()
    training = meta_test.MasterTraining(flat, env, [0, 1, 1], cfg)
    training.learn(training.collect())
    assert not torch.equal(before, flat.master.policy_bias)


def test_returns_are_of_the_master_after_so_many_updates(cfg, tmp_path, monkeypatch):
    """Against adapt() and episodes played here: evaluation episodes, or those that are learned from."""
    monkeypatch.syspath_prepend(CODE)
    from evaluate import Args, evaluate

    cfg.num_sub_policies, cfg.seed = 2, 5
    env = make_env(cfg, 6)
    agent = Hierarchy.build(cfg, env)
    agent.sub_policies.reset(Streams(0, range(2))(0, "subs"))
    progress = {"iteration": 0, "env_steps": 0, "train_env_steps": 0, "seconds": 0.0, "run_id": ""}
    parts = {"sub_policies": agent.sub_policies, "normaliser": agent.normaliser}
    checkpoint.save(checkpoint.snapshot(cfg, progress, **parts), tmp_path / "checkpoint.pt")
    for eval_episodes in (0, 4):
        args = Args(updates=2, seeds=2, seed=5, eval_episodes=eval_episodes)
        steps, measured, labels, best, *_ = evaluate(tmp_path, args)
        returns = measured["return"]
        assert steps.tolist() == [0, 21, 42] and returns.shape == (3, 2, 2)
        assert labels[1] == "task 1 (blue)" and best == ["", ""]
        masters, _ = meta_test.adapt(agent, make_env(cfg, 12), [0, 0, 1, 1], cfg, 2)
        purpose, episodes = ("evaluate: look", 4) if eval_episodes else ("test: warm-up", 3)
        env = make_env(cfg, 4 * episodes)
        env.set_task([0, 0, 1, 1])
        rngs = Streams(5, range(4))(2, purpose)
        if eval_episodes:
            outcome = play(env, masters, rngs, cfg.rollout)
        else:
            outcome = collect(env, masters, rngs, cfg.rollout).outcome
        np.testing.assert_allclose(returns[2].ravel(), outcome.episode_return.mean(1))


def test_tasks_transfer_and_what_does_not_fit(command, tmp_path):
    run = train(command, tmp_path / "run")
    assert command("train_rl2.py", *RL2, "--out", tmp_path / "rl2")[0] == 0
    code, out, _ = command("evaluate.py", run, "--tasks", 1, "--updates", 1, "--seeds", 2)
    assert code == 0 and "task 1 (blue)" in out and "task 0" not in out
    assert {row["task"] for row in adaptation(run)} == {"task 1 (blue)"}
    before = adaptation(run)
    for flags in ((run,), (tmp_path / "rl2", "--out", run)):
        code, _, err = command("evaluate.py", *flags)
        assert code == 2 and f"{run} already holds an adaptation.csv; name another folder with --out" in err
    assert adaptation(run) == before
    (run / "adaptation.csv").unlink()
    refused = [
        ((run, "--env", "MovementBandits4-v0"), "does not fit"),
        ((tmp_path / "rl2", "--env", "MovementBandits4-v0"), "does not fit"),
        ((run, "--tasks", 7), "--tasks is 7: use 0, 1"),
        ((run, "--seeds", 0), "--seeds is 0"),
        ((run, "-N", -1), "-N is -1"),
        ((run, "--master_lr", -1), "--master_lr is -1"),
        ((tmp_path / "none",), "no checkpoint"),
        ((), "name a run"),
        ((run, "--out", run / "checkpoint.pt"), "cannot"),
    ]
    for flags, reason in refused:
        code, _, err = command("evaluate.py", *flags, "--updates", 1)
        assert code == 2 and reason in err and "Traceback" not in err, flags
    assert not (tmp_path / "none").exists()


def test_help_explains_the_columns(command):
    code, out, _ = command("evaluate.py", "--help")
    assert code == 0 and "to 90 %, to 95 %    env steps until" in out


def test_another_environment_has_its_own_horizon_and_decisions(command, tmp_path, monkeypatch):
    """And what its episodes report is in the table and the file, where there are episodes that only measure."""
    monkeypatch.syspath_prepend(CODE)
    from evaluate import Args, evaluate

    flags = ["--env", "AntMovement-v1", "-T", 7, "--high_len", 3]
    run = train(command, tmp_path / "run", *flags)
    played = []
    monkeypatch.setattr(meta_test, "collect", lambda *args, **kw: played.append(args[3]) or collect(*args, **kw))
    course = "AntObstacles-v1"
    for env, T, high_len, wanted in (("", 0, 0, (7, 3)), (course, 0, 0, (2000, 200)), (course, 9, 4, (9, 4))):
        evaluate(run, Args(env=env, T=T, high_len=high_len, updates=0, seeds=1, N=1))
        assert (played[-1].T, played[-1].high_len) == wanted
    transfer = ["--env", "AntObstacles-v1", "-T", 9, "--updates", 1, "--seeds", 2]
    code, out, err = command("evaluate.py", run, *transfer, "--eval_episodes", 2, "--out", tmp_path / "evaluated")
    assert code == 0, err
    assert out.splitlines()[0].split()[-2:] == ["final_distance", "final_reached"]
    rows = adaptation(tmp_path / "evaluated")
    assert all(40 < float(row["final_distance"]) < 60 and row["final_reached"] == "0" for row in rows)
    assert command("evaluate.py", run, *transfer, "--out", tmp_path / "x")[0] == 0
    assert "final_distance" not in adaptation(tmp_path / "x")[0]


def test_what_is_reported_now_and_then_is_missing_elsewhere():
    def outcome(final):
        return Outcome(torch.tensor([[1.0, 3.0]]), torch.ones(1, 2), torch.ones(1, 1), 2, torch.zeros(1), final)

    success = outcome({"success": torch.tensor([[1.0, torch.nan]])})
    measured = meta_test.measures([[outcome({}), success, outcome({})], [success, outcome({}), outcome({})]], 2, 1)
    np.testing.assert_array_equal(measured["return"][:, :, 0], [[2, 2]] * 3)
    nan = np.nan
    np.testing.assert_array_equal(measured["final_success"][:, :, 0], [[nan, 1], [1, nan], [nan, nan]])


def test_another_environment_and_sampled_tasks(command, tmp_path):
    run = train(command, tmp_path / "run", "--env", "foreign:Listed-v0")
    flags = ["--env", "foreign:Sampled-v0", "-N", 2, "-T", 3, "--updates", 1, "--seeds", 2]
    for tasks, expected in (([], {"task -1.0 (-1.0)", "task 1.0 (1.0)"}), (["--tasks", "-1", "-1"], {"task -1 (-1)"})):
        out = tmp_path / f"out {len(tasks)}"
        code, _, err = command("evaluate.py", run, *flags, *tasks, "--out", out)
        assert code == 0, err
        keys = [(row["task"], row["seed"], row["update"]) for row in adaptation(out)]
        assert {task for task, *_ in keys} == expected
        assert {row["env_steps"] for row in adaptation(out)} == {"0", "6"}
        assert len(keys) == len(set(keys)) == len(expected) * 2 * 2  # a task drawn or named twice is learned once
    film = ["--env", "foreign:Sampled-v0", "--task", "-1", "--updates", 1, "-N", 2, "--out", tmp_path / "x.gif"]
    code, _, err = command("render.py", run, *film)
    assert code == 0 and (tmp_path / "x-trained.gif").exists(), err


def test_runs_are_named_by_their_folders(command, tmp_path, monkeypatch):
    run = train(command, tmp_path / "run")
    monkeypatch.chdir(run)
    monkeypatch.syspath_prepend(CODE)
    for named in (".", "checkpoint.pt"):
        code, out, err = command("evaluate.py", named, "--updates", 0, "--seeds", 1)
        assert code == 0 and out.splitlines()[1].startswith("run "), err
        assert {row["run"] for row in adaptation(run)} == {"run"}
        (run / "adaptation.csv").unlink()
    code, _, err = command("evaluate.py", run, ".", "--updates", 0)
    assert code == 2 and "named twice" in err
    code, _, err = command("evaluate.py", "a" * 300)
    assert code == 2 and "no checkpoint" in err and "Traceback" not in err


def test_an_rl2_checkpoint_is_none_of_train(command, tmp_path):
    code, _, err = command("train_rl2.py", *RL2, "--out", tmp_path / "rl2")
    assert code == 0, err
    with open(tmp_path / "rl2" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and rows[-1]["env_steps"] == str(2 * 4 * 3 * 7) and "episode_2" in rows[0]
    for script in ("train.py", "render.py"):
        flags = ["-c", "--out", tmp_path / "rl2"] if script == "train.py" else [tmp_path / "rl2"]
        code, _, err = command(script, *flags)
        assert code == 2 and "belongs to a run of kind 'rl2'; give one of kind mlsh" in err
    code, _, err = command("train_rl2.py", *RL2, "--out", tmp_path / "rl2")
    assert code == 2 and "is not empty; continue it with -c or name another folder" in err
    for parts, reason in ((0, "--minibatches is 0"), (5, "--minibatches is 5: there are only 4 trials")):
        code, _, err = command("train_rl2.py", *RL2, "--minibatches", parts)
        assert code == 2 and reason in err


def test_curves_go_to_wandb_and_tensorboard_if_asked(command, tmp_path):
    from test_tracking import decode, events_of, scalars, values_of

    runs = [train(command, tmp_path / name) for name in ("a", "b")]
    flags = ["--updates", 1, "--seeds", 2, "--eval_episodes", 2]
    code, _, err = command("evaluate.py", runs[0], *flags)
    assert code == 0 and not (runs[0] / "adaptation").exists(), err  # not unless asked
    out = tmp_path / "out"
    code, _, err = command("evaluate.py", *runs, *flags, "--out", out, "--tensorboard", "--wandb", "offline")
    assert code == 0 and err.count("wandb sync") == 2, err
    rows = [row for row in adaptation(out) if row["run"] == "b"]
    steps = [int(x) for x in dict.fromkeys(row["env_steps"] for row in rows)]

    def mean(steps, *tasks):
        chosen = [row for row in rows if int(row["env_steps"]) == steps and int(row["task"].split()[1]) in tasks]
        return pytest.approx(np.mean([float(row["return"]) for row in chosen]), abs=1e-4)

    folder = out / "adaptation" / "b"
    logged = scalars(folder)
    assert logged["new_tasks/return"] == [(n, mean(n, 0, 1)) for n in steps]
    assert logged["new_tasks/1_return"] == [(n, mean(n, 1)) for n in steps]
    assert events_of(folder).Images("new_tasks/adaptation")[0].width > 500
    records = decode(folder)
    (run,) = records["run"]
    config = values_of(run.config.update)
    assert (run.job_type, run.display_name, run.run_group) == ("evaluate", "b", "MovementBandits-v0")
    assert config["kind"] == "evaluate" and config["runs"] == [str(runs[1])] and config["updates"] == 1
    last = values_of(item for row in records["history"] for item in row.item)
    assert last["new_tasks/return"] == mean(steps[-1], 0, 1) and last["env_steps"] == steps[-1]


def test_an_evaluation_that_could_not_be_written_never_begins(command, tmp_path, monkeypatch):
    run = train(command, tmp_path / "run")
    monkeypatch.setattr("mlsh.meta_test.adaptation_curves", None)
    out = tmp_path / "out"
    out.mkdir()
    with locked(out):
        code, _, err = command("evaluate.py", run, "--out", out)
    assert code == 2 and f"another evaluation is writing to {out}" in err and err.count("\n") == 1

    def full(**kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    code, _, err = command("evaluate.py", run, "--out", out)
    assert code == 2 and f"cannot write {out}" in err and "No space left" in err


def test_a_figure_that_cannot_be_drawn_leaves_the_numbers(command, tmp_path, monkeypatch):
    def fail(*args):
        raise ImportError("no Matplotlib")

    run = train(command, tmp_path / "run")
    monkeypatch.setattr("mlsh.runs.plots.draw_bands", fail)
    with pytest.raises(ImportError):
        command("evaluate.py", run, "--updates", 1, "--seeds", 2)
    assert len(adaptation(run)) == 2 * 2 * 2


@pytest.mark.parametrize(
    "flags", ["--seeds 999999999", "--sample 999999999 --env foreign:Sampled-v0", "--updates 999999999999"]
)
def test_more_masters_than_fit_into_memory_are_refused_at_once(command, tmp_path, flags):
    run = train(command, tmp_path / "run", "--env", "foreign:Listed-v0")
    code, _, err = command("evaluate.py", run, *flags.split(), "--out", tmp_path / "out")
    assert code == 2 and err.count("\n") == 1 and "use smaller --seeds, --sample or --updates" in err


def test_copies_of_sub_policies_learn_if_asked(command, tmp_path, monkeypatch):
    runs = [train(command, tmp_path / "mlsh"), train(command, tmp_path / "shared", "--num_sub_policies", 1, "-W", 0)]
    seen = {}
    for name, flags in {
        "frozen": [],
        "inf": ["--sub_kl", "inf"],
        "near": ["--sub_kl", 1000],
        "free": ["--sub_kl", 0, "--sub_lr", 0.1],
        "chunks": ["--sub_kl", 0, "--sub_lr", 0.1],
    }.items():
        if name == "chunks":  # as if fewer episodes fitted
            monkeypatch.setattr("mlsh.envs.pool.max_parallel_episodes", lambda cfg: 25)
        more = ["--updates", 3, "--seeds", 2, "-N", 10, "-T", 20, *flags]
        code, _, err = command("evaluate.py", *runs, *more, "--out", tmp_path / name)
        assert code == 0, err
        seen[name] = [[r["return"] for r in adaptation(tmp_path / name) if r["run"] == run.name] for run in runs]
    assert seen["frozen"] == seen["inf"] and seen["free"] == seen["chunks"]
    assert len({tuple(seen[name][0]) for name in ("frozen", "near", "free")}) > 1
    assert seen["free"][0] != seen["frozen"][0] and seen["near"][1] == seen["frozen"][1]  # K = 1 has no copies

    minibatches = []
    monkeypatch.setattr("mlsh.meta_test.update", lambda *args: minibatches.append(args[-1].minibatches))
    one = ["--sub_kl", 0, "--updates", 1, "--seeds", 1, "--tasks", 0, "-N", 10, "-T", 20, "--master_minibatch", 50]
    assert command("evaluate.py", runs[0], *one, "--out", tmp_path / "one")[0] == 0
    assert minibatches == [2, 4]  # of 100 decisions and 200 env steps
    code, _, err = command("evaluate.py", runs[0], "--sub_kl", 1e30, "--out", tmp_path / "x")
    assert code == 2 and "--sub_kl is 1e+30: use 0 to 1e6, or inf" in err
