"""Jobs: commands that run side by side, each in its own run folder. A finished job never runs again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from mlsh.envs.memory import available_cores
from mlsh.errors import UserError
from mlsh.runs.files import write_whole, writing

CODE = Path(__file__).parents[2]


class Job(NamedTuple):
    """A command and the folder that it writes to."""

    name: str  # of its run folder, within the folder of the study
    command: str  # a script of code/ and its flags, without --out

    @classmethod
    def for_seeds(cls, name: str, command: str, seeds: Iterable[int]) -> list["Job"]:
        """One job per seed, in the folders NAME-SEED."""
        return [cls(f"{name}-{seed}", f"{command} --seed {seed}") for seed in seeds]


class JobRunner:
    """Runs jobs in `folder`, as many at a time as this process may use cores.

    Several processes may do this with the same jobs, also on several machines: a lock on each job shares them out.
    """

    def __init__(self, folder: Path, wandb: str = "disabled") -> None:
        """`wandb` is a mode of --wandb for all jobs; there they are a group with the name of the folder."""
        self._folder, self._wandb = folder, wandb
        self._running: set[subprocess.Popen[str]] = set()
        self._stopping = False

    def run(self, jobs: Iterable[Job]) -> None:
        """Run every job that is not finished, and continue those that were interrupted.

        Jobs that another process runs come last: this one waits until they are finished, and takes over those whose
        process has died. Raises a UserError if a job fails, or if its folder belongs to another command. After an error
        or an interrupt the other jobs of this process save their checkpoints and stop.
        """
        with ThreadPoolExecutor(available_cores()) as pool:
            try:
                futures, waiting = {}, list(dict.fromkeys(jobs))
                while waiting or futures:
                    futures |= {pool.submit(self._finish, job): job for job in waiting}
                    done = wait(futures, return_when=FIRST_COMPLETED).done
                    jobs_done = [(futures.pop(future), future.result()) for future in done]
                    waiting = [job for job, finished in jobs_done if not finished]
                    if waiting:
                        time.sleep(1)
            except BaseException:
                self._stopping = True
                for process in list(self._running):
                    process.terminate()
                raise

    def _finish(self, job: Job) -> bool:
        """Run a job to its end, and return whether it is finished, which it is not if another process runs it.

        Nothing is looked at before the lock is held: a network file system remembers for a while what was not there.
        """
        path = self._folder / f"{job.name}.lock"
        lock = FileLock(path)
        with writing(path):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                return False
        try:
            self._run(job, lock)
        finally:
            lock.release()
        return True

    def _run(self, job: Job, lock: FileLock) -> None:
        folder, note = self._folder / job.name, self._folder / f"{job.name}.command"
        script, *flags = job.command.split()
        one_core = ["--sim_threads", "1", "--env_workers", "1"]  # as OMP_NUM_THREADS below; the job's flags come later
        words = [sys.executable, script, *one_core, *flags, "--out", str(folder)]
        words += [] if self._wandb == "disabled" else ["--wandb", self._wandb]  # overrides that of the command
        evaluates = "evaluate.py" in words
        last_file = folder / ("adaptation.csv" if evaluates else "results.json")
        if note.exists() and note.read_text() != job.command:
            raise UserError(f"{folder} belongs to another command ({note.read_text()}); remove {folder} and {note}")
        if last_file.exists() or self._stopping:
            return
        write_whole(note, job.command)
        held = lock._context.lock_file_fd  # the child keeps it, and so the job stays locked even if this process dies
        print(f"{job.name}: {job.command}\n", end="", flush=True)  # one write, since other threads print too
        process = subprocess.Popen(
            words if evaluates else [*words, "-c"],
            cwd=CODE,
            env={"WANDB_RUN_GROUP": self._folder.name, **os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=[held] if held is not None and os.name == "posix" else [],
        )
        self._running.add(process)
        if self._stopping:  # another job may have failed since the check above
            process.terminate()
        _, err = process.communicate()
        self._running.remove(process)
        if process.returncode < 0:
            name = signal.Signals(-process.returncode).name
            why = " (perhaps for lack of memory)" if name == "SIGKILL" else ""
            raise UserError(f"{job.name} was killed by {name}{why}; start the study again to continue")
        if process.returncode or not last_file.exists():
            raise UserError(f"{job.name} failed: {err.strip()[-600:]}")
