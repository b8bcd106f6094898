"""A training run from the command line to its end: settings, processes, run folder, lock, checkpoint, resuming."""

import contextlib
import datetime
import functools
import hashlib
import json
import os
import platform
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from filelock import FileLock, Timeout

from mlsh import __version__, compiled, parallel, process
from mlsh.envs.memory import available_cores
from mlsh.envs.registry import check_memory
from mlsh.errors import EnvironmentFailed, UserError
from mlsh.runs import checkpoint
from mlsh.runs.files import refuse_links, safe_name, write_whole
from mlsh.settings import RunSettings, TrackedSettings, parse

PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "pygame-ce", "wandb", "imageio", "matplotlib")
LOCKS: list[FileLock] = []  # the locks on run folders that this process holds
STARTING = ".starting"  # is in a run folder until the first checkpoint is; what is with it may be overwritten


class Tracker(Protocol):
    """Where values go besides metrics.csv: wandb or TensorBoard."""

    def log(self, values: Mapping[str, Any], env_steps: int) -> None: ...
    def log_image(self, name: str, path: Path, env_steps: int) -> None: ...
    def keep_best(self, snapshot: Mapping[str, Any], trained_reward: float) -> None: ...
    def finish(self, results: Mapping[str, Any], summary: Mapping[str, Any], env_steps: int) -> None: ...
    def close(self) -> None: ...


class ClosableLog(Protocol):
    """What `Run` needs of a log: see `log.Log`."""

    def message(self, text: str) -> None: ...
    def close(self, results: Mapping[str, Any] | None = None) -> None: ...
    def close_after_failed_write(self) -> None: ...


SettingsType = TypeVar("SettingsType", bound=RunSettings)
LogType = TypeVar("LogType", bound=ClosableLog)


