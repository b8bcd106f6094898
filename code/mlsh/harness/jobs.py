"""Jobs: commands that run side by side, each in its own run folder. A finished job never runs again."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from mlsh.errors import UserError
from mlsh.runs.files import write_whole

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
    """Runs jobs in `folder`, as many at a time as the machine has cores."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: set[subprocess.Popen[str]] = set()
        self._stopping = False

    def run(self, jobs: Iterable[Job]) -> None:
        """Run every job that is not finished, and continue those that were interrupted.

        Raises a UserError if a job fails, or if its folder belongs to another command. After an error or an interrupt
        the other jobs save their checkpoints and stop.
        """
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                for done in as_completed([pool.submit(self._run, job) for job in dict.fromkeys(jobs)]):
                    done.result()
            except BaseException:
                self._stopping = True
                for process in list(self._running):
                    process.terminate()
                raise

    def _run(self, job: Job) -> None:
        folder, note = self._folder / job.name, self._folder / f"{job.name}.command"
        words = [sys.executable, *job.command.split(), "--out", str(folder)]
        last_file = folder / ("adaptation.csv" if "evaluate.py" in words else "results.json")
        if note.exists() and note.read_text() != job.command:
            raise UserError(f"{folder} belongs to another command ({note.read_text()}); remove {folder} and {note}")
        if last_file.exists() or self._stopping:
            return
        if (folder / "checkpoint.pt").exists():
            words.append("-c")
        elif folder.exists():
            shutil.rmtree(folder)
        write_whole(note, job.command)
        print(f"{job.name}: {job.command}\n", end="", flush=True)  # one write, since other threads print too
        process = subprocess.Popen(
            words,
            cwd=CODE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._running.add(process)
        if self._stopping:  # another job may have failed since the check above
            process.terminate()
        _, err = process.communicate()
        self._running.remove(process)
        if process.returncode or not last_file.exists():
            raise UserError(f"{job.name} failed: {err.strip()[-300:]}")
