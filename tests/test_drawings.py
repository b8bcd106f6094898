"""The house as its imports have it: drawings.py, and what the rooms may know of each other."""

import shutil
from graphlib import CycleError, TopologicalSorter

import imageio.v3 as iio
import pytest

from conftest import CODE


@pytest.fixture
def drawings(monkeypatch):
    monkeypatch.syspath_prepend(CODE)
    import drawings

    return drawings


def test_arrows_run_down_only(drawings):
    arrows = drawings.imports()
    TopologicalSorter(arrows).prepare()  # refuses circles
    with pytest.raises(CycleError):
        TopologicalSorter(arrows | {"mlsh.errors": {"mlsh.runs.files"}}).prepare()
    scripts = {name for name in arrows if not name.startswith("mlsh.")}
    assert {"train", "evaluate", "studies.bandits"} <= scripts and not scripts & set().union(*arrows.values())
    leaves = ("networks", "normaliser", "minibatches", "compiled", "errors", "plots")
    assert not any(arrows[f"mlsh.{name}"] for name in leaves)
    assert arrows["mlsh.models"] == {"mlsh.errors", "mlsh.networks", "mlsh.normaliser"}
    assert arrows["mlsh.ppo"] == {"mlsh.compiled", "mlsh.minibatches"}
    assert not arrows["train"] & {"mlsh.runs.checkpoint", "mlsh.runs.files", "mlsh.runs.tracking"}
    assert arrows["mlsh.rollout"] == {"mlsh.play", "mlsh.ppo"} and not arrows["mlsh.play"]


def test_drawings(drawings, command, tmp_path):
    code, _, err = command("drawings.py", tmp_path)
    if not shutil.which("dot"):
        assert code == 2 and "Graphviz is missing" in err
        return
    assert code == 0, err
    names = {"architecture.png", "algorithm.png", "house.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert all(iio.imread(tmp_path / name).std() > 10 for name in names)
