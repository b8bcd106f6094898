"""The examples as a user runs them."""

import json
import os
import re
import subprocess
import sys

import pytest

from conftest import CODE

NOTEBOOK = CODE.parent / "examples" / "primitives.ipynb"
BEST = 41  # of the 50 steps of an episode, the first nine cannot pay


def test_the_corridor_is_learned(tmp_path):
    """All of six seeds tried learn both tasks with these flags. With two groups and four iterations, two seeds fail."""
    flags = "--env corridor:Corridor-v0 --groups 4 -N 20 -W 5 -U 5 --tasks 6 --test_episodes 20 --seed 1"
    command = [sys.executable, "train.py", *flags.split(), "--record", "0", "--wandb", "disabled", "--out", tmp_path]
    path = os.pathsep.join(filter(None, (str(CODE.parent / "examples"), os.environ.get("PYTHONPATH"))))
    run = subprocess.run(command, cwd=CODE, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "corridor:Corridor-v0 has no preset; these defaults follow from it:\n" in run.stderr
    assert re.search(r"^--high_len +13 +four decisions per episode$", run.stderr, re.M)
    test = json.loads((tmp_path / "results.json").read_text())["test"]
    returns = {row["task"]: row["return"] for row in test}
    assert set(returns) == {0, 1}
    assert all(BEST / 2 < x <= BEST for x in returns.values()), returns  # an agent that knows one task has 41 and 0


def test_the_readme_shows_the_corridor_as_it_is():
    page, example = ((CODE.parent / name).read_text() for name in ("README.md", "examples/corridor.py"))
    (lines,) = [block.splitlines() for block in re.findall(r"```python\n(.*?)```", page, re.S) if "class" in block]
    assert len(lines) > 10 and all(line in example.splitlines() for line in lines)


@pytest.mark.slow
@pytest.mark.very_slow
def test_the_notebook_learns_both_tasks():
    """Its last cell asserts it."""
    import nbclient
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    there = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=there).execute()


def test_the_notebook_is_shown_with_figures_and_without_paths_of_a_machine():
    outputs = [x for cell in json.loads(NOTEBOOK.read_text())["cells"] for x in cell.get("outputs", ())]
    assert len([x for x in outputs if "image/png" in x.get("data", ())]) == 5
    text = "".join(line for x in outputs for line in (*x.get("text", ()), *x.get("data", {}).get("text/plain", ())))
    assert "task 1" in text and not re.search(r"(^|[\s'\"(])(/|[A-Z]:)\w", text)
    assert not any("ename" in x for x in outputs) and NOTEBOOK.stat().st_size < 500_000
