"""Studies: each analysis on results made by hand, and a whole study with tiny runs."""

import dataclasses
import importlib
import json
import subprocess
import sys
from functools import partial

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from conftest import CODE, TINY
from evaluate import Args
from mlsh.baselines.option_critic import OptionCriticConfig
from mlsh.baselines.rl2 import RL2Config
from mlsh.config import Config
from mlsh.envs import make_env
from mlsh.errors import UserError
from mlsh.harness import analyses
from mlsh.harness.analyses import (
    ALL,
    BEST_TASK,
    WORST_TASK,
    FixedAdaptation,
    SweepCell,
    TaskSelection,
    compare_adaptation,
    compare_training,
    sweep_two_settings,
    tabulate_adaptation,
    tabulate_final_tests,
)
from mlsh.harness.jobs import Job, JobRunner
from mlsh.harness.study import AdaptationMethod, Setting, Study, grid, read_adaptation, training_curve
from mlsh.settings import cli, parse

STUDY = Study(
    name="tried",
    best_return=43.8,
    horizon=50,
    methods={"one": "train.py --sub_lr", "two": "train.py -W 0 --sub_lr", "other": "train.py -U 2 --sub_lr"},
    learning_rates=(1e-3, 2e-3, 4e-3),
    same_rate=("one", "two"),
    seeds=range(2),
    selection_seed=100,
    analyses=(),
)

