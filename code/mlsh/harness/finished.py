"""What the folder of a finished run of train.py holds."""

import json
import re
import shlex
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from mlsh.config import Config
from mlsh.errors import UserError
from mlsh.runs.log import MOMENTS
from mlsh.runs.metrics import read_metrics

NO_VARIANT = {"compile", "seed", "out", "resume", "wandb_project"} | {*Config.changeable()} - {"tasks"}
NOT_REPEATED = {"env", "out", "resume", "save_seconds", "wandb", "wandb_project", "tensorboard"}
FILM = re.compile(r"\d+-(?P<key>\w+)-video-(?P<task>.+)\.gif")


class Run(NamedTuple):
    """A finished run of train.py."""

    folder: Path
    config: dict[str, Any]
    machine: dict[str, Any]  # commit, versions and hardware; empty if the run did not write them
    results: dict[str, Any]
    metrics: list[dict[str, str]]  # rows of metrics.csv

    @property
    def lowest_return(self) -> float:
        """The return of the final test on the worst task."""
        return min(row["return"] for row in self.results["test"])

    @property
    def preset(self) -> dict[str, Any]:
        """The settings that the environment has without any flag."""
        return Config.defaults(self.config["env"]).as_dict()

    def changed(self, leave_out: Collection[str]) -> list[str]:
        """The names of the settings that differ from the preset, except those in `leave_out`."""
        return [name for name, x in self.preset.items() if name not in leave_out and self.config[name] != x]

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
            if match and match["key"] in moments and (match["task"] in films or len(films) < at_most):
                films.setdefault(match["task"], {}).setdefault(moments[match["key"]], path)
        order = sorted(films, key=lambda task: (len(task), task))
        return {task: {name: films[task][name] for name in MOMENTS if name in films[task]} for task in order}


def read_run(folder: Path) -> Run | None:
    """Read a run folder. If the run has not finished its final test, say so and return None."""
    if not folder.is_dir():
        raise UserError(f"there is no run folder {folder}")
    path = folder / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    if "test" not in results:
        print(f"{folder} has no results of a final test of train.py and is left out", file=sys.stderr)
        return None
    saved = json.loads((folder / "config.json").read_text())
    config = Config.from_dict(saved["config"]).as_dict()
    return Run(folder, config, saved.get("machine", {}), results, read_metrics(folder))
