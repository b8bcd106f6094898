"""What the folder of a finished run of train.py holds."""

import re
import shlex
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from mlsh.config import Config
from mlsh.envs import env_ids
from mlsh.errors import UserError
from mlsh.runs.files import read_json, reading
from mlsh.runs.log import MOMENTS, final_test_tables
from mlsh.runs.metrics import read_metrics

NO_VARIANT = {"compile", "seed", "out", "resume", "wandb_project"} | {*Config.changeable()} - {"tasks"}
NOT_REPEATED = {"env", "out", "resume", "save_seconds", "wandb", "wandb_project", "tensorboard"}
TEST_ROW = {"task": object, "label": str, "return": float, "standard_error": float}
TEST_ROW |= {"share": [float], "sub_policy_returns": [float]}
RESULTS = {"env": str, "seed": int, "env_steps": int, "seconds": float, "test": [TEST_ROW]}  # see `check_shape`
MACHINE = {"threads": int, "packages": {}}
FILM = re.compile(r"\d+-(?P<key>\w+)-video-(?P<task>.+)\.gif")


class Run(NamedTuple):
    """A finished run of train.py."""

    folder: Path
    config: dict[str, Any]
    preset: dict[str, Any]  # see `preset_of`
    machine: dict[str, Any]  # commit, versions and hardware; empty if the run did not write them
    results: dict[str, Any]
    metrics: list[dict[str, str]]  # rows of metrics.csv

    @property
    def lowest_return(self) -> float:
        """The return of the final test on the worst task."""
        return min(row["return"] for row in self.results["test"])

    def changed(self, leave_out: Collection[str]) -> list[str]:
        """The names of the settings that differ from the preset, except those in `leave_out`."""
        return [x for x in self.config if x not in leave_out and self.config[x] != self.preset.get(x)]

    def flags(self, leave_out: Collection[str]) -> str:
        """The flags that differ from the preset, as people type them, except those in `leave_out`."""
        flags = []
        for name in self.changed(leave_out):
            value = self.config[name]
            if isinstance(value, bool):
                flags.append(f"--{name}" if value else f"--no_{name}")
            else:
                flags.append(f"{Config.flag(name)} {shlex.quote(str(value))}")
        return " ".join(flags)

    @property
    def variant(self) -> str:
        """The flags that make the run a different experiment than the preset, or "preset"."""
        return self.flags(NO_VARIANT) or "preset"

    @property
    def command(self) -> str:
        """The command that repeats the run."""
        words = [f"OMP_NUM_THREADS={self.machine['threads']}"] if "threads" in self.machine else []
        words += ["python train.py --env", shlex.quote(self.config["env"]), self.flags(NOT_REPEATED)]
        return " ".join(filter(None, words))

    def films(self, at_most: int = 4) -> dict[str, dict[str, Path]]:
        """The last film of each task at each moment: {task as in the file's name: {moment: path}}.

        If there are more than `at_most` tasks, those that were filmed last are in it.
        """
        moments = {moment.key: name for name, moment in MOMENTS.items()}
        films: dict[str, dict[str, Path]] = {}
        for path in sorted((self.folder / "videos").glob("*.gif"), reverse=True):  # the last outer iteration first
            match = FILM.fullmatch(path.name)
            if path.is_symlink():  # what it points to does not belong on the page
                continue
            if match and match["key"] in moments and (match["task"] in films or len(films) < at_most):
                films.setdefault(match["task"], {}).setdefault(moments[match["key"]], path)
        order = sorted(films, key=lambda task: (len(task), task))
        return {task: {name: films[task][name] for name in MOMENTS if name in films[task]} for task in order}


def read_run(folder: Path) -> Run | None:
    """Read a run folder. If the run has not finished its final test, say so and return None."""
    if not folder.is_dir():
        raise UserError(f"there is no run folder {folder}")
    if not (folder / "results.json").exists() or not read_json(folder / "results.json").get("test"):
        print(f"{folder} has no results of a final test of train.py and is left out", file=sys.stderr)
        return None
    path = folder / "config.json"
    saved = {"machine": {}} | read_json(path)
    check_shape(saved, {"config": {}, "machine": {}}, str(path))
    check_shape(saved["machine"], {x: shape for x, shape in MACHINE.items() if x in saved["machine"]}, str(path))
    try:
        config = Config.from_dict(saved["config"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return Run(
        folder, config.as_dict(), preset_of(config.env), saved["machine"], read_results(folder), read_rows(folder)
    )


def preset_of(env: str) -> dict[str, Any]:
    """Return the settings that a family of this package has without any flag.

    Those of an environment from elsewhere follow from it, and its module is not imported: for it there are none.
    """
    env_id = env.rpartition(":")[2]
    return Config.defaults(env_id).as_dict() | {"env": env} if env_id in env_ids() else {}


def read_results(folder: Path) -> dict[str, Any]:
    """Return the results.json of a finished run of train.py. Raises a UserError if it is damaged."""
    path = folder / "results.json"
    results = read_json(path)
    check_shape(results, RESULTS, str(path))
    for name, rows in final_test_tables(results).items():
        check_shape(rows, [TEST_ROW], f"{path}: {name}")
        for row in rows:
            numbers = [x for x in row if x == "best_return" or (x.startswith("final_") and row[x] is not None)]
            check_shape(row, dict.fromkeys(numbers, float), f"{path}: {name}")
    return results


def read_rows(folder: Path) -> list[dict[str, str]]:
    """Return the rows of a finished run's metrics.csv. Raises a UserError if there are none, or damaged ones."""
    rows, path = read_metrics(folder), folder / "metrics.csv"
    with reading(path):
        for row in rows or [{}]:
            task, numbers = row["task"], [float(row[name]) for name in ("trained_reward", "seconds")]
            numbers += [int(row[name]) for name in ("iteration", "env_steps")]
            numbers += [float(row[name]) for name in ("pretrain_reward", "joint_reward") if name in row]
            if not all(fits(x, float) for x in numbers):
                raise ValueError(f"a number in a row of task {task} cannot be")
    return rows


def check_shape(x: Any, shape: Any, where: str) -> None:
    """Raise a UserError if what a JSON file holds at `where` has not the `shape` that is expected.

    A shape is a type, a list with the shape of all items, or a dict with the shapes of the values that must be there.
    """
    if isinstance(shape, dict) and isinstance(x, dict):
        for name, of_value in shape.items():
            if name not in x:
                raise UserError(f"{where}: {name} is missing; the file is damaged or of another version")
            check_shape(x[name], of_value, f"{where}: {name}")
    elif isinstance(shape, list) and isinstance(x, list):
        for item in x:
            check_shape(item, shape[0], where)
    elif not fits(x, shape):
        raise UserError(f"{where} is {x!r:.60}; the file is damaged or of another version")


def fits(x: Any, kind: Any) -> bool:
    """Return whether a value from a JSON file is of a type, and as a number neither NaN nor out of all bounds."""
    if type(x) in (int, float) and kind in (int, float):
        return (type(x) is kind or kind is float) and -(2.0**63) < x < 2.0**63
    return kind is object or type(x) is kind
