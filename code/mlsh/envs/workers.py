"""Worker processes that step copies of a Gymnasium environment."""

import atexit
import contextlib
import multiprocessing.util
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from mlsh.envs import boundary
from mlsh.envs.copies import Block, Copies
from mlsh.errors import EnvironmentFailed
from mlsh.process import protect_output

CLOSE_SECONDS = 5.0  # until a worker that does not end is killed
SECONDS_PER_WORKER = 0.0005  # that a worker adds to each step of the batch
WORTHWHILE = 1.2  # times as fast: what workers must gain to be used
START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


class Worker:
    """Runs `Copies` in another process. Each `send` calls a method there, and `receive` waits for its result.

    The process ends when this one ends, in whatever way, after `close_workers`, and when this object is
    garbage-collected.
    """

    def __init__(self, block: Block) -> None:
        """Start the process. It makes its copies in the background; `receive` waits until they are ready."""
        context: Any = multiprocessing.get_context(START_METHOD)
        if START_METHOD == "forkserver":
            context.set_forkserver_preload([__name__])  # imported once for all workers
        self._connection, theirs = context.Pipe()
        denormals = bool(torch.tensor(1e-40) * 1 != 0)
        self._process = context.Process(target=serve, args=(theirs, block, dict(os.environ), denormals))
        with starting_safely():
            self._process.start()
        theirs.close()
        LIVE.add(self._process)
        self._waiting = True

    def send(self, method: str, *args: Any) -> None:
        if self._waiting:  # an exception came between the last `send` and its `receive`
            with contextlib.suppress(EnvironmentFailed):
                self._read()
        with contextlib.suppress(OSError):  # `receive` reports it
            self._connection.send((method, args))
        self._waiting = True

    def receive(self) -> Any:
        """The result of the method called last. What it has raised is raised again."""
        result = self._read()
        if isinstance(result, BaseException):
            raise result
        return result

    def _read(self) -> Any:
        """The result of the method called last, or the exception that it has raised."""
        wait([self._connection, self._process.sentinel])  # a child of the worker may keep a dead connection open
        try:
            if not self._connection.poll():
                raise EOFError
            result = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(CLOSE_SECONDS)
            raise EnvironmentFailed(
                f"a worker process ended unexpectedly (exit code {self._process.exitcode}); "
                "--env_workers 1 uses no workers"
            ) from None
        self._waiting = False
        return result

    def disconnect(self) -> None:
        """Ask the process to close its copies and end."""
        self._connection.close()

    def end(self, deadline: float) -> None:
        """Wait until the process has ended, and kill it at the deadline, a time of `time.monotonic`."""
        self._process.join(max(0.0, deadline - time.monotonic()))
        self._process.kill()
        self._process.join()
        LIVE.discard(self._process)


LIVE: set[Any] = set()  # the processes of workers that were not closed


@atexit.register  # registered after multiprocessing.util's function, which waits for all processes, so called before it
def kill_workers() -> None:
    for process in LIVE:
        if process.is_alive():
            process.kill()


def close_workers(workers: Sequence[Worker]) -> None:
    """End several workers at the same time."""
    for worker in workers:
        worker.disconnect()
    deadline = time.monotonic() + CLOSE_SECONDS
    for worker in workers:
        worker.end(deadline)


@contextlib.contextmanager
def starting_safely() -> Iterator[None]:
    """Context to start a process in. Ctrl-C does not interrupt it.

    It imports this package from where this process has it, and nothing from the current folder.
    """
    blocks = hasattr(signal, "pthread_sigmask")  # Windows has none
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if blocks else set()
    environ = {name: os.environ.get(name) for name in ("PYTHONSAFEPATH", "PYTHONPATH")}
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), environ["PYTHONPATH"])))
    os.environ.update(PYTHONSAFEPATH="1", PYTHONPATH=path)
    try:
        yield
    finally:
        for name, value in environ.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        if blocks:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve(connection: Connection, block: Block, environ: Mapping[str, str], denormals: bool) -> None:
    """The worker's process: call the methods of its `Copies` that `connection` names, until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is for the first process
    if hasattr(os, "setsid"):
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.environ.clear()
    os.environ.update(environ)
    protect_output()
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    torch.set_flush_denormal(not denormals)
    copies: Copies | None = None
    with contextlib.suppress(EOFError, OSError):
        try:
            with boundary.restored_settings(), boundary.restored_signals():
                copies, result = Copies(block), None
        except BaseException as error:
            result = error
        while True:
            connection.send(result)
            method, args = connection.recv()
            try:
                result = getattr(copies, method)(*args)
            except BaseException as error:
                result = error
    if copies:
        copies.close()


def end_with_parent() -> None:
    """End this process as soon as the one that started it has ended, even if a step never returns."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


def worthwhile_processes(seconds: float, copies: int, cores: int) -> int:
    """The number of processes with which a step of all copies is fastest, if a copy's step takes so many seconds."""
    alone = seconds * copies
    times = {n: alone / n + SECONDS_PER_WORKER * (n - 1) for n in range(1, min(cores, copies) + 1)}
    best = min(times, key=lambda n: times[n])
    return best if alone >= WORTHWHILE * times[best] else 1
