"""The study of the 2D bandits: its parts, as the whole takes hours."""

import numpy as np
import pytest

from conftest import CODE, TINY
from mlsh.errors import UserError
from mlsh.logger import read_metrics


@pytest.fixture
def bandits(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(CODE)
    import bandits

    monkeypatch.setattr(bandits, "RUNS", tmp_path)
    return bandits


def test_a_run_is_made_once_continued_and_begun_again(bandits, tmp_path, capsys):
    job = name, line = "a", " ".join(["train.py", *TINY])

    def starts():
        bandits.run(job)
        return capsys.readouterr().out.count("a: train.py")

    assert starts() == 1 and starts() == 0
    rows = read_metrics(tmp_path / "a")
    (tmp_path / "a" / "results.json").unlink()  # as if stopped in the final test
    assert starts() == 1 and read_metrics(tmp_path / "a") == rows  # clock times too: nothing was trained again
    (tmp_path / "a" / "results.json").unlink()
    (tmp_path / "a" / "checkpoint.pt").unlink()  # as if stopped before the first save
    assert starts() == 1 and read_metrics(tmp_path / "a") != rows
    with pytest.raises(UserError, match="a is of another command"):
        bandits.run((name, f"{line} --seed 1"))


def test_a_run_that_fails_is_named(bandits):
    with pytest.raises(UserError, match="b failed: .*None-v0 is unknown"):
        bandits.run_all([("b", "train.py --env None-v0")])


def test_evaluations_are_read_as_they_were_written(bandits, tmp_path):
    import evaluate

    env_steps, returns = np.array([0.0, 100.0, 200.0]), np.random.default_rng(0).random((3, 2, 4))
    (tmp_path / "x").mkdir()
    evaluate.write({"a run": (env_steps, returns, ["task 0", "task 1"])}, tmp_path / "x")
    read = bandits.read_adaptation("x")
    np.testing.assert_array_equal(read[0], env_steps)
    np.testing.assert_allclose(read[1], returns, rtol=1e-5)


def test_an_evaluation_job(bandits, tmp_path):
    bandits.run(("a", " ".join(["train.py", *TINY])))
    name, command = bandits.adaptation_job("a", 2, 1e-3, steps=400, first=7, seeds=3)
    bandits.run((name, command))
    env_steps, returns = bandits.read_adaptation(name)
    assert name.startswith("a/") and returns.shape == (5, 2, 3) and np.isfinite(returns).all()
    assert env_steps.tolist() == [0, 14, 28, 42, 56]  # two episodes of seven steps an update


def test_the_whole_study_shrunken(bandits, command, tmp_path, monkeypatch, capfd):
    tiny = " ".join(["train.py", *TINY])
    methods = {"MLSH": "", "no warm-up": "-W 0", "timescale 1": "--high_len 1", "shared policy": "--num_low 1 -W 0"}
    methods = {name: f"{tiny} {flags} --llr" for name, flags in methods.items()}
    small = {
        "ASSETS": tmp_path,
        "SEEDS": range(2),
        "CHOOSING_MASTERS": (100, 101),
        "RATES": (1e-3, 2e-3),
        "METHODS": methods | {"RL2": "train_rl2.py --iterations 2 -N 4 -T 7 --lr"},
        "SMALL": tiny,
        "budget": lambda W, U, steps: f"-W {W} -U {U}",
        "SWEEP": [(1, 2), (2, 2)],
        "solved": lambda env_steps, returns: env_steps[len(env_steps) // 7],
        "SCRATCH": f"{tiny} --num_low 0 -U 0",
        "FOUR_GOALS": f"{tiny} --env MovementBandits4-v0 --num_low 4",
        "MASTER": (900, [(3, 1e-3), (2, 1e-3), (3, 2e-3), (2, 2e-3)]),
        "FINE_TUNING": (2000, [(2, 1e-3)]),
        "FROM_SCRATCH": (2000, [(2, 1e-3)]),
    }
    for name, value in small.items():
        monkeypatch.setattr(bandits, name, value)
    printed = []

    def run_here(jobs):
        printed.append(capfd.readouterr().out)
        for name, line in jobs:
            script, *flags = line.split()
            if not (tmp_path / name / bandits.LAST[script]).exists():
                code, _, err = command(script, *flags, "--out", tmp_path / name)
                assert code == 0, err

    monkeypatch.setattr(bandits, "run_all", run_here)
    monkeypatch.chdir(CODE)  # as `run` does
    bandits.main()
    out = "".join(printed) + capfd.readouterr().out
    rows = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("| ")]
    adapted = ["MLSH, new master"] * 2 + ["shared policy, fine-tuned", "PPO from scratch"]  # all rates, two tasks
    expected = ["method", *small["METHODS"], "method", *(x for x in adapted for _ in "01")]
    assert rows == [*expected, "seed", "0", "1", "2", "sub-policies", "1", "2"]
    assert out.count("(chosen)") == 6 and out.count("times fewer env steps than from scratch") == 4
    pictures = {"bandits-training.png", "bandits-adaptation.png", "bandits-sweep.png"}
    assert pictures <= {path.name for path in tmp_path.iterdir()}
    assert len(bandits.read_adaptation("sweep-1-2-0/adapt")[0]) == 1  # one sub-policy is not fine-tuned
    assert len(bandits.read_adaptation("sweep-2-2-0/adapt")[0]) == 21


def test_budget_by_hand(bandits):
    """Four groups of 40 episodes of 50 steps: 8,000 env steps an iteration, 168,000 an outer one."""
    assert bandits.budget(20, 1, 5e6) == "-W 20 -U 1 --tasks 30 --fade 20"
    assert bandits.budget(60, 1, 1) == "-W 60 -U 1 --tasks 1 --fade 1"


def test_training_curves_and_rates_by_hand(bandits, tmp_path):
    """Of each rate a run, with what it ends at; MLSH's env steps without the measuring rollouts, 6 of 9 here."""
    for rate, end in zip(bandits.RATES, (1, 4, 2, 3), strict=True):
        folder = tmp_path / bandits.named("MLSH", rate, bandits.CHOOSING)
        folder.mkdir()
        (folder / "config.json").write_text('{"config": {"W": 4, "U": 2}}')
        rows = [f"{i},{task},{i + 1}000000,{x}" for i in (0, 1) for task, x in ((0, 9), (1, i * end), (1, i * end))]
        (folder / "metrics.csv").write_text("\n".join(["iteration,task,env_steps,joint_reward", *rows, ""]))
    steps, returns = bandits.training_curve(folder.name)
    np.testing.assert_allclose(steps, [6 / 9, 12 / 9])
    assert returns.tolist() == [[9, 9], [0, 3]]
    assert bandits.best_rate("MLSH") == bandits.RATES[1]


def test_masters_of_a_run_are_one_run_and_tasks_in_its_order(bandits, monkeypatch, tmp_path):
    """Two runs of MLSH, the first worse on task 1; a master on its worse task never learns."""
    ways = {
        "MLSH, new master": (["c"], ["a", "b"], 2, 100, [(1, 0.1)]),
        "PPO from scratch": (["s"], ["s"], 2, 100, [(1, 1)]),
    }
    worse = np.array([[10, 10], [43, 3]])  # [updates + 1, masters]
    better = np.full((2, 2), 43)
    returns = {"a": np.stack((better, worse), 1), "b": np.stack((better, better), 1), "s": np.stack((worse, better), 1)}
    drawn, shown = {}, []
    fakes = {
        "learners": lambda rates: ways,
        "run_all": lambda jobs: None,
        "area": lambda evaluations: 0,
        "training_curve": lambda run: (None, np.array([[4.0] * 20, [3.0 if run == "a" else 5.0] * 20])),
        "read_adaptation": lambda name: (np.array([0.0, 100.0]), returns[name.split("/")[0]]),
        "solved": lambda steps, y: 100.0 if y[-1] > 41 else np.inf,
        "draw_bands": lambda path, panels, *_, **__: drawn.update(panels),
        "table": lambda header, rows: shown.extend(rows),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(bandits, name, fake)
    bandits.adaptation({})
    first, second = (panel["MLSH, new master"][1] for panel in drawn.values())
    assert first.tolist() == [[10, 43], [23, 43]] and second.tolist() == [[43, 43], [43, 43]]
    assert [row[4:6] for row in shown[:2]] == [["3 of 4", "3 of 4"], ["4 of 4", "4 of 4"]]
    assert drawn["the run's worse task"]["PPO from scratch"][1].tolist() == worse.tolist()


def test_figures_of_curves_by_hand(bandits, monkeypatch):
    steps = np.array([0.0, 100.0, 200.0])
    eleven = np.arange(11) * 10.0
    assert bandits.solved(eleven, np.where(eleven < 40, 0, 42)) == 60  # the first with five good ones around it
    assert bandits.solved(eleven, np.full(11, 42.0)) == 0
    assert bandits.solved(eleven, np.where(eleven == 50, 43.8, 41)) == np.inf  # one that is good by chance
    assert bandits.last_tenth(np.arange(20.0)).tolist() == 18.5 and bandits.last_tenth(np.arange(3.0)) == 2
    curves = {"x": (steps, np.ones((3, 2, 1)) * [[[0]], [[4]], [[8]]]), "y": (steps, np.full((3, 2, 1), 2.0))}
    monkeypatch.setattr(bandits, "read_adaptation", curves.get)
    assert bandits.area([("x", "")]) == 4 and bandits.area([("x", ""), ("y", "")]) == 3
    assert bandits.with_interval([7.0, 7.0, 7.0]) == "7.0 (7.0 to 7.0)"
    assert bandits.spread([3000.0, np.inf, 1000.0]) == "3,000 (1,000 to never)"
