import csv
import json
import math

import imageio.v3 as iio
import pytest
import torch

from mlsh import parallel
from mlsh.config import Config
from mlsh.errors import UserError
from mlsh.outcome import Outcome
from mlsh.runs.log import LOSSES, MOMENTS, MLSHLog
from mlsh.runs.metrics import read_metrics
from mlsh.runs.run import Run


class FakeRun(Run[Config]):
    """Has the parts of a run that a log uses."""

    def __init__(self, cfg, folder, iteration=0):
        self.cfg, self.folder, self.shown, self.ended, self.trackers = cfg, folder, folder, [], []
        self.progress = {"iteration": iteration, "env_steps": 0, "train_env_steps": 0, "seconds": 0.0, "run_id": "id"}

    def end_iteration(self, trained_reward, **progress):
        self.ended.append(progress | {"trained_reward": trained_reward})


RESULTS = {"test": [], "env_steps": 80, "seconds": 1.0}


def outcome(*returns, **final):
    """The outcome of two groups in ten env steps, with `returns` of the episodes of each."""
    share = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    return Outcome(
        torch.tensor(returns, dtype=torch.float32),
        torch.full((2, len(returns[0])), 2.5),
        share,
        10,
        torch.tensor([0, 2]),
        {name: torch.tensor(x) for name, x in final.items()},
    )


def figures(n):
    return {name: torch.arange(n, dtype=torch.float32) for name in LOSSES}


class FakeTracker:
    """Stands for wandb and TensorBoard."""

    def __init__(self):
        self.logged, self.shown = [], []

    def log(self, values, env_steps):
        self.logged.append((values, env_steps))

    def log_image(self, name, path, env_steps):
        self.shown.append(name)

    def keep_best(self, snapshot, trained_reward):
        pass

    def finish(self, results, summary, env_steps):
        self.results, self.summary = results, summary

    def close(self):
        pass


def log_outer_iteration(log, i, tasks=(1, 0), **final):
    log.evaluated("untrained", outcome([1, 3], [5, 5]))
    log.evaluated("trained", outcome([2, 4], [6, 6], **final))
    log.training_iteration_done(i, "joint", outcome([0, 0], [0, 0]), figures(2), figures(2))
    log.evaluated("joint", outcome([3, 5], [7, 7]))
    log.outer_iteration_done(i, list(tasks))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "checkpoint.pt").write_bytes(b"weights")
    return tmp_path


@pytest.fixture(autouse=True)
def no_wandb(cfg):
    cfg.wandb = "disabled"


def test_numbers_from_the_environment_are_averaged_and_get_columns_when_they_appear(cfg, folder):
    run, tracker = FakeRun(cfg, folder), FakeTracker()
    run.trackers.append(tracker)
    log = MLSHLog(run)
    log_outer_iteration(log, 0)
    nan = float("nan")
    log_outer_iteration(log, 1, success=[[1.0, 0.0], [nan, nan]])
    log_outer_iteration(log, 2, success=[[True, True], [False, True]], time=[[nan, nan], [nan, nan]])
    tested = {"label": "", "return": 1, "standard_error": 0, "share": []}
    tests = [{"task": 0, "final_success": 0.5} | tested, {"task": 1, "final_success": None} | tested]
    log.close(RESULTS | {"test": tests, "held_out": [{"task": 2, "final_success": 0.25} | tested]})
    rows = read_metrics(folder)
    assert [row["final_success"] for row in rows] == ["", "", "0.5", "", "1", "0.5"]
    assert {row["final_time"] for row in rows} == {""} and [row["iteration"] for row in rows] == list("001122")
    (_, last) = [values for values, _ in tracker.logged if "training/final_success" in values]
    assert last["training/final_success"] == 0.75 and last["tasks/0_final_success"] == 0.5
    assert tracker.summary["test_final_success"] == 0.5 and tracker.summary["held_out_final_success"] == 0.25
    MLSHLog(FakeRun(cfg, folder, iteration=2)).close()
    assert read_metrics(folder) == rows[:4]