class Run(Generic[SettingsType]):
    """A training run, in this process and in the others that torchrun started.

    `kind` is its class of settings. `cfg` are the settings from the command line, or from the checkpoint with -c.
    `progress` is what is done: outer iterations, env steps, seconds. `highest_reward` is the highest trained reward so
    far, which the log reads from metrics.csv. Train in the context `training`. All errors that a user can cause are
    raised as UserError.
    """

    folder: Path  # absolute
    shown: Path  # the same folder in messages: as typed
    trackers: list[Tracker]
    highest_reward: float
    _log: ClosableLog

    def __init__(self, kind: type[SettingsType]) -> None:
        """Join the other processes and read the command line."""
        parallel.start()
        parallel.refuse_differences(command=shlex.join(sys.argv[1:]), code=code_version())
        self._started_in = Path.cwd()  # an environment may change the working folder
        self._load = functools.partial(checkpoint.load, kinds=(kind,))
        self.cfg: SettingsType
        self.cfg, self._saved = parallel.from_first(lambda: parse(kind, sys.argv[1:], self._load))
        self.cfg.device = parallel.local_device(self.cfg.device)
        if not self._saved:
            self.cfg.resolve()
        check_memory(self.cfg, self.cfg.episodes_at_once(parallel.SIZE))
        parallel.from_first(lambda: check_tracking(self.cfg))
        self.progress: dict[str, Any] = {"iteration": 0, "env_steps": 0, "train_env_steps": 0, "seconds": 0.0}
        self.progress["run_id"] = secrets.token_hex(4)

    @property
    def length(self) -> int:
        """The number of outer iterations."""
        return getattr(self.cfg, self.cfg.LENGTH)

    @contextlib.contextmanager
    def training(
        self, make_log: Callable[["Run[SettingsType]"], LogType], **components: checkpoint.Component
    ) -> Iterator[LogType]:
        """Context in which to train: it makes and locks the run folder, and saves checkpoints until the end.

        `components` are the modules and optimisers to save, by name; with -c they get the state in the checkpoint.
        Yields `make_log(run)`. However training ends, the outer iterations that are done are saved.
        """
        self._components = components
        self.shown = parallel.from_first(lambda: make_run_folder(self.cfg, bool(self._saved), self._started_in))
        self.folder = self._started_in / self.shown
        self._path = self.folder / "checkpoint.pt"
        if self._saved:
            saved = parallel.from_first(lambda: self._load(self._path))  # again, now that no other run can change it
            checkpoint.restore(saved, **components)
            self.progress = {name: saved[name] for name in self.progress}
        self.trackers = []
        parallel.from_first(self._start_trackers)  # a tracker that fails here ends the run before it has any file
        self._take_snapshot()
        self._save()  # shows at once whether the disk has room
        self._write_config()
        if parallel.FIRST:
            (self.folder / STARTING).unlink(missing_ok=True)
        self._announce()
        log = self._log = make_log(self)
        go_on = f"continue with -c --out {shlex.quote(str(self.shown))}"
        try:
            yield log
        except (FloatingPointError, EnvironmentFailed, parallel.Lost) as error:
            process.ignore_signals()
            self._save()
            log.close()
            done = self.progress["iteration"]
            where = f"in outer iteration {done}" if done < self.length else "in the final test"
            saved = f"the state before it is saved in {self.shown / 'checkpoint.pt'}"
            raise UserError(f"{error}, {where}; {saved if parallel.FIRST else go_on}") from None
        except UserError as error:  # a file could not be written
            log.close_after_failed_write()
            raise UserError(f"{error}, then {go_on}") from None
        except KeyboardInterrupt:  # -c repeats the outer iteration that was under way
            self._save()
            done = self._snapshot["iteration"]  # not `progress`: the interrupt may have come within `end_iteration`
            counts = f"{done} of {self.length} outer iterations"
            log.message(f"saved after {counts}; {go_on}")
            log.close()
            if not parallel.FIRST:  # the only word if the first process was killed, and torchrun ends the others
                print(f"process {parallel.RANK} was stopped in outer iteration {done}; {go_on}", file=sys.stderr)
            raise
        except Exception:  # a fault in this package, or no memory left
            self._save()
            raise
        parallel.stop()

    def end_iteration(self, trained_reward: float, **progress: Any) -> None:
        """Take note of the progress after an outer iteration, and save a checkpoint if one is due.

        The trained reward is that of the sub-policies with which the iteration began. If it is the highest so far, the
        trackers get their checkpoint as the best one.
        """
        if parallel.FIRST and trained_reward > self.highest_reward:
            self.highest_reward = trained_reward
            for tracker in self.trackers:
                tracker.keep_best(self._snapshot, trained_reward)
        self.progress |= progress
        if len(compiled.FAILED) > self._compile_failures:
            self._write_config()
        self._take_snapshot()
        if time.monotonic() > self._last_save + self.cfg.save_seconds:
            self._save()

    def finish(self, final_test: Callable[[], Mapping[str, Any]] | None = None) -> None:
        """Save, and in the first process run `final_test()` and close the log with its results."""
        self._save()
        if parallel.FIRST:
            os.environ.pop("LOCAL_WORLD_SIZE", None)  # the other processes end; the final test may use their cores
            results = {"env": self.cfg.env, "seed": self.cfg.seed, **self.progress}
            self._log.close(results | dict(final_test() if final_test else {}))

    def _start_trackers(self) -> None:
        """Start the trackers; wandb may change the id of the run."""
        trackers, run_id = start_trackers(self.cfg, self.folder, self.progress["run_id"], self.progress["env_steps"])
        self.trackers += trackers
        self.progress["run_id"] = run_id

    def _announce(self) -> None:
        """Print what is trained, where the files go, and what it runs on."""
        if parallel.FIRST:
            cfg, n = self.cfg, self.progress["iteration"]
            done = f" ({n} done)" if n else ""
            processes = f", processes: {parallel.SIZE}" if parallel.SIZE > 1 else ""
            first = cfg.compiled_from
            compiled_from = "off" if first >= self.length else f"from outer iteration {first + 1} on" if first else "on"
            machine = f"device: {cfg.device}{processes}, threads: {torch.get_num_threads()}, compile: {compiled_from}"
            if cfg.notes:
                print(cfg.notes, file=sys.stderr)
            print(f"training {cfg.KIND} on {cfg.env}, run folder: {self.shown}", file=sys.stderr)
            print(f"outer iterations: {self.length}{done}, {machine}", file=sys.stderr)

    def _write_config(self) -> None:
        self._compile_failures = len(compiled.FAILED)
        if parallel.FIRST:
            description = {"run_id": self.progress["run_id"], "config": self.cfg.as_dict()}
            description |= {"machine": describe_machine(), "compiler_failed": (compiled.FAILED or [None])[-1]}
            write_whole(self.folder / "config.json", json.dumps(description, indent=2) + "\n")

    def _take_snapshot(self) -> None:
        self._snapshot = checkpoint.snapshot(self.cfg, self.progress, **self._components)

    def _save(self) -> None:
        if parallel.FIRST:
            checkpoint.save(self._snapshot, self._path)
        self._last_save = time.monotonic()


def make_run_folder(cfg: RunSettings, continued: bool, started_in: Path = Path()) -> Path:
    """Make and lock the folder of --out, or a new one in runs/, and return its name, relative to `started_in`.

    Raises a UserError if it has files in it and the run is not `continued`, if another run has locked it, or if it
    cannot be made. The lock ends with this process.
    """
    shown = Path(cfg.out or "runs")
    try:
        if not cfg.out:
            shown = new_folder(cfg, started_in)
        folder = started_in / shown
        refuse_files_in(folder, shown, continued)
        folder.mkdir(parents=True, exist_ok=True)
        refuse_links(folder)
        if not continued:
            with contextlib.suppress(FileExistsError):
                open(folder / STARTING, "x").close()
        (folder / "videos").mkdir(exist_ok=True)
        LOCKS.append(FileLock(folder / ".lock"))
        LOCKS[-1].acquire(timeout=0)
        refuse_files_in(folder, shown, continued)  # again, now that no other run can add any
    except Timeout:
        raise UserError(f"another run is writing to {shown}; wait for it or name another with --out") from None
    except OSError as error:
        raise UserError(f"cannot make the run folder {shown} ({error.strerror}); name another with --out") from None
    return shown


