"""A study: its parts by hand, and the whole of one, shrunken."""

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
from mlsh.harness import analyses as study_parts
from mlsh.harness import study as module
from mlsh.harness.analyses import (
    ALL,
    BEST_TASK,
    WORST_TASK,
    Learner,
    Panel,
    adaptation,
    final_tests,
    learned_anew,
    learning_curves,
    sweep,
)
from mlsh.harness.study import Study, Way, read_adaptation
from mlsh.settings import cli, parse

STUDY = Study(
    name="tried",
    best_return=43.8,
    horizon=50,
    methods={"one": "train.py --sub_lr", "two": "train.py -W 0 --sub_lr", "other": "train.py -U 2 --sub_lr"},
    rates=(1e-3, 2e-3, 4e-3),
    sharing=("one", "two"),
    seeds=range(2),
    choosing_seed=100,
    parts=(),
)

PAGES = sorted(path.stem for path in (CODE / "studies").glob("*.py"))


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study in `tmp_path`, its jobs only noted: `study.started`."""
    study = dataclasses.replace(STUDY)
    study.folder, study.figures, study.started = tmp_path, tmp_path, []
    monkeypatch.setattr(study, "run", lambda *groups: study.started.extend(job for jobs in groups for job in jobs))
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
    """The cells of the tables on the screen, a row each, without the rules."""
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("|-")]


def test_a_training_curve_by_hand(study, tmp_path):
    write_metrics(tmp_path / "a-0", [[9, 1], [7, 3]])
    steps, returns, tasks = module.training_curve(study, module.Job("a-0", ""))
    assert steps.tolist() == [1, 2] and returns.tolist() == [[9, 7], [1, 3]] and tasks == ["0", "1"]
    write_metrics(tmp_path / "rl2", [[9, 1]], column="episode_0,episode_1")  # the last episode of a trial counts
    text = (tmp_path / "rl2" / "metrics.csv").read_text()
    (tmp_path / "rl2" / "metrics.csv").write_text(
        text.replace(",1\n", ",1,5\n").replace(",10\n", ",10,20\n").replace(",8\n", ",8,30\n")
    )
    assert module.training_curve(study, module.Job("rl2", ""))[1].tolist() == [[25], [5]]
    write_metrics(tmp_path / "b-0", [[9, 1], [7]])  # a task that not every outer iteration has
    steps, returns, tasks = module.training_curve(study, module.Job("b-0", ""))
    np.testing.assert_allclose(returns, [[19 / 3, 7]])
    assert tasks == [None]
    (tmp_path / "b-0" / "metrics.csv").write_text("iteration,task,env_steps,joint_reward\n0,0,5,1\n")
    with pytest.raises(UserError, match="older version, without train_env_steps"):
        module.training_curve(study, module.Job("b-0", ""))
    write_metrics(tmp_path / "c-0", [[9, 1], [7, 3]])  # begun with an older version, and continued
    text = (tmp_path / "c-0" / "metrics.csv").read_text()
    (tmp_path / "c-0" / "metrics.csv").write_text(text.replace(",1000000,", ",,"))
    with pytest.raises(UserError, match="older version"):
        module.training_curve(study, module.Job("c-0", ""))


def test_a_method_takes_its_best_rate_and_some_share_one(study, tmp_path):
    """One alone would take .001, two .004, and both together .002."""
    ends = {"one": (30, 29, 1), "two": (1, 29, 30), "other": (1, 2, 3)}
    for method, of_rates in ends.items():
        for rate, end in zip(study.rates, of_rates, strict=True):
            write_metrics(tmp_path / f"{method}-{rate:g}-100", [[40, 40], [end, end]])
    seen = []
    study.parts = (lambda study: seen.append(dict(study.chosen)),)
    study.make(tmp_path)
    assert seen == [{"one": 2e-3, "two": 2e-3, "other": 4e-3}]
    assert {job.name.rsplit("-", 1)[1] for job in study.started} == {"100"} and len(study.started) == 9
    assert ("other-0.002-100", "train.py -U 2 --sub_lr 0.002 --seed 100") in study.started


def test_learning_curves_rank_the_tasks_of_each_run_by_its_end(study, tmp_path, capsys):
    study.chosen = dict.fromkeys(study.methods, 1e-3)
    for method, ends in {"one": ((43, 41), (41, 43)), "two": ((43, 4), (4, 43)), "other": ((43, 39), (40, 43))}.items():
        for seed, of_tasks in enumerate(ends):
            write_metrics(tmp_path / f"{method}-0.001-{seed}", [[0, 0], of_tasks])
    columns = {"both": ALL, "better task": BEST_TASK, "worse task": WORST_TASK}
    learning_curves(study, "x.png", {"both": ALL, "worse": WORST_TASK}, columns)
    header, *rows = printed(capsys)
    assert header == ["method", "learning rate", *columns, "worse task ≥ 90%", "env steps"]
    assert rows[0][2:] == ["42.0 (42.0 to 42.0)", "43.0 (43.0 to 43.0)", "41.0 (41.0 to 41.0)", "2 of 2", "2.0 M"]
    assert rows[1][4:6] == ["4.0 (4.0 to 4.0)", "0 of 2"] and rows[2][5] == "1 of 2"
    assert iio.imread(tmp_path / "x.png").std() > 0 and len(study.started) == 6


def test_masters_of_a_run_are_one_run_and_tasks_in_its_order(study, tmp_path, capsys, monkeypatch):
    """Two runs, the first worse on task 1; one of its two masters never learns that. From scratch a master is a run."""
    study.chosen = {"one": 1e-3}
    ways = {
        "new master": Way("one", [(1, 0.1), (1, 0.2)], 300, (2, 2), [100]),
        "scratch": Way("alone", [(2, 0.3)], 600, (2, 2), command="train.py --num_sub_policies 0"),
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
    monkeypatch.setattr(study_parts, "draw_bands", lambda path, panels, *_, **__: drawn.update(panels))
    panels = {"worse": Panel(WORST_TASK), "better": Panel(BEST_TASK)}
    adaptation(study, "x.png", panels, ways, ("new master", "scratch"))
    assert drawn["worse"]["new master"][1].tolist() == [[10, 43]] + [[23, 43]] * 6  # [n, runs]
    assert drawn["better"]["new master"][1].tolist() == [[43, 43]] * 7
    assert drawn["worse"]["scratch"][1].tolist() == worse.tolist()
    rows = [row for row in printed(capsys) if row[0] == "new master"]
    assert [row[1] for row in rows] == ["1 episodes, 0.1"] * 2 + ["1 episodes, 0.2 (chosen)"] * 2
    assert [row[2] for row in rows[:2]] == ["worse", "better"]
    assert [row[4:6] for row in rows[2:]] == [["3 of 4", "3 of 4"], ["4 of 4", "4 of 4"]]
    assert rows[2][3] == "75 (0 to never)"  # of 150, never, 0 and 0
    flags = {job.command.split(" -N ")[1] for job in study.started if "/adapt-1-0.2-1" in job.name}
    assert "1 --master_lr 0.2 --master_minibatch 64 --updates 6 --seeds 2 --seed 1 --eval_episodes 50" in flags


def test_a_panel_of_other_tasks_is_chosen_for_on_those_of_training(study, tmp_path, capsys):
    """With 0.1 the held-out tasks would go better, but are not looked at; each counts by its own best return."""
    study.chosen, steps = {"one": 1e-3}, np.arange(7) * 50
    ways = {"new master": Way("one", [(1, 0.1), (1, 0.2)], 300, (2, 1), [100])}
    for seed in (0, 1, 100):
        write_metrics(tmp_path / f"one-0.001-{seed}", [[0, 0], [43, 43]])
        for rate, held_out in ((0.1, 39), (0.2, 38.4)):
            write_adaptation(tmp_path / f"one-0.001-{seed}/adapt-1-{rate}-{seed}", steps, np.full((7, 2, 2), 40))
            folder = tmp_path / f"one-0.001-{seed}/adapt-held_out-1-{rate}-{seed}"
            write_adaptation(folder, steps, np.full((7, 3, 2), held_out), (40, 42, 48))
    for rate, trained in ((0.1, 40), (0.2, 41)):
        write_adaptation(tmp_path / f"one-0.001-100/adapt-1-{rate}-100", steps, np.full((7, 2, 1), trained))
    panels = {"known": Panel(), "new": Panel(tasks="--held_out")}
    adaptation(study, "x.png", panels, ways, ("new master", "new master"))
    rows = [row for row in printed(capsys) if "chosen" in row[1]]
    assert [row[1:3] for row in rows] == [["1 episodes, 0.2 (chosen)", "known"], ["1 episodes, 0.2 (chosen)", "new"]]
    assert [row[4:6] for row in rows] == [["0 of 8", "8 of 8"], ["4 of 12", "8 of 12"]]  # 40 of 43.8; .96, .91, .8
    assert [row[-1] for row in rows] == ["91%", "89%"]
    held_out = [job for job in study.started if "/adapt-held_out-" in job.name]
    assert len(held_out) == 4 and all(job.command.endswith(" --eval_episodes 50 --held_out") for job in held_out)


def test_parts_of_the_best_possible(study):
    assert study.part(np.array([21.9, 20.0]), np.array([np.nan, 40.0])).tolist() == [0.5, 0.5]
    study.unit = 2.0  # what is missing counts, where the best may be negative
    np.testing.assert_allclose(study.part(np.array([0.8, -0.3]), np.array([0.9, -0.1])), [0.95, 0.9])
    assert [dataclasses.replace(study, best_return=x).decimals for x in (0.75, 43.8, 193, np.nan)] == [3, 1, 0, 1]


def test_final_tests_against_the_best_possible(study, tmp_path, capsys):
    """Known of each task, of the environment, negative, or not at all."""
    for name, env, best, *returns in (
        ("a-3", "Fourrooms-v0", (80, 40), 60, 38),
        ("b-3", "MovementBandits-v0", None, 43.8, 21.9),
        ("c-3", "Allwalk-v0", (-0.3, -0.2), -0.5, -0.4),
        ("d-3", "foreign:Env-v0", None, 1, 2),
    ):
        rows = [{"return": x} | ({"best_return": best[i]} if best else {}) for i, x in enumerate(returns)]
        (tmp_path / name).mkdir()
        results = {"env": env, "test": rows, "env_steps": 10**6, "seconds": 60.4}
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    final_tests(study, dict.fromkeys("abcd", "train.py"), [3])
    assert [row[2:6] for row in printed(capsys)[1:]] == [
        ["38", "49", "60", "75.0 %"],
        ["21.9", "32.85", "43.8", "50.0 %"],
        ["-0.5", "-0.45", "-0.25", ""],
        ["1", "1.5", "", ""],
    ]
    assert [job.command for job in study.started] == ["train.py --seed 3"] * 4


def test_what_learns_anew_by_hand(study, tmp_path, capsys):
    """Two runs of one, with two learners each; another is evaluated on two tasks and then on one, and reports more."""
    learners = {"a name": Learner("train.py", [3, 4], ["-N 8"]), "b": Learner("train.py", [0], ["-N 1", "-N 2"])}
    write_adaptation(tmp_path / "a-name-3" / "anew-0", (0, 50), [[[1, 2]], [[10, 20]]])
    write_adaptation(tmp_path / "a-name-4" / "anew-0", (0, 50), [[[3, 4]], [[30, 40]]])
    write_adaptation(tmp_path / "b-0" / "anew-0", (0, 1700), [[[0], [0]], [[5], [6]]])
    path = write_adaptation(tmp_path / "b-0" / "anew-1", (0, 1700), [[[0, 0]], [[8, 6]]])
    header, *rows = path.read_text().split("\n")[:-1]
    more = [f"{header},final_there", *(f"{row},{x}" for row, x in zip(rows, (0, 1, 0.5, 0.25), strict=True))]
    path.write_text("\n".join([*more, ""]))
    learned_anew(study, learners, figure="anew.png")
    evaluations = [(job.name, *job.command.split()[2:]) for job in study.started[3:]]
    assert [job.command for job in study.started[:3]] == [f"train.py --seed {seed}" for seed in (3, 4, 0)]
    assert evaluations == [
        *((f"a-name-{seed}/anew-0", "-N", "8", "--seed", str(seed)) for seed in (3, 4)),
        *((f"b-0/anew-{i}", "-N", str(i + 1), "--seed", "0") for i in (0, 1)),
    ]
    assert printed(capsys)[1:] == [
        ["a name", "task 0 (red)", "4", "50", "return 25 (10 to 40)"],
        ["b", "task 0 (red)", "1", "1,700", "return 5 (5 to 5)"],
        ["b", "task 1 (red)", "1", "1,700", "return 6 (6 to 6)"],
        ["b", "task 0 (red)", "2", "1,700", "return 7 (6 to 8); there 0.375 (0.25 to 0.5)"],
    ]
    assert (tmp_path / "anew.png").stat().st_size > 1000


def test_where_ants_go_is_drawn(study, command, tmp_path, monkeypatch):
    monkeypatch.chdir(CODE)
    ants = importlib.import_module("studies.ants")
    monkeypatch.setattr(ants, "EPISODES", 2)
    flags = ["--env", "AntMovement-v1", "--record", 0, "-T", 9, "--out", tmp_path / "x"]
    assert command("train.py", *TINY, *flags)[0] == 0
    ants.draw_primitives(study, "alone.png", ["x", "x"])
    ants.draw_ways(study, "ways.png", "x", "AntMaze-v1", updates=0, N=1)
    for name, width in (("alone.png", 792), ("ways.png", 1430)):
        assert iio.imread(tmp_path / name).shape[1] == width
    drawn, draw_paths = [], ants.draw_paths
    monkeypatch.setattr(ants, "draw_paths", lambda axes, *args: drawn.append(args))
    ants.draw_primitives(study, "alone.png", ["x"])
    assert (drawn[0][0][0] == 0).all() and (drawn[0][0][-1] != 0).all()  # displacements
    ants.draw_ways(study, "ways.png", "x", "AntMaze-v1", updates=0, N=1, T=11)
    assert len(drawn[-1][0]) == 11
    agent, cfg, one = ants.load(study, "x", "AntMovement-v1")
    xy, active = ants.follow(ants.stubborn(agent, 1), cfg, [0, 0])
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


def test_words_for_figures():
    assert study_parts.with_interval([7.0, 7.0, 7.0], 1) == "7.0 (7.0 to 7.0)"
    assert study_parts.spread([3000.0, np.inf, 1000.0]) == "3,000 (1,000 to never)"


def jobs_of(study):
    """A job of each kind that the study would start."""
    study.chosen = dict.fromkeys(study.methods, 1e-3)
    yield from (study.training(method, [0])[0] for method in study.methods)
    for told in (part.keywords for part in study.parts):
        for way in told.get("ways", {}).values():
            yield way.training(study)[0]
            yield from (next(way.evaluations(study, way.grid[0], panel.tasks)) for panel in told["panels"].values())
        yield from (module.Job("run", command) for command in told.get("commands", {}).values())
        for learner in told.get("learners", {}).values():
            yield module.Job("run", learner.command)
            yield from (study.evaluation(module.Job("run", ""), "anew", flags) for flags in learner.flags)
        for what, flags in told.get("cells", {}).values():
            job = module.Job("cell", f"{study.methods.get(what, what)} 0.001")
            yield from (job, study.evaluation(job, "adapt", flags))


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_flags_that_there_are_and_leaves_wandb_alone(page):
    study = importlib.import_module(f"studies.{page}").STUDY
    assert study.name == page.replace("_", "-") and set(study.sharing) <= set(study.methods)
    kinds = {"train.py": Config, "train_rl2.py": RL2Config, "train_option_critic.py": OptionCriticConfig}
    for job in jobs_of(study):
        script, *flags = job.command.split()
        if script == "evaluate.py":
            cli(Args, args=flags).validate()
        else:
            assert parse(kinds[script], flags, None)[0].wandb == "disabled"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_chooses_on_seeds_that_it_does_not_report(page):
    study = importlib.import_module(f"studies.{page}").STUDY
    ways = [way for part in study.parts for way in part.keywords.get("ways", {}).values()]
    assert (study.choosing_seed not in study.seeds) if study.methods or ways else not study.seeds
    for way in ways:
        assert not set(way.choosing_seeds) & set(study.seeds)


def test_help_starts_nothing():
    words = [sys.executable, "-m", "studies.bandits", "--help"]
    run = subprocess.run(words, cwd=CODE, capture_output=True, text=True)
    assert run.returncode == 0 and "--figures" in run.stdout and "Stop it at will" in run.stdout, run.stderr


@pytest.mark.slow
def test_the_whole_study_shrunken(command, tmp_path, monkeypatch, capfd):
    tiny = " ".join(["train.py", *TINY])
    methods = {
        "MLSH": "",
        "no warm-up": "-W 0",
        "timescale 1": "--high_len 1",
        "shared policy": "--num_sub_policies 1 -W 0",
    }
    methods = {name: f"{tiny} {flags} --sub_lr" for name, flags in methods.items()}
    said = []

    def run_here(self, jobs):
        said.append(capfd.readouterr().out)
        for name, line in dict.fromkeys(jobs):
            script, *flags = line.split()
            if not any((tmp_path / name / last).exists() for last in ("results.json", "adaptation.csv")):
                code, _, err = command(script, *flags, "--out", tmp_path / name)
                assert code == 0, err

    monkeypatch.setattr(module.Jobs, "run", run_here)
    monkeypatch.setattr(study_parts, "SOLVED", 0)  # what so small a run does
    monkeypatch.chdir(CODE)
    fewer = {(1, 2): "--updates 0", (2, 2): "--updates 2"}
    ways = {
        "MLSH, new master": Way("MLSH", [(3, 1e-3), (2, 2e-3)], 900, (2, 2), (100, 101)),
        "shared policy, fine-tuned": Way("shared policy", [(2, 1e-3)], 900, (2, 2), [100]),
        "scratch": Way("scratch", [(2, 1e-3)], 900, (2, 2), command=f"{tiny} --num_sub_policies 0 -U 0"),
    }
    columns = {"both": ALL, "worse": WORST_TASK}
    panels = {"both": Panel(), "orange": Panel(tasks="--tasks 0"), "blue": Panel(tasks="--tasks 1")}
    cells = {
        x: (f"{tiny} --num_sub_policies {x[0]} -W {x[1]} --sub_lr", f"{flags} --seeds 2") for x, flags in fewer.items()
    }
    cells[3, 2] = "no warm-up", "--updates 1 --seeds 2"
    study = dataclasses.replace(
        STUDY,
        methods=methods | {"RL2": "train_rl2.py --iterations 2 -N 4 -T 7 --wandb disabled --lr"},
        rates=(1e-3, 2e-3),
        sharing=("MLSH", "no warm-up"),
        parts=(
            partial(learning_curves, figure="training.png", panels=columns, columns=columns),
            partial(adaptation, figure="anew.png", panels=panels, ways=ways, compared=("MLSH, new master", "scratch")),
            partial(
                adaptation,
                figure="few.png",
                panels={"all": Panel()},
                ways=ways,
                compared=("scratch", "scratch"),
                chosen_only=True,
            ),
            partial(final_tests, commands={"four": f"{tiny} --env MovementBandits4-v0"}, seeds=range(2)),
            partial(
                sweep, figure="map.png", name="sweep", method="MLSH", cells=cells, seeds=[0], title="", labels="KWW"
            ),
        ),
    )
    study.folder = tmp_path
    study.make(tmp_path / "figures")
    out = "".join(said) + capfd.readouterr().out
    rows = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("| ")]
    assert rows[:6] == ["method", *study.methods] and rows[6] == "method"
    few = rows.index("method", 7)
    assert (
        {*rows[7:few]} == {*ways}
        and rows[few + 1 : -7] == [*ways]
        and rows[-7:] == ["runs", "four", "four", "K", "1", "2", "3"]
    )
    assert out.count("(chosen)") == 12
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "training.png",
        "anew.png",
        "few.png",
        "map.png",
    }
    assert len(read_adaptation(study, module.Job("sweep-1-2-0/sweep", ""))[0]) == 1
    assert len(read_adaptation(study, module.Job("sweep-2-2-0/sweep", ""))[0]) == 3
    (of_method,) = study.training("no warm-up", [0])
    assert len(read_adaptation(study, module.Job(f"{of_method.name}/sweep", ""))[0]) == 2