def test_an_outer_iteration_fills_metrics_curves_and_results(cfg, folder):
    run = FakeRun(cfg, folder)
    log = MLSHLog(run)
    log_outer_iteration(log, 0)
    log_outer_iteration(log, 1)
    log.close(RESULTS)
    rows = read_metrics(folder)
    assert run.highest_reward == -math.inf and [x["trained_reward"] for x in run.ended] == [4.5, 4.5]
    first = "iteration group task pretrain_reward trained_reward joint_reward env_steps train_env_steps seconds".split()
    assert list(rows[0])[:9] == first
    # one of the four rollouts of an outer iteration is learned from
    assert [(r["iteration"], r["group"], r["task"], r["env_steps"], r["train_env_steps"]) for r in rows] == [
        ("0", "0", "1", "40", "10"),
        ("0", "1", "0", "40", "10"),
        ("1", "0", "1", "80", "20"),
        ("1", "1", "0", "80", "20"),
    ]
    assert [(k["iteration"], k["env_steps"], k["train_env_steps"]) for k in run.ended] == [(1, 40, 10), (2, 80, 20)]
    assert [float(rows[0][f"{m}_reward"]) for m in ("pretrain", "trained", "joint")] == [2, 3, 4]
    assert [float(rows[0][f"share_{k}"]) for k in (0, 1)] == [0.25, 0.75]
    assert [row["diverged"] for row in rows] == ["0", "2", "0", "2"]
    assert float(rows[1]["master_kl"]) == 1 and float(rows[0]["sub1_entropy"]) == 1
    assert float(rows[1]["master_explained_variance"]) == 1
    assert iio.imread(folder / "curves.png").shape[1] > 1000  # three panels
    assert json.loads((folder / "results.json").read_text()) == RESULTS


def test_each_tracker_gets_the_values_of_an_outer_iteration(cfg, folder, monkeypatch):
    cfg.explore, cfg.sub_entropy, cfg.fade, cfg.sub_lr, cfg.sub_lr_decay = 0.2, 0.04, 4, 0.1, 0.5
    run = FakeRun(cfg, folder)
    first, second = FakeTracker(), FakeTracker()
    run.trackers += [first, second]
    log_outer_iteration(MLSHLog(run), 1)
    assert first.logged == second.logged
    (trained, at), (logged, end) = first.logged
    assert (at, end) == (30, 40)  # two evaluations and a rollout; one more evaluation
    assert trained.pop("training/SPS") > 0
    assert trained == {"reward": 0, "training/episodic_return": 0, "training/episodic_length": 2.5}
    assert logged["trained_reward"] == 4.5 and logged["1_trained_reward"] == 3 and logged["0_trained_reward"] == 6
    charts = [name for name in logged if name.startswith("charts/")]
    assert charts == sorted(charts) == ["charts/trained_reward", "charts/untrained_reward"]  # as both dashboards sort
    assert logged["charts/trained_reward"] == 4.5 and logged["charts/untrained_reward"] == 3.5
    assert logged["training/joint_reward"] == 5.5 and logged["tasks/0_trained_reward"] == 6
    assert logged["tasks/1_share_1"] == 0.75 and logged["losses/master_kl"] == 0.5 and logged["losses/sub1_kl"] == 1
    assert logged["losses/master_explained_variance"] == 0.5 and logged["training/diverged"] == 2
    assert logged["training/explore"] == pytest.approx(0.15) and logged["training/sub_entropy"] == pytest.approx(0.03)
    assert logged["training/sub_lr"] == 0.05


@pytest.mark.parametrize("tasks", [[0.25, -1.5], [[0.5, 1.0], [2.0, 0.0]], [10, 499], ["left", "right"]])
def test_tasks_of_a_large_family_have_no_names_of_their_own(cfg, folder, tasks):
    run = FakeRun(cfg, folder)
    tracker = FakeTracker()
    run.trackers.append(tracker)
    log = MLSHLog(run)
    for i in range(3):
        log_outer_iteration(log, i, tasks)
        for task in tasks:
            log.add_video(f"pretrain-video-{task}", folder / "film.gif")
    row = {"return": 1.0, "standard_error": 3.0, "label": "", "share": []}
    log.close({"test": [{"task": task} | row for task in tasks], "env_steps": 1, "seconds": 1})
    names = {name for values, _ in tracker.logged for name in values}
    assert not any(str(task) in name for name in names for task in tasks)
    assert not any(name.startswith("tasks/") for name in names) and "charts/trained_reward" in names
    assert set(tracker.shown) == {"videos/pretrain"}
    assert tracker.summary == {"test_return": 1.0, "test_standard_error": pytest.approx(3 / 2**0.5)}


def test_without_a_joint_iteration_the_columns_of_sub_policies_are_empty(cfg, folder):
    log = MLSHLog(FakeRun(cfg, folder))
    log_outer_iteration(log, 0)
    for moment in MOMENTS:
        log.evaluated(moment, outcome([1, 1], [1, 1]))
    log.training_iteration_done(1, "warm-up", outcome([0, 0], [0, 0]), figures(2))
    log.outer_iteration_done(1, [0, 1])
    kl = [row["sub0_kl"] for row in read_metrics(folder)]
    assert kl == ["0", "0", "", ""]  # the figures of the outer iteration before are not repeated


