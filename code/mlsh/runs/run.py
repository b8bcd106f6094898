"""A training run's life: settings, processes, folder, lock, checkpoint, resuming, and its end, however it comes."""

import contextlib
import datetime
import functools
import json
import os
import platform
import secrets
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from mlsh import compiled, parallel
from mlsh.runs import checkpoint
from mlsh.envs.registry import check_memory
from mlsh.errors import EnvironmentFailed, UserError, be_deaf
from mlsh.runs.files import write_whole
from mlsh.settings import parse

PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "pygame-ce", "wandb", "imageio", "matplotlib")
LOCKS = []  # on the run folders of this process


class Run:
    """One run, by this process and those of torchrun, from the command line on: its `kind` says what it trains.

    It trains within the context `alive`. `cfg` are its settings; `mine` are the task groups that this process plays.
    """

    def __init__(self, kind):
        parallel.start()
        self._load = functools.partial(checkpoint.load, kinds=(kind,))
        self.cfg, self._saved = parallel.from_first(lambda: parse(kind, sys.argv[1:], self._load))
        self.cfg.device = parallel.device(self.cfg.device)
        self.cfg.settle()
        check_memory(self.cfg, self.cfg.most_at_once(parallel.SIZE))
        self.progress = {"iteration": 0, "env_steps": 0, "train_env_steps": 0, "seconds": 0.0}
        self.progress["run_id"] = secrets.token_hex(4)

    @property
    def mine(self):
        """Which of the task groups."""
        return parallel.mine(self.cfg.groups)

    @contextlib.contextmanager
    def alive(self, make_log, **parts):
        """Make and lock the run's folder; from then on keep its checkpoint. Whatever ends the run, what is done stays.

        `parts`: the modules and optimisers to save, by name; with -c they get what the checkpoint has. Gives
        `make_log(run)`, a `logger.Log`. Raises a UserError for whatever is the user's to mend.
        """
        self._parts = parts
        self.folder = parallel.from_first(lambda: make_run_folder(self.cfg))
        self._path = self.folder / "checkpoint.pt"
        if self._saved:
            saved = parallel.from_first(lambda: self._load(self._path))  # again, now that no other run can change it
            checkpoint.restore(saved, **parts)
            self.progress = {name: saved[name] for name in self.progress}
        self._take_snapshot()
        self.trackers = []
        parallel.from_first(self._start_trackers)  # one that does not start ends the run before there is one
        self._save()  # a disk that cannot take it shows now
        self._describe()
        self._log = make_log(self)
        try:
            yield self._log
        except (FloatingPointError, EnvironmentFailed, parallel.Lost) as error:
            be_deaf()
            self._save()
            self._log.close()
            where = f"in outer iteration {self.progress['iteration']}; {self._path} has what was before"
            raise UserError(f"{error}, {where}") from None
        except UserError as error:  # of writing
            self._log.abandon()
            raise UserError(f"{error}, then -c --out {self.folder} goes on") from None
        except KeyboardInterrupt:  # the outer iteration under way is dropped; -c begins it again
            self._save()
            done, length = self._state["iteration"], self.cfg.length  # it may have come within `keep`
            self._log.say(f"saved after {done} of {getattr(self.cfg, length)} {length}; -c --out {self.folder} goes on")
            self._log.close()
            raise
        parallel.stop()

    def keep(self, **progress):
        """After an outer iteration: what is done now, to be saved if that is due."""
        self.progress |= progress
        if len(compiled.FAILED) > self._failures:
            self._describe()
        self._take_snapshot()
        if time.monotonic() > self._written + self.cfg.save_seconds:
            self._save()

    def finish(self, test=None):
        """Save, and in the first process run the final `test()`, a dict of results, and end the log with it."""
        self._save()
        if parallel.FIRST:
            results = {"env": self.cfg.env, "seed": self.cfg.seed, **self.progress, **(test() if test else {})}
            self._log.close(results)

    def _start_trackers(self):
        """wandb and TensorBoard, as far as they are wanted: each takes half a second and more to import."""
        settle_home(self.folder)
        if self.cfg.wandb_mode != "disabled":
            from mlsh.runs.tracking import Tracker

            self.trackers.append(Tracker(self.cfg, self.folder, self.progress["run_id"], machine()))
        if self.cfg.tensorboard:
            from mlsh.runs.events import Events

            self.trackers.append(Events(self.folder, self.progress["env_steps"]))

    def _describe(self):
        self._failures = len(compiled.FAILED)
        if parallel.FIRST:
            description = {"run_id": self.progress["run_id"], "config": self.cfg.as_dict(), "machine": machine()}
            description["compiler_failed"] = compiled.FAILED[-1] if compiled.FAILED else None
            write_whole(self.folder / "config.json", json.dumps(description, indent=2) + "\n")

    def _take_snapshot(self):
        self._state = checkpoint.snapshot(self.cfg, self.progress, **self._parts)

    def _save(self):
        if parallel.FIRST:
            checkpoint.save(self._state, self._path)
        self._written = time.monotonic()


def make_run_folder(cfg):
    """Create --out, or a new folder in runs/; refuse one with something in it unless it is to be continued.

    It is locked until this process ends: no other run writes there in the meantime.
    """
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    kind = "" if cfg.kind == "mlsh" else f"{cfg.kind}-"
    folder = Path(cfg.out or f"runs/{kind}{cfg.env.split(':')[-1]}-{stamp}")
    ours = {".lock", "videos", "wandb", "checkpoint.pt.tmp"}  # what a run leaves that got no further
    try:
        if not cfg.resume and folder.exists() and (not folder.is_dir() or {p.name for p in folder.iterdir()} - ours):
            raise UserError(f"--out {folder} is not empty; continue it with -c or name another folder")
        (folder / "videos").mkdir(parents=True, exist_ok=True)
        LOCKS.append(FileLock(folder / ".lock"))
        LOCKS[-1].acquire(timeout=0)
    except Timeout:
        raise UserError(f"another run is writing to {folder}; wait for it or name another with --out") from None
    except OSError as error:
        raise UserError(f"cannot make the run folder {folder} ({error.strerror}); name another with --out") from None
    return folder


def settle_home(folder):
    """Where there is no home to write to, what libraries keep there goes to the run folder."""
    home = os.path.expanduser("~")  # noqa: PTH111 (Path.home raises where there is none)
    if not os.access(home, os.W_OK):
        for name in ("HOME", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "MPLCONFIGDIR"):
            os.environ.setdefault(name, str(folder.absolute() / "wandb" / "home"))


def commit():
    """This file's git commit, or None where it is in no repository."""
    here = Path(__file__)

    def git(*args):
        return subprocess.run(
            ["git", *args], cwd=here.parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        return git("describe", "--always", "--dirty")
    except (OSError, subprocess.CalledProcessError):
        return None


@functools.cache
def machine():
    """The commit, versions and hardware that the run is made with, a dict."""
    cpuinfo = Path("/proc/cpuinfo")  # Linux
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
