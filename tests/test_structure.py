"""Imports run downwards only, and docs/drawings.py draws them."""

import ast
import importlib.util
import shutil
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import imageio.v3 as iio
import pytest

from conftest import CODE

SCRIPT = CODE.parent / "docs" / "drawings.py"
spec = importlib.util.spec_from_file_location("drawings", SCRIPT)
drawings = importlib.util.module_from_spec(spec)
spec.loader.exec_module(drawings)
IMPORTS = drawings.imports()


def importers(*packages):
    """The modules that import anything from these packages."""
    return {module for module, names in IMPORTS.items() if any(name.startswith(packages) for name in names)}


def test_there_is_no_import_cycle():
    TopologicalSorter(IMPORTS).prepare()
    with pytest.raises(CycleError):
        TopologicalSorter(IMPORTS | {"mlsh.errors": {"mlsh.runs.files"}}).prepare()


def test_nothing_imports_a_script():
    scripts = {name for name in IMPORTS if not name.startswith("mlsh.")}
    assert {"train", "evaluate", "studies.bandits"} <= scripts
    assert not scripts & set().union(*IMPORTS.values())


def test_the_algorithm_imports_no_sub_package_and_packages_import_downwards():
    for module in ("models", "networks", "normaliser", "ppo", "optim", "minibatches", "errors", "compiled"):
        sub_packages = ("mlsh.envs", "mlsh.baselines", "mlsh.runs", "mlsh.harness")
        assert not any(name.startswith(sub_packages) for name in IMPORTS[f"mlsh.{module}"]), module
    assert not {m for m in importers("mlsh.runs", "mlsh.baselines", "mlsh.harness") if m.startswith("mlsh.envs")}
    assert not {m for m in importers("mlsh.baselines", "mlsh.harness") if m.startswith("mlsh.runs")}
    around = {"mlsh.runs.checkpoint", "mlsh.runs.files", "mlsh.runs.tracking", "mlsh.settings"}
    assert not IMPORTS["train"] & around  # train.py is Algorithm 1


def test_every_function_has_annotated_arguments_and_results():
    missing = []
    for path in sorted(CODE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                given = node.args
                arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
                named = [x for x in arguments if x and x.arg not in ("self", "cls")]
                if node.returns is None or any(x.annotation is None for x in named):
                    missing.append(f"{path.relative_to(CODE)}:{node.lineno} {node.name}")
    assert not missing, "\n".join(missing)


def test_drawings(tmp_path):
    run = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True)
    if not shutil.which("dot"):
        assert run.returncode == 2 and "Graphviz is missing" in run.stderr
        return
    assert run.returncode == 0, run.stderr
    names = {"architecture.png", "algorithm.png", "structure.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert all(iio.imread(tmp_path / name).std() > 10 for name in names)


def test_a_missing_folder_is_refused_in_one_line():
    run = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert run.returncode == 2 and run.stderr.count("\n") == 1 and "PATH" in run.stderr
