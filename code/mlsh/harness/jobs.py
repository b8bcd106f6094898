"""Jobs: scripts of code/ with their flags, each with a run folder, run side by side, continued, and never twice."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from mlsh.errors import UserError
from mlsh.runs.files import write_whole

CODE = Path(__file__).parents[2]


class Job(NamedTuple):
    name: str  # of its folder among the runs
    command: str  # a script, or -m and a module, and its flags, but for --out

    @classmethod
    def seeded(cls, name, command, seeds):
        return [cls(f"{name}-{seed}", f"{command} --seed {seed}") for seed in seeds]


class Jobs:
    """Runs jobs in `folder`, as many at a time as there are cores."""

    def __init__(self, folder):
        self._folder, self._started, self._stopping = folder, set(), False

    def run(self, jobs):
        """Run those that are not finished. If one fails, or this is interrupted, the others save and stop."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                for done in as_completed([pool.submit(self._run, *job) for job in dict.fromkeys(jobs)]):
                    done.result()
            except BaseException:
                self._stopping = True
                for process in list(self._started):
                    process.terminate()
                raise

    def _run(self, name, command):
        """Start, continue or skip a job, in a thread of its own."""
        folder, note = self._folder / name, self._folder / f"{name}.command"
        words = [sys.executable, *command.split(), "--out", str(folder)]
        last_file = folder / ("adaptation.csv" if "evaluate.py" in words else "results.json")
        if note.exists() and note.read_text() != command:
            raise UserError(f"{folder} is of another command ({note.read_text()}); remove it and {note}")
        if last_file.exists() or self._stopping:
            return
        if (folder / "checkpoint.pt").exists():
            words.append("-c")
        elif folder.exists():
            shutil.rmtree(folder)
        write_whole(note, command)
        print(f"{name}: {command}\n", end="", flush=True)  # in one piece, beside other threads
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(words, cwd=CODE, env=one_thread, **pipes)
        self._started.add(process)
        if self._stopping:  # since the question above
            process.terminate()
        _, err = process.communicate()
        self._started.remove(process)
        if process.returncode or not last_file.exists():
            raise UserError(f"{name} failed: {err.strip()[-300:]}")