def test_a_log_counts_from_the_progress_of_the_run(cfg, folder):
    run = FakeRun(cfg, folder)
    run.progress |= {"env_steps": 1000, "train_env_steps": 700, "seconds": 60.0}
    log = MLSHLog(run)
    log_outer_iteration(log, 0)
    assert read_metrics(folder)[0]["env_steps"] == "1040" and read_metrics(folder)[0]["train_env_steps"] == "710"
    assert 60 < log.seconds < 120


def test_another_process_only_counts(cfg, folder, monkeypatch):
    monkeypatch.setattr(parallel, "FIRST", False)
    run = FakeRun(cfg, folder)
    log = MLSHLog(run)
    log_outer_iteration(log, 0)
    log.message("nothing")
    log.close(RESULTS)
    log.close_after_failed_write()
    assert run.ended[0]["env_steps"] == 40 and not (folder / "metrics.csv").exists()


def test_continuing_drops_rows_beyond_the_checkpoint_and_torn_lines(cfg, folder):
    log = MLSHLog(FakeRun(cfg, folder))
    for i in range(3):
        log_outer_iteration(log, i)
    log.close()
    text = (folder / "metrics.csv").read_text()
    (folder / "metrics.csv").write_text(text[: len(text) - 30])  # as if killed while writing
    run = FakeRun(cfg, folder, iteration=2)
    log = MLSHLog(run)
    assert run.highest_reward == 4.5
    log_outer_iteration(log, 2)
    log.close()
    iterations = [row["iteration"] for row in csv.DictReader((folder / "metrics.csv").open())]
    assert iterations == ["0", "0", "1", "1", "2", "2"]


def test_metrics_of_another_program_are_not_overwritten(cfg, folder):
    (folder / "metrics.csv").write_text("mine\n1\n")
    with pytest.raises(UserError, match="does not belong to this run"):
        MLSHLog(FakeRun(cfg, folder, iteration=1))
    assert (folder / "metrics.csv").read_text() == "mine\n1\n"


def broken(text, damage):
    lines = text.splitlines(keepends=True)
    if damage == "the first outer iterations are missing":
        return "".join([lines[0], *lines[3:]])
    if damage == "all rows are missing":
        return lines[0]
    middle = lines[4]
    changed = {
        "a row is missing": "",
        "a row is cut": middle[:20] + "\n",
        "a row is too long": middle.strip() + ",1,2\n",
        "a row is twice there": middle * 2,
        "a number is none": middle.replace(",5,", ",five,"),
        "a quote opens": '"' + middle,
        "a byte is no text": middle.replace("1", "\0", 1),
    }[damage]
    return "".join([*lines[:4], changed, *lines[5:]])


@pytest.mark.parametrize(
    ("damage", "refused"),
    [
        ("a row is missing", True),
        ("a row is cut", True),
        ("a row is too long", True),
        ("a row is twice there", True),
        ("a number is none", True),
        ("a quote opens", True),
        ("a byte is no text", True),
        ("the first outer iterations are missing", False),  # as if the file was moved away once
        ("all rows are missing", False),
    ],
)
def test_continuing_with_damaged_metrics_is_refused_or_said(cfg, folder, capsys, damage, refused):
    log = MLSHLog(FakeRun(cfg, folder))
    for i in range(3):
        log_outer_iteration(log, i)
    log.close()
    path = folder / "metrics.csv"
    damaged = broken(path.read_text(), damage)
    assert damaged != path.read_text()
    path.write_text(damaged)
    capsys.readouterr()
    if refused:
        with pytest.raises(UserError, match="metrics.csv is damaged or does not belong to this run"):
            MLSHLog(FakeRun(cfg, folder, iteration=3))
        assert path.read_text() == damaged
    else:
        MLSHLog(FakeRun(cfg, folder, iteration=3)).close()
        first = 1 if "first" in damage else 3
        assert f"metrics.csv has no rows before outer iteration {first}" in capsys.readouterr().err


def test_the_results_are_written_before_anything_else_can_fail(cfg, folder, monkeypatch):
    def fail(*args):
        raise ImportError("no Matplotlib")

    log = MLSHLog(FakeRun(cfg, folder))
    monkeypatch.setattr("mlsh.runs.plots.draw_curves", fail)
    with pytest.raises(ImportError):
        log.close(RESULTS)
    assert json.loads((folder / "results.json").read_text()) == RESULTS
