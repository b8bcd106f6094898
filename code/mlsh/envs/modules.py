"""Importing the modules of environments, without running code that lies in a run folder of somebody else.

A checkpoint names its environment as `module:Id`, so whoever wrote it chooses which module is imported.
"""

import importlib
import importlib.util
import shlex
import sys
from pathlib import Path

from mlsh.errors import UserError

FROM_CHECKPOINTS: dict[str, Path] = {}  # `module:Id` of an environment -> the checkpoint that names it


def import_checked(name: str, env: str) -> None:
    """Import the module `name` of the environment `env` with its parent packages, unless that is done already.

    If only a checkpoint names it, a line is printed first. Raises a UserError for a module in a run folder.
    """
    if name not in sys.modules and env in FROM_CHECKPOINTS and not on_command_line(env):
        remedy = f"to name it yourself, use --env {shlex.quote(env)}, or import it first"
        print(f"importing the module {name!r}, which {FROM_CHECKPOINTS[env]} names; {remedy}", file=sys.stderr)
    parts = name.split(".")
    for package in (".".join(parts[: i + 1]) for i in range(len(parts))):
        if package not in sys.modules:
            refuse_run_folder(package)
            importlib.import_module(package)


def on_command_line(env: str) -> bool:
    """Return whether the command line has --env with this environment."""
    return f"--env={env}" in sys.argv or ("--env", env) in zip(sys.argv, sys.argv[1:], strict=False)


def refuse_run_folder(module: str) -> None:
    """Raise a UserError if a module lies in a folder with a checkpoint. Its parent package must be imported already."""
    spec = importlib.util.find_spec(module)
    for place in [spec.origin, *(spec.submodule_search_locations or ())] if spec else []:
        path = Path(place or "").resolve()
        for folder in (path, *path.parents):
            if place and (folder / "checkpoint.pt").exists():
                raise UserError(f"the module {module} is not imported from the run folder {folder}; move it elsewhere")
