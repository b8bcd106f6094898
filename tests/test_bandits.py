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
    job = "a", " ".join(["train.py", *TINY])

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


def test_budget_by_hand(bandits):
    """Four groups of 40 episodes of 50 steps: 8,000 env steps an iteration, 168,000 an outer one."""
    assert bandits.budget(20, 1, 5e6) == "-W 20 -U 1 --tasks 30 --fade 20"
    assert bandits.budget(60, 1, 1) == "-W 60 -U 1 --tasks 1 --fade 1"


def test_figures_of_curves_by_hand(bandits, monkeypatch):
    steps = np.array([0.0, 100.0, 200.0])
    assert bandits.solved(steps, np.array([1.0, 41.6, 43.0])) == 200
    assert bandits.solved(steps, np.array([41.7, 1.0, 1.0])) == 0
    assert bandits.solved(steps, np.array([1.0, 2.0, 41.0])) == np.inf
    assert bandits.last_tenth(np.arange(20.0)).tolist() == 18.5 and bandits.last_tenth(np.arange(3.0)) == 2
    curves = {"x": (steps, np.ones((3, 2, 1)) * [[[0]], [[4]], [[8]]]), "y": (steps, np.ones((3, 2, 1)))}
    monkeypatch.setattr(bandits, "read_adaptation", curves.get)
    assert bandits.area([("x", "")]) == 4 and bandits.area([("x", ""), ("y", "")]) == 2.5
    assert bandits.with_interval([7.0, 7.0, 7.0]) == "7.0 (7.0 to 7.0)"