PAGES = sorted(path.stem for path in (CODE / "studies").glob("*.py"))


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study in `tmp_path` that runs no jobs, but collects them in `study.started`."""
    study = dataclasses.replace(STUDY)
    study.folder, study.figures, study.started = tmp_path, tmp_path, []
    monkeypatch.setattr(study, "run_jobs", lambda *groups: study.started.extend(job for jobs in groups for job in jobs))
    return study


def write_metrics(folder, returns, learned_from=10**6, column="joint_reward"):
    """A metrics.csv: `returns` [n][tasks]; the first task has two groups, around it."""
    rows = [f"iteration,task,env_steps,train_env_steps,{column}"]
    for i, of_tasks in enumerate(returns):
        for task, x in enumerate(of_tasks):
            steps = f"{9 * learned_from * (i + 1)},{learned_from * (i + 1)}"
            rows += [f"{i},{task},{steps},{x + noise}" for noise in ((-1, 1) if task == 0 else (0,))]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.csv").write_text("\n".join([*rows, ""]))


def write_adaptation(folder, env_steps, returns, best=None):
    """An adaptation.csv of returns [n][tasks][seeds], and best ones [tasks]."""
    returns = np.array(returns)
    rows = [
        f"x,task {task} (red),{seed},{i},{env_steps[i]},{returns[i, task, seed]},{best[task] if best else ''}"
        for task in range(returns.shape[1])
        for i in range(len(returns))
        for seed in range(returns.shape[2])
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "adaptation.csv"
    path.write_text("\n".join(["run,task,seed,update,env_steps,return,best_return", *rows, ""]))
    return path


def printed(capsys):
    """The cells of the printed tables, row by row."""
    return table_cells(capsys.readouterr().out)


def table_cells(out):
    lines = [line for line in out.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("|-")]


def test_a_training_curve_by_hand(study, tmp_path):
    write_metrics(tmp_path / "a-0", [[9, 1], [7, 3]])
    steps, returns, tasks = training_curve(study, Job("a-0", ""))
    assert steps.tolist() == [1, 2] and returns.tolist() == [[9, 7], [1, 3]] and tasks == ["0", "1"]
    write_metrics(tmp_path / "rl2", [[9, 1]], column="episode_0,episode_1")  # the last episode of a trial counts
    text = (tmp_path / "rl2" / "metrics.csv").read_text()
    (tmp_path / "rl2" / "metrics.csv").write_text(
        text.replace(",1\n", ",1,5\n").replace(",10\n", ",10,20\n").replace(",8\n", ",8,30\n")
    )
    assert training_curve(study, Job("rl2", ""))[1].tolist() == [[25], [5]]
    write_metrics(tmp_path / "b-0", [[9, 1], [7]])  # a task that not every outer iteration has
    steps, returns, tasks = training_curve(study, Job("b-0", ""))
    np.testing.assert_allclose(returns, [[19 / 3, 7]])
    assert tasks == [None]
    (tmp_path / "b-0" / "metrics.csv").write_text("iteration,task,env_steps,joint_reward\n0,0,5,1\n")
    with pytest.raises(UserError, match="older version, without train_env_steps"):
        training_curve(study, Job("b-0", ""))
    write_metrics(tmp_path / "c-0", [[9, 1], [7, 3]])  # begun with an older version, and continued
    text = (tmp_path / "c-0" / "metrics.csv").read_text()
    (tmp_path / "c-0" / "metrics.csv").write_text(text.replace(",1000000,", ",,"))
    with pytest.raises(UserError, match="older version"):
        training_curve(study, Job("c-0", ""))


def test_a_method_gets_its_best_learning_rate_or_shares_one(study, tmp_path):
    """The best rate is .001 for one, .004 for two, and .002 for both together."""
    ends = {"one": (30, 29, 1), "two": (1, 29, 30), "other": (1, 2, 3)}
    for method, of_rates in ends.items():
        for rate, end in zip(study.learning_rates, of_rates, strict=True):
            write_metrics(tmp_path / f"{method}-{rate:g}-100", [[40, 40], [end, end]])
    seen = []
    study.analyses = (lambda study: seen.append(dict(study.chosen_rate)),)
    study.reproduce(tmp_path)
    assert seen == [{"one": 2e-3, "two": 2e-3, "other": 4e-3}]
    assert {job.name.rsplit("-", 1)[1] for job in study.started} == {"100"} and len(study.started) == 9
    assert ("other-0.002-100", "train.py -U 2 --sub_lr 0.002 --seed 100") in study.started


def test_tasks_are_sorted_by_the_return_at_the_end_of_each_run(study, tmp_path, capsys):
    study.chosen_rate = dict.fromkeys(study.methods, 1e-3)
    for method, ends in {"one": ((43, 41), (41, 43)), "two": ((43, 4), (4, 43)), "other": ((43, 39), (40, 43))}.items():
        for seed, of_tasks in enumerate(ends):
            write_metrics(tmp_path / f"{method}-0.001-{seed}", [[0, 0], of_tasks])
    columns = {"both": ALL, "better task": BEST_TASK, "worse task": WORST_TASK}
    compare_training(study, "x.png", {"both": ALL, "worse": WORST_TASK}, columns)
    header, *rows = printed(capsys)
    assert header == ["method", "learning rate", *columns, "runs with worse task ≥ 90% of the best", "env steps"]
    assert rows[0][2:] == ["42.0 (42.0 to 42.0)", "43.0 (43.0 to 43.0)", "41.0 (41.0 to 41.0)", "2 of 2", "2.0 M"]
    assert rows[1][4:6] == ["4.0 (4.0 to 4.0)", "0 of 2"] and rows[2][5] == "1 of 2"
    assert iio.imread(tmp_path / "x.png").std() > 0 and len(study.started) == 6


def test_learners_of_a_run_are_averaged_and_tasks_sorted_by_its_returns(study, tmp_path, capsys, monkeypatch):
    """The first of two runs is worse on task 1, which one of its two masters never learns."""
    study.chosen_rate = {"one": 1e-3}
    methods = {
        "new master": AdaptationMethod("one", grid((1,), (0.1, 0.2)), 300, 2, 2),
        "scratch": AdaptationMethod("alone", [Setting(2, 0.3)], 600, 2, 2, command="train.py --num_sub_policies 0"),
    }
    worse, better = np.array([[10, 10]] + [[43, 3]] * 6), np.full((7, 2), 43)
    for seed, ends in ((0, (43, 41)), (1, (41, 43)), (100, (43, 43))):
        write_metrics(tmp_path / f"one-0.001-{seed}", [[0, 0], ends])
    for rate in ("0.1", "0.2"):
        gain = 0.5 if rate == "0.2" else 0  # so that it is chosen
        write_adaptation(
            tmp_path / f"one-0.001-100/adapt-1-{rate}-100", np.arange(7) * 50, np.stack((better, better), 1) + gain
        )
        write_adaptation(tmp_path / f"one-0.001-0/adapt-1-{rate}-0", np.arange(7) * 50, np.stack((better, worse), 1))
        write_adaptation(tmp_path / f"one-0.001-1/adapt-1-{rate}-1", np.arange(7) * 50, np.stack((better, better), 1))
    for seed in (0, 100):
        write_adaptation(tmp_path / f"alone/adapt-2-0.3-{seed}", np.arange(7) * 100, np.stack((worse, better), 1))
    drawn = {}
    monkeypatch.setattr(analyses, "draw_bands", lambda path, panels, *_, **__: drawn.update(panels))
    panels = {"worse": TaskSelection(WORST_TASK), "better": TaskSelection(BEST_TASK)}
    compare_adaptation(study, "x.png", panels, methods, ("new master", "scratch"))
    out = capsys.readouterr().out
    assert "worse: new master, learning rate 0.2, needs 75 env steps at the median; scratch never gets there" in out
    assert drawn["worse"]["new master"][1].tolist() == [[10, 43]] + [[23, 43]] * 6  # [n, runs]
    assert drawn["better"]["new master"][1].tolist() == [[43, 43]] * 7
    assert drawn["worse"]["scratch"][1].tolist() == worse.tolist()
    rows = [row for row in table_cells(out) if row[0] == "new master"]
    assert [row[1] for row in rows] == ["1, 0.1"] * 2 + ["1, 0.2 (chosen)"] * 2
    assert [row[2] for row in rows[:2]] == ["worse", "better"]
    assert [row[4:6] for row in rows[2:]] == [["3 of 4", "3 of 4"], ["4 of 4", "4 of 4"]]
    assert rows[2][3] == "75 (0 to never)"  # of 150, never, 0 and 0
    flags = {job.command.split(" -N ")[1] for job in study.started if "/adapt-1-0.2-1" in job.name}
    assert "1 --master_lr 0.2 --master_minibatch 64 --updates 6 --seeds 2 --seed 1 --eval_episodes 50" in flags


def test_settings_for_held_out_tasks_are_chosen_on_the_tasks_of_training(study, tmp_path, capsys):
    """On the held-out tasks 0.1 would be better. Each task counts relative to its own best return."""
    study.chosen_rate, steps = {"one": 1e-3}, np.arange(7) * 50
    methods = {"new master": AdaptationMethod("one", grid((1,), (0.1, 0.2)), 300, 2, 1)}
    for seed in (0, 1, 100):
        write_metrics(tmp_path / f"one-0.001-{seed}", [[0, 0], [43, 43]])
        for rate, held_out in ((0.1, 39), (0.2, 38.4)):
            write_adaptation(tmp_path / f"one-0.001-{seed}/adapt-1-{rate}-{seed}", steps, np.full((7, 2, 2), 40))
            folder = tmp_path / f"one-0.001-{seed}/adapt-held_out-1-{rate}-{seed}"
            write_adaptation(folder, steps, np.full((7, 3, 2), held_out), (40, 42, 48))
    for rate, trained in ((0.1, 40), (0.2, 41)):
        write_adaptation(tmp_path / f"one-0.001-100/adapt-1-{rate}-100", steps, np.full((7, 2, 1), trained))
    panels = {"known": TaskSelection(), "new": TaskSelection(flags="--held_out")}
    compare_adaptation(study, "x.png", panels, methods, ("new master", "new master"))
    rows = [row for row in printed(capsys) if "chosen" in row[1]]
    chosen = "1, 0.2 (chosen)"
    assert [row[1:3] for row in rows] == [[chosen, "known"], [chosen, "new"]]
    assert [row[4:6] for row in rows] == [["0 of 8", "8 of 8"], ["4 of 12", "8 of 12"]]  # 40 of 43.8; .96, .91, .8
    assert [row[-1] for row in rows] == ["91%", "89%"]
    held_out = [job for job in study.started if "/adapt-held_out-" in job.name]
    assert len(held_out) == 4 and all(job.command.endswith(" --eval_episodes 50 --held_out") for job in held_out)


def test_fractions_of_the_best_return(study):
    assert study.fraction_of_best(np.array([21.9, 20.0]), np.array([np.nan, 40.0])).tolist() == [0.5, 0.5]
    study.return_scale = 2.0  # the best return may be negative
    np.testing.assert_allclose(study.fraction_of_best(np.array([0.8, -0.3]), np.array([0.9, -0.1])), [0.95, 0.9])
    assert [dataclasses.replace(study, best_return=x).decimals for x in (0.75, 43.8, 193, np.nan)] == [3, 1, 0, 1]


def test_final_tests_against_the_best_possible(study, tmp_path, capsys):
    """Known of each task, of the environment, negative, or not at all."""
    for name, env, best, *returns in (
        ("a-3", "Fourrooms-v0", (80, 40), 60, 38),
        ("b-3", "MovementBandits-v0", None, 43.8, 21.9),
        ("c-3", "Allwalk-v0", (-0.3, -0.2), -0.5, -0.4),
        ("d-3", "foreign:Env-v0", None, 1, 2),
    ):
        row = {"label": "", "standard_error": 0.0, "share": [], "sub_policy_returns": []}
        rows = [
            row | {"task": i, "return": x} | ({"best_return": best[i]} if best else {}) for i, x in enumerate(returns)
        ]
        (tmp_path / name).mkdir()
        results = {"env": env, "seed": 3, "test": rows, "env_steps": 10**6, "seconds": 60.4}
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    tabulate_final_tests(study, dict.fromkeys("abcd", "train.py"), [3])
    assert [row[2:6] for row in printed(capsys)[1:]] == [
        ["38", "49", "60", "75.0 %"],
        ["21.9", "32.85", "43.81", "50.0 %"],
        ["-0.5", "-0.45", "-0.25", ""],
        ["1", "1.5", "", ""],
    ]
    assert [job.command for job in study.started] == ["train.py --seed 3"] * 4


def test_what_learns_anew_by_hand(study, tmp_path, capsys):
    """Two runs of one, with two learners each; another is evaluated on two tasks and then on one, and reports more."""
    runs = {
        "a name": FixedAdaptation("train.py", [3, 4], ["-N 8"]),
        "b": FixedAdaptation("train.py", [0], ["-N 1", "-N 2"]),
    }
    write_adaptation(tmp_path / "a-name-3" / "adapt-0", (0, 50), [[[1, 2]], [[10, 20]]])
    write_adaptation(tmp_path / "a-name-4" / "adapt-0", (0, 50), [[[3, 4]], [[30, 40]]])
    write_adaptation(tmp_path / "b-0" / "adapt-0", (0, 1700), [[[0], [0]], [[5], [6]]])
    path = write_adaptation(tmp_path / "b-0" / "adapt-1", (0, 1700), [[[0, 0]], [[8, 6]]])
    header, *rows = path.read_text().split("\n")[:-1]
    more = [f"{header},final_there", *(f"{row},{x}" for row, x in zip(rows, (0, 1, 0.5, 0.25), strict=True))]
    path.write_text("\n".join([*more, ""]))
    tabulate_adaptation(study, runs, figure="adaptation.png")
    evaluations = [(job.name, *job.command.split()[2:]) for job in study.started[3:]]
    assert [job.command for job in study.started[:3]] == [f"train.py --seed {seed}" for seed in (3, 4, 0)]
    assert evaluations == [
        *((f"a-name-{seed}/adapt-0", "-N", "8", "--seed", str(seed)) for seed in (3, 4)),
        *((f"b-0/adapt-{i}", "-N", str(i + 1), "--seed", "0") for i in (0, 1)),
    ]
    assert printed(capsys)[1:] == [
        ["a name", "task 0 (red)", "4", "50", "return 25 (10 to 40)"],
        ["b", "task 0 (red)", "1", "1,700", "return 5 (5 to 5)"],
        ["b", "task 1 (red)", "1", "1,700", "return 6 (6 to 6)"],
        ["b", "task 0 (red)", "2", "1,700", "return 7 (6 to 8); there 0.375 (0.25 to 0.5)"],
    ]
    assert (tmp_path / "adaptation.png").stat().st_size > 1000


def test_where_ants_go_is_drawn(study, command, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(CODE)
    ants = importlib.import_module("studies.ants")
    monkeypatch.setattr(ants, "PATHS", 2)
    monkeypatch.setattr(ants, "UPDATES", 0)
    monkeypatch.setattr("mlsh.ceiling.PATHS", 2)
    monkeypatch.setattr("mlsh.ceiling.GRID", 4.0)
    flags = ["--env", "AntMovement-v1", "--record", 0, "-T", 9, "--out", tmp_path / "x"]
    assert command("train.py", *TINY, *flags)[0] == 0
    ants.draw_primitives(study, "alone.png", ["x", "x"])
    ants.draw_masters(study, "masters.png", "x", "AntMaze-v1", {"N": 1, "T": 20, "high_len": 10})
    for name, width in (("alone.png", 792), ("masters.png", 1430)):
        assert iio.imread(tmp_path / name).shape[1] == width
    drawn, draw_paths = [], ants.draw_paths
    monkeypatch.setattr(ants, "draw_paths", lambda axes, *args: drawn.append(args))
    ants.draw_primitives(study, "alone.png", ["x"])
    assert (drawn[0][0][0] == 0).all() and (drawn[0][0][-1] != 0).all()  # displacements
    ants.draw_masters(study, "masters.png", "x", "AntMaze-v1", {"N": 1, "T": 11, "high_len": 5})
    assert len(drawn[-1][0]) == 11
    capfd.readouterr()
    ants.tabulate_plans(study, ["x"], {"T": 6, "high_len": 2}, starts=1)
    printed = [line.split("|")[1:3] for line in capfd.readouterr().out.splitlines() if line.startswith("| x")]
    assert [[cell.strip() for cell in line] for line in printed] == [["x", "mazes of training"], ["x", "held out"]]
    agent, cfg, one = ants.load(study, "x", "AntMovement-v1", {})
    xy, active = ants.follow(ants.with_constant_masters(agent, 1), cfg, [0, 0])
    assert xy.shape == (200, 2, 2, 2) and (active == torch.tensor([0, 1])[:, None]).all()
    assert 0 < (xy - xy[0]).abs().max() < 30
    picture = Figure()
    axes = picture.subplots()
    draw_paths(axes, xy[:, 0], active[:, 0], 2)  # two episodes of sub-policy 0
    drawn = np.stack([np.stack(line.get_data(), 1) for line in axes.lines], 1)
    assert np.array_equal(drawn[:, :2], xy[:, 0]) and np.isnan(drawn[:, 2:]).all()
    ants.draw_walls(axes, one.world(0))
    assert not axes.patches
    maze = make_env(ants.transferred(cfg, "AntMaze-v1"), 1)
    ants.draw_walls(axes, maze.world(0))
    colours = [patch.get_facecolor() for patch in axes.patches]
    assert len(colours) == 4 + 9 - 2 + 1 and len(set(colours)) == 2  # the border, closed blocks, the goal
    places = [[*patch.get_bbox().extents.round(1)] for patch in axes.patches]
    for place in ([47.7, -24, 48.3, 24], [32.4, -23.6, 47.6, -8.4], [5, 21, 11, 27]):  # one of each
        assert place in places


def test_intervals_and_ranges_in_words():
    assert analyses.mean_with_interval([7.0, 7.0, 7.0], 1) == "7.0 (7.0 to 7.0)"
    assert analyses.median_and_range(np.array([3000.0, np.inf, 1000.0])) == "3,000 (1,000 to never)"


def jobs_of(study):
    """One job of each kind that the study would start."""
    study.chosen_rate = dict.fromkeys(study.methods, 1e-3)
    run = Job("run", "")
    yield from (study.training_jobs(method, [0])[0] for method in study.methods)
    for analysis in study.analyses:
        arguments = analysis.keywords
        for method in arguments.get("methods", {}).values():
            yield method.training_jobs(study)[0]
            for selection in arguments["panels"].values():
                yield next(method.evaluation_jobs(study, method.settings[0], selection.flags))
        yield from (Job("run", command) for command in arguments.get("commands", {}).values())
        if analysis.func is tabulate_adaptation:
            for fixed in arguments["runs"].values():
                yield Job("run", fixed.command)
                yield from (study.evaluation_job(run, "adapt", flags) for flags in fixed.evaluations)
        for cell in arguments.get("cells", {}).values():
            yield Job("cell", f"{cell.command or study.methods[cell.method]} 0.001")
            yield study.evaluation_job(run, "adapt", cell.evaluation)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_study_can_be_parsed_and_leaves_wandb_alone(page):
    study = importlib.import_module(f"studies.{page}").STUDY
    assert study.name == page.replace("_", "-") and set(study.same_rate) <= set(study.methods)
    kinds = {"train.py": Config, "train_rl2.py": RL2Config, "train_option_critic.py": OptionCriticConfig}
    for job in jobs_of(study):
        script, *flags = job.command.split()
        if script == "evaluate.py":
            cli(Args, args=flags).validate()
        else:
            assert parse(kinds[script], flags, None)[0].wandb == "disabled"


@pytest.mark.parametrize("page", PAGES)
def test_a_study_chooses_settings_on_seeds_that_it_does_not_report(page):
    study = importlib.import_module(f"studies.{page}").STUDY
    methods = [x for analysis in study.analyses for x in analysis.keywords.get("methods", {}).values()]
    assert (study.selection_seed not in study.seeds) if study.methods or methods else not study.seeds
    for method in methods:
        assert not set(method.selection_seeds) & set(study.seeds)


def test_help_starts_nothing():
    words = [sys.executable, "-m", "studies.bandits", "--help"]
    run = subprocess.run(words, cwd=CODE, capture_output=True, text=True)
    assert run.returncode == 0 and "--figures" in run.stdout and "You can stop it at any time" in run.stdout, run.stderr


@pytest.mark.slow
@pytest.mark.very_slow
def test_a_whole_study_with_tiny_runs(command, tmp_path, monkeypatch, capfd):
    tiny = " ".join(["train.py", *TINY])
    said = []

    def run_here(self, jobs):
        said.append(capfd.readouterr().out)
        for name, line in dict.fromkeys(jobs):
            script, *flags = line.split()
            if not any((tmp_path / name / last).exists() for last in ("results.json", "adaptation.csv")):
                code, _, err = command(script, *flags, "--out", tmp_path / name)
                assert code == 0, err

    monkeypatch.setattr(JobRunner, "run", run_here)
    monkeypatch.setattr(analyses, "SOLVED", 0)  # which even so small a run reaches
    monkeypatch.chdir(CODE)
    methods = {
        "MLSH, new master": AdaptationMethod(
            "MLSH", [Setting(3, 1e-3), Setting(2, 2e-3)], 900, 2, 2, selection_seeds=(100, 101)
        ),
        "shared policy, fine-tuned": AdaptationMethod("shared policy", [Setting(2, 1e-3)], 900, 2, 2),
        "scratch": AdaptationMethod(
            "scratch", [Setting(2, 1e-3)], 900, 2, 2, command=f"{tiny} --num_sub_policies 0 -U 0"
        ),
    }
    columns = {"both": ALL, "worse": WORST_TASK}
    panels = {
        "both": TaskSelection(),
        "orange": TaskSelection(flags="--tasks 0"),
        "blue": TaskSelection(flags="--tasks 1"),
    }
    cells = {
        (1, 2): SweepCell("--updates 0 --seeds 2", command=f"{tiny} --num_sub_policies 1 -W 2 --sub_lr"),
        (2, 2): SweepCell("--updates 2 --seeds 2", command=f"{tiny} --num_sub_policies 2 -W 2 --sub_lr"),
        (3, 2): SweepCell("--updates 1 --seeds 2", method="no warm-up"),
    }
    study = dataclasses.replace(
        STUDY,
        methods={
            "MLSH": f"{tiny} --sub_lr",
            "no warm-up": f"{tiny} -W 0 --sub_lr",
            "timescale 1": f"{tiny} --high_len 1 --sub_lr",
            "shared policy": f"{tiny} --num_sub_policies 1 -W 0 --sub_lr",
            "RL2": "train_rl2.py --iterations 2 -N 4 -T 7 --wandb disabled --lr",
        },
        learning_rates=(1e-3, 2e-3),
        same_rate=("MLSH", "no warm-up"),
        analyses=(
            partial(compare_training, figure="training.png", panels=columns, columns=columns),
            partial(
                compare_adaptation,
                figure="adaptation.png",
                panels=panels,
                methods=methods,
                compared=("MLSH, new master", "scratch"),
            ),
            partial(
                compare_adaptation,
                figure="chosen.png",
                panels={"all": TaskSelection()},
                methods=methods,
                compared=("scratch", "scratch"),
                chosen_only=True,
            ),
            partial(tabulate_final_tests, commands={"four": f"{tiny} --env MovementBandits4-v0"}, seeds=range(2)),
            partial(
                sweep_two_settings,
                figure="map.png",
                name="sweep",
                title="",
                cells=cells,
                rate_of="MLSH",
                seeds=[0],
                row_label="K",
                column_label="W",
                column_prefix="W",
            ),
        ),
    )
    study.folder = tmp_path
    study.reproduce(tmp_path / "figures")
    out = "".join(said) + capfd.readouterr().out
    rows = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("| ")]
    assert rows[:6] == ["method", *study.methods] and rows[6] == "method"
    second_table = rows.index("method", 7)
    assert {*rows[7:second_table]} == {*methods} and rows[second_table + 1 : -7] == [*methods]
    assert rows[-7:] == ["runs", "four", "four", "K", "1", "2", "3"]
    assert out.count("(chosen)") == 12
    names = {"training.png", "adaptation.png", "chosen.png", "map.png"}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == names
    assert len(read_adaptation(study, Job("sweep-1-2-0/sweep", "")).env_steps) == 1
    assert len(read_adaptation(study, Job("sweep-2-2-0/sweep", "")).env_steps) == 3
    (without_warm_up,) = study.training_jobs("no warm-up", [0])
    assert len(read_adaptation(study, Job(f"{without_warm_up.name}/sweep", "")).env_steps) == 2