def new_folder(cfg: RunSettings, started_in: Path) -> Path:
    """Make a folder in runs/, named after environment and time, and numbered if other runs begin in the same second."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    kind = "" if cfg.KIND == "mlsh" else f"{cfg.KIND}-"
    folder = first = Path(f"runs/{kind}{safe_name(cfg.env.split(':')[-1])}-{stamp}")
    (started_in / first).parent.mkdir(exist_ok=True)
    others = 0
    while True:
        try:
            (started_in / folder).mkdir()  # succeeds in one process only, also on a network file system
            return folder
        except FileExistsError:
            others += 1
            folder = Path(f"{first}-{others + 1}")


def refuse_files_in(folder: Path, shown: Path, continued: bool) -> None:
    """Raise a UserError if there are files that a run which begins in this folder could overwrite."""
    if continued or not folder.exists():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    if "checkpoint.pt" in names and STARTING not in names:
        raise UserError(f"--out {shown} is not empty; continue it with -c or name another folder")
    if names and STARTING not in names:
        raise UserError(f"--out {shown} is not empty and has no checkpoint to continue; name another folder")


def check_tracking(cfg: TrackedSettings) -> None:
    """Raise a UserError for a name that wandb would refuse, and for --wandb online where wandb is not installed."""
    if cfg.wandb_mode == "disabled":
        return
    try:
        from mlsh.runs.tracking import check_names
    except ModuleNotFoundError as error:
        if cfg.wandb_mode == "online":
            raise UserError(f"{error}; install it, or use --wandb disabled") from None
    else:
        check_names(cfg)


def start_trackers(cfg: TrackedSettings, folder: Path, run_id: str, env_steps: int = 0) -> tuple[list[Tracker], str]:
    """Start wandb and TensorBoard as the settings say; they are imported here because that takes a while.

    `env_steps` are those done before, in a continued run. Also returns the run's id, which wandb may change.
    """
    trackers: list[Tracker] = []
    redirect_home(folder)
    if cfg.wandb_mode != "disabled":
        try:
            from mlsh.runs.tracking import WandbTracker
        except ModuleNotFoundError as error:
            print(f"wandb did not start, continuing without it: {error}", file=sys.stderr)
        else:
            tracker = WandbTracker(cfg, folder, run_id, describe_machine())
            trackers.append(tracker)
            run_id = tracker.run_id
    if cfg.tensorboard:
        from mlsh.runs.events import TensorBoardTracker

        settings = {"kind": cfg.KIND, **cfg.as_dict(), **describe_machine()}
        trackers.append(TensorBoardTracker(folder, env_steps, settings))
    return trackers, run_id


def redirect_home(folder: Path) -> None:
    """If the home directory cannot be written to, have libraries keep their files in the run folder."""
    home = os.path.expanduser("~")  # noqa: PTH111 (Path.home raises if there is none)
    if not os.access(home, os.W_OK):
        for name in ("HOME", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "MPLCONFIGDIR"):
            os.environ.setdefault(name, str(folder.absolute() / "wandb" / "home"))


def git_commit() -> str | None:
    """Return the git commit of this file, or the one that pip or uv installed; None if there is neither."""
    here = Path(__file__)

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", *args], cwd=here.parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        return git("describe", "--always", "--dirty")
    except (OSError, subprocess.CalledProcessError):
        pass
    try:
        source = distribution("mlsh").read_text("direct_url.json")  # of `pip install git+URL`
    except PackageNotFoundError:  # only on the path
        return None
    return json.loads(source or "{}").get("vcs_info", {}).get("commit_id")


def code_version() -> str:
    """Return what tells this code, with any changes, from another: the version of PyTorch, and a hash."""
    sources = sorted(Path(__file__).parents[1].rglob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    return f"{digest[:12]} with PyTorch {torch.__version__}"


def installed_version(package: str) -> str | None:
    """Return a package's version, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@functools.cache
def describe_machine() -> dict[str, Any]:
    """Return the commit, the versions of Python and packages, and the hardware."""
    cpuinfo = Path("/proc/cpuinfo")  # Linux only
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "commit": git_commit(),
        "python": platform.python_version(),
        "packages": {"mlsh": __version__} | {name: installed_version(name) for name in PACKAGES},
        "processor": names[0] if names else platform.processor(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
