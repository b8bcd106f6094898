"""The signals that end a command, and its standard streams. `mlsh` imports this module before all others."""

import contextlib
import io
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]  # Windows has the first two
SAME_SIGNAL_SECONDS = 3.0  # torchrun sends two signals for one Ctrl-C
UNPRINTED: dict[int | None, str] = {}  # why something could not be printed: errno -> reason
last_signal = -SAME_SIGNAL_SECONDS


def handle_signals(handler: Callable[[int, FrameType | None], object]) -> None:
    """Call `handler` for the signals that end a run. A SIGHUP that `nohup` ignores stays ignored.

    A SIGINT that is ignored does not stay so, because a shell starts its background jobs with it.
    """
    for number in SIGNALS:
        if number != getattr(signal, "SIGHUP", None) or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def ignore_signals() -> None:
    """Ignore the signals that end a run from now on, so that a last save is not cut short."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt(number) for a signal, unless another one did so in the last `SAME_SIGNAL_SECONDS`.

    A person who repeats Ctrl-C wants the program to end at once. The system repeats SIGXCPU every second.
    """
    global last_signal
    if number not in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if time.monotonic() > last_signal + SAME_SIGNAL_SECONDS:
        last_signal = time.monotonic()
        raise KeyboardInterrupt(number)


def exit_at_once(number: int, frame: FrameType | None = None) -> None:
    """End the process with one line, where nothing can be lost."""
    line = f"{Path(sys.argv[0]).name}: stopped by {signal.Signals(number).name}\n"
    with contextlib.suppress(OSError):
        os.write(2, line.encode(errors="replace"))
    os._exit(128 + number)


def is_command() -> bool:
    """Return whether this process runs a command of this project, and not a program of others that imports `mlsh`."""
    program = Path(sys.argv[0])
    source = program.read_bytes() if program.is_file() else b""
    return program.name.startswith("mlsh-") or bool(re.search(rb"\nfrom mlsh\.errors import .*command\b", source))


def open_closed_streams() -> None:
    """Open those of the standard streams that are closed, as by `>&-`, so that no other file gets their numbers."""
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
            os.set_inheritable(getattr(sys, name).fileno(), True)


def protect_output() -> None:
    """Make printing never fail: what the encoding lacks is replaced, and what cannot be written is left out.

    The reasons are kept in `UNPRINTED`.
    """

    def protected(write: Callable[..., Any]) -> Callable[..., Any]:
        def attempt(*args: Any) -> Any:
            try:
                return write(*args)
            except OSError as error:
                UNPRINTED[error.errno] = str(error.strerror)

        return attempt

    UNPRINTED.clear()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
        for name in ("write", "flush"):
            setattr(stream, name, protected(getattr(stream, name)))


if is_command():
    open_closed_streams()
    handle_signals(exit_at_once)  # until `errors.run_command` begins
